"""The worlds of a run, those in which it trains and others in which it is judged, and who looks through an encoder."""

from dataclasses import replace

import numpy as np
from gymnasium.vector import VectorEnv
from torch import nn

from mmssl.control.base import Algorithm, Spaces, create_algorithm
from mmssl.control.rl_config import RLConfig
from mmssl.control.state_reader import StateReader
from mmssl.envs.encode import encode_vec
from mmssl.envs.encode_states import reads_vectors
from mmssl.envs.vector import make_vec
from mmssl.training.checkpoint import RunFolder
from mmssl.weights.load import load


def load_encoder(config: RLConfig, run: RunFolder | None = None) -> nn.Module | None:
    """The encoder of a run on its device, None where it has none; a run that goes on has a copy of its own."""
    if config.encoder is None:
        return None
    own = None if run is None else run.export / "encoder"
    return load(config.encoder if own is None or not own.is_dir() else own, device=config.device)


def settled(config: RLConfig, encoder: nn.Module | None) -> RLConfig:
    """A resolved config with what the encoder decides of what is seen: `observe` and `proprio`, where they are open."""
    if encoder is None:
        return config
    wanted = {"observe": "pixels", "proprio": True}
    if config.observe == "state" or reads_vectors(encoder):
        wanted = {"observe": "state", "proprio": "proprio" in encoder.modalities}
    return replace(config, **{name: value for name, value in wanted.items() if getattr(config, name) is None})


def make_world(config: RLConfig, n: int, seed: int, encoder: nn.Module | None = None) -> VectorEnv:
    """n environments of a resolved config, behind the encoder where there is one and the algorithm has it not itself.

    Raises:
        MmsslError: an unknown task or camera, an encoder that does not read what the task shows, or not of this size.
    """
    config = settled(config, encoder)
    settings = {"action_repeat": config.action_repeat, "faithful": config.faithful, "workers": config.workers}
    settings |= {"observe": config.observe, "proprio": config.proprio, "cameras": config.cameras}
    settings |= {"frame_stack": config.frame_stack, "limit": config.max_broken, "seed": seed}
    settings |= {} if config.size is None else {"size": config.size}
    if encoder is None or config.algorithm.own_encoder:
        return make_vec(config.task, n, **settings)
    own = {"pooling": config.pooling, "stack": config.feature_stack, "keep": config.keep_obs}
    return encode_vec(encoder, config.task, n, **own, **settings)


def make_algorithm(
    config: RLConfig, spaces: Spaces, encoder: nn.Module | None, world: VectorEnv | None = None
) -> Algorithm:
    """The algorithm of a config, with the encoder where it has that itself.

    Args:
        world: says what actions of -1 and 1 are in the task's own units, which an encoder of actions must know; None
            where saved weights will say it.
    """
    reader = None
    if encoder is not None and config.algorithm.own_encoder:
        ends = [None, None]
        if world is not None and not spaces.discrete:
            ends = [world.to_env(np.full((1, spaces.action_dim), end, np.float32))[0] for end in (-1, 1)]
        elif not spaces.discrete:
            ends = [np.full(spaces.action_dim, end, np.float32) for end in (-1, 1)]
        reader = StateReader(encoder, spaces.vectors, config.pooling, config.keep_obs, *ends)
    return create_algorithm(config.algorithm, spaces, config.seed, config.device, reader)
