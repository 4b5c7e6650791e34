"""How a world comes back to where it was: it begins anew with known seeds, and the same actions are taken again."""

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from mmssl.envs.vector import checkpoint_seed


class Tape:
    """The actions of all environments since they last began anew, (steps, n, ...) in memory that grows as it must."""

    def __init__(self) -> None:
        self.length, self._kept = 0, np.empty((0,))

    def add(self, action: np.ndarray) -> None:
        if self.length == len(self._kept):
            grown = np.empty((max(1024, 2 * self.length), *action.shape), action.dtype)
            if self.length:
                grown[: self.length] = self._kept
            self._kept = grown
        self._kept[self.length] = action
        self.length += 1

    @property
    def actions(self) -> np.ndarray:
        """(steps, n, ...)."""
        return self._kept[: self.length]

    def clear(self) -> None:
        self.length = 0

    def state_dict(self) -> dict[str, Any]:
        return {"actions": self.actions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept = np.array(state["actions"])
        self.length = len(self._kept)


class Rewinder:
    """Begins the environments of a world anew at checkpoints, and brings another world of the kind to the same state.

    Args:
        world: a `VectorWorld`, or one behind an encoder.
        seed: of the run.

    Attributes:
        number: of checkpoints so far.
        tape: what was done since the last one.
    """

    def __init__(self, world: VectorEnv, seed: int):
        self.world, self.seed, self.number, self.tape = world, seed, 0, Tape()
        self._counters = world.state_dict()

    def begin(self) -> dict[str, np.ndarray]:
        """Begin everywhere: the first observations."""
        return self.world.reset_all(lambda i: checkpoint_seed(self.seed, i, self.number))[0]

    def checkpoint(self) -> dict[str, np.ndarray]:
        """Begin anew everywhere, with the seeds of the next checkpoint."""
        self.number, self._counters = self.number + 1, self.world.state_dict()
        self.tape.clear()
        return self.begin()

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "world": self._counters, "tape": self.tape.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> dict[str, np.ndarray]:
        """Bring the world to where it was when `state_dict` was asked: what is seen there."""
        self.number, self._counters = state["number"], state["world"]
        self.tape.load_state_dict(state["tape"])
        self.world.load_state_dict(self._counters)
        obs = self.begin()
        if hasattr(self.world, "take_again"):  # behind an encoder, which need not see all of it
            self.world.take_again(self.tape.actions[:-1])
        else:
            for action in self.tape.actions[:-1]:
                self.world.step(action)
        for action in self.tape.actions[-1:]:
            obs = self.world.step(action)[0]
        return obs
