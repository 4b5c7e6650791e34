"""What an on-policy algorithm has just lived through, T steps of n environments, and the advantages of its actions."""

from typing import Any

import numpy as np

from mmssl.control.base import Spaces

ARRAYS = ("obs", "drawn", "reward", "terminated", "ended", "valid")


class Rollout:
    """T steps of n environments, filled one by one.

    The observation after step t is that of row t + 1, the last one of an episode too: its row is the step that only
    began the next episode (`valid` False), whose value is what a cut episode is continued with.

    Attributes:
        obs: float32 (T + 1, n, D), normalised as they were acted on; the last row is what came after the last step.
        drawn: what the policy drew, float32 (T, n, A) before any clipping or tanh, or int64 (T, n).
        reward: float32 (T, n), scaled.
        terminated, ended, valid: bool (T, n); `ended` is terminated or truncated.
        filled: steps so far.
    """

    def __init__(self, steps: int, spaces: Spaces):
        n, shape = spaces.n_envs, (steps, spaces.n_envs)
        self.obs = np.zeros((steps + 1, n, spaces.vector_width), np.float32)
        self.drawn = np.zeros(shape, np.int64) if spaces.discrete else np.zeros((*shape, spaces.action_dim), np.float32)
        self.reward = np.zeros(shape, np.float32)
        self.terminated, self.ended, self.valid = (np.zeros(shape, bool) for _ in range(3))
        self.filled = 0

    @property
    def full(self) -> bool:
        return self.filled == len(self.reward)

    def add(self, **row: np.ndarray) -> None:
        """One step of all environments: a row of every array."""
        for name in ARRAYS:
            getattr(self, name)[self.filled] = row[name]
        self.filled += 1

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ARRAYS} | {"filled": self.filled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ARRAYS:
            getattr(self, name)[:] = state[name]
        self.filled = int(state["filled"])


def gae(
    reward: np.ndarray, values: np.ndarray, terminated: np.ndarray, ended: np.ndarray, discount: float, decay: float
) -> np.ndarray:
    """Generalised advantage estimates (Schulman et al. 2016), float32 (T, n).

    Args:
        reward, terminated, ended: (T, n).
        values: (T + 1, n), of the observations before each step and of the one after the last; where an episode was
            cut, row t + 1 is the value of its true last observation, which takes the place of the rewards not seen.
        discount: gamma.
        decay: lambda.
    """
    delta = reward + discount * np.where(terminated, 0, values[1:]) - values[:-1]
    onward = np.where(ended, 0, discount * decay).astype(delta.dtype)
    running = np.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = delta[t] + onward[t] * running
        delta[t] = running
    return delta.astype(np.float32, copy=False)
