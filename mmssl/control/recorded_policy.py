"""Trained policies as those that `mmssl record` asks for: `--policy runs/td3@30000`."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.control.saving import LoadedPolicy, find_policy_folder, load_policy
from mmssl.envs.make import SimEnvironment
from mmssl.envs.policies import POLICIES, Act, Policy, find_policy
from mmssl.envs.window import Window
from mmssl.errors import MmsslError, unknown_name


def recorded_policy(name: str) -> tuple[Policy | None, str]:
    """The policy of a run of `mmssl rl`, or None for one that its name says all of, and what a recording calls it.

    Of a run that is algorithm, task, steps and a digest of the weights, so that a recording made with other weights is
    known to be another one, wherever the run lies.

    Raises:
        MmsslError: there is no such policy, or it sees what no recording has.
    """
    path = Path(name.rpartition("@")[0] or name).expanduser()
    if name in ("auto", *POLICIES) or (":" in name and not path.exists()):
        find_policy(name)  # what is wrong with it is said now
        return None, name
    if not path.exists():
        raise unknown_name("policy", name, ["auto", *POLICIES, "module:function", "RUN", "RUN@STEPS"])
    folder = find_policy_folder(Path(name).expanduser())
    loaded, digest = load_policy(folder), hashlib.sha256((folder / "policy.safetensors").read_bytes()).hexdigest()
    if loaded.encoder is not None:
        raise MmsslError(
            f"{name} looks through an encoder, which a recording does not; record with a policy of states."
        )
    label = f"{loaded.config.algorithm.name} on {loaded.config.task}, {loaded.steps} steps, {digest[:12]}"
    return RunPolicy(folder.resolve(), label), label


@cache
def _loaded(folder: Path, label: str) -> LoadedPolicy:
    """Once in a process; the label tells other weights at the same place apart."""
    return load_policy(folder)


@dataclass(frozen=True)
class RunPolicy:
    """A factory of `mmssl.envs.policies`: the saved policy in a folder, loaded where it is first needed.

    It acts as it does in its own worlds: the same observations in the same order, actions in [-1, 1] stretched to the
    environment's range.
    """

    folder: Path
    label: str

    def __call__(self, env: SimEnvironment, rng: np.random.Generator) -> Act:
        loaded = _loaded(self.folder, self.label)
        self._check(loaded, env)
        low, high = env.action_space.low, env.action_space.high
        look, middle, half = _Look(loaded), (low + high) / 2, (high - low) / 2

        def act(observation: dict) -> np.ndarray:
            action = loaded.policy.act(look(observation))[0]
            return np.clip(action, np.float32(-1), np.float32(1)) * half + middle

        return act

    def _check(self, loaded: LoadedPolicy, env: SimEnvironment) -> None:
        """Raise an `MmsslError` where the world is not like the one that the policy learned in."""
        spaces, name = loaded.spaces, env.task.full_name
        its = {key: space.shape for key, space in env.observation_space.spaces.items()}
        for key, width in spaces.vectors.items():
            if its.get(key) != (width,):
                there = f"{its[key][0]}" if key in its else "none"
                raise MmsslError(f"{self.label}, sees {width} numbers as its {key}, and {name} has {there}.")
        if spaces.discrete or spaces.action_dim != env.action_space.shape[0]:
            kind = "discrete actions" if spaces.discrete else f"{spaces.action_dim} numbers"
            raise MmsslError(f"{self.label}, gives {kind}, and {name} takes {env.action_space.shape[0]} numbers.")
        learned, here = loaded.config.action_repeat, env.task.action_repeat
        if learned not in (None, here):
            raise MmsslError(
                f"{self.label}, held actions for {learned} steps, not {here}; give --action-repeat {learned}."
            )


class _Look:
    """Turns the observations of one recorded episode into what the policy saw in its own world: name -> (1, ...)."""

    def __init__(self, loaded: LoadedPolicy):
        self.spaces, self.stack = loaded.spaces, loaded.config.frame_stack or 1
        self.stacks: dict[str, Window] = {}

    def __call__(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        vectors = self.spaces.vectors
        return {
            name: observation[name][None] if name in vectors else self._picture(name, observation["rgb"])
            for name in self.spaces.observations
        }

    def _picture(self, name: str, rgb: dict[str, np.ndarray]) -> np.ndarray:
        """Frames of one camera, oldest first, uint8 (1, stack * 3, H, W)."""
        (rows, height, width), camera = self.spaces.observations[name][0], name.removeprefix("image/")
        if camera not in rgb or rgb[camera].shape[:2] != (height, width):
            raise MmsslError(
                f"the policy looks through {camera}; record with --cameras {camera} --size {height} {width}."
            )
        begins = None if name in self.stacks else np.array([True])
        window = self.stacks.setdefault(
            name, Window(1, self.stack, (rows // self.stack, height, width), np.dtype(np.uint8))
        )
        return window.push(rgb[camera].transpose(2, 0, 1)[None], begins)
