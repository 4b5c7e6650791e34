"""What moves the robot while it is recorded: a scripted expert, random or smooth random actions, or a user's function.

A policy is a factory `(env, rng) -> act`, called at the start of each episode; `act(observation)` gives an action
inside `env.action_space`. The observation is the dict of `mmssl.envs.make`, with the newest pictures under "rgb".
"""

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.envs.make import SimEnvironment
from mmssl.errors import MmsslError, unknown_name

Act = Callable[[dict[str, Any]], np.ndarray]
Policy = Callable[[SimEnvironment, np.random.Generator], Act]


def expert_policy(env: SimEnvironment, rng: np.random.Generator) -> Act:
    """The task's own script."""
    script = env.expert()
    if script is None:
        raise MmsslError(
            f"{env.task.full_name} has no scripted expert; use --policy random or smooth, or module:function."
        )

    def act(observation: dict) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Meta-World's scripts warn of actions that the environment clips
            return script(observation["state"])

    return act


def random_policy(env: SimEnvironment, rng: np.random.Generator) -> Act:
    """Each action uniform in the action space, independent of the last."""
    low, high = env.action_space.low, env.action_space.high
    return lambda _: rng.uniform(low, high)


def smooth_policy(env: SimEnvironment, rng: np.random.Generator, correlation: float = 0.9) -> Act:
    """Coloured noise (an AR(1) process squashed into the action space): moves farther than independent actions do."""
    low, high = env.action_space.low.astype(np.float64), env.action_space.high.astype(np.float64)
    noise = rng.standard_normal(low.shape)

    def act(_: dict) -> np.ndarray:
        nonlocal noise
        noise = correlation * noise + np.sqrt(1 - correlation**2) * rng.standard_normal(low.shape)
        return (low + high) / 2 + (high - low) / 2 * np.tanh(1.5 * noise)

    return act


POLICIES: dict[str, Policy] = {"expert": expert_policy, "random": random_policy, "smooth": smooth_policy}


def find_policy(name: str) -> Policy:
    """A policy by name, "auto" (the expert where there is one, else smooth), or "module:function" of the user's."""
    if name == "auto":
        return lambda env, rng: (expert_policy if env.expert() is not None else smooth_policy)(env, rng)
    if ":" not in name:
        if name not in POLICIES:
            raise unknown_name("policy", name, ["auto", *POLICIES, "module:function"])
        return POLICIES[name]
    module_name, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:  # an installed command does not have the current folder on its path
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise MmsslError(f"the policy {name!r} cannot be imported: {error}.") from None


class NoisyAction:
    """Adds Gaussian noise to actions: `scale` is its standard deviation as a share of half the action range."""

    def __init__(self, env: SimEnvironment, rng: np.random.Generator, scale: float):
        self.low, self.high = env.action_space.low, env.action_space.high
        self.rng, self.scale = rng, scale

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """The action (A,) with noise, clipped to the action space."""
        action = np.asarray(action, np.float64)
        if action.shape != self.low.shape or not np.isfinite(action).all():
            raise MmsslError(
                f"the policy gave the action {action.tolist()}; this task wants {self.low.size} finite numbers."
            )
        if self.scale:
            action = action + self.scale * (self.high - self.low) / 2 * self.rng.standard_normal(action.shape)
        return np.clip(action, self.low, self.high).astype(np.float32)
