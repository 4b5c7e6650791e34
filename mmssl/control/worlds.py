"""The worlds of a run: those in which it trains, and others in which it is judged."""

from gymnasium.vector import VectorEnv
from torch import nn

from mmssl.control.rl_config import RLConfig
from mmssl.envs.encode import encode_vec
from mmssl.envs.vector import make_vec
from mmssl.training.checkpoint import RunFolder
from mmssl.weights.load import load


def load_encoder(config: RLConfig, run: RunFolder | None = None) -> nn.Module | None:
    """The frozen encoder of a run on its device, None where it has none; a run that goes on has a copy of its own."""
    if config.encoder is None:
        return None
    own = None if run is None else run.export / "encoder"
    return load(config.encoder if own is None or not own.is_dir() else own, device=config.device)


def make_world(config: RLConfig, n: int, seed: int, encoder: nn.Module | None = None) -> VectorEnv:
    """n environments of a resolved config, behind the encoder where there is one.

    Raises:
        MmsslError: an unknown task or camera, an encoder that does not read pictures, or not of this size.
    """
    settings = {"action_repeat": config.action_repeat, "faithful": config.faithful, "workers": config.workers}
    settings |= {"observe": config.observe, "proprio": config.proprio, "cameras": config.cameras}
    settings |= {"frame_stack": config.frame_stack, "limit": config.max_broken, "seed": seed}
    settings |= {} if config.size is None else {"size": config.size}
    if encoder is None:
        return make_vec(config.task, n, **settings)
    return encode_vec(encoder, config.task, n, pooling=config.pooling, stack=config.feature_stack, **settings)
