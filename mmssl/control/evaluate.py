"""What a policy is worth: episodes in worlds of their own, without noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv


@dataclass(frozen=True)
class Episodes:
    """Whole episodes, in the order of the environments.

    Attributes:
        returns: sums of rewards.
        lengths: steps.
        successes: whether the task was ever done.
    """

    returns: list[float]
    lengths: list[int]
    successes: list[bool]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))


def evaluate(
    policy: Any, world: VectorEnv, episodes: int, seed: int | None = None, stopped: Callable[[], bool] = lambda: False
) -> Episodes | None:
    """Let a policy act in all environments of a world at once.

    Of each environment the first episode alone counts, however soon it ends: taking those that end first would favour
    short ones. Where more episodes are wanted than there are environments, all begin again.

    Args:
        policy: `act(obs) -> actions`. One that remembers what was also has `begin(rows)`, called with the
            environments, bool (n,), in which an episode begins.
        world: n environments.
        episodes: how many.
        seed: of the episodes; None goes on with the world's own.
        stopped: asked after each step; where it says yes, None is returned.
    """
    found = Episodes([], [], [])
    while len(found.returns) < episodes:
        obs, _ = world.reset(seed=seed if not found.returns else None)
        begin(policy, world)
        rows: list[Any] = [None] * world.num_envs
        running = np.ones(world.num_envs, bool)
        while running.any():
            if stopped():
                return None
            obs, _, terminated, truncated, infos = world.step(policy.act(obs))
            for i in np.flatnonzero((terminated | truncated) & running).tolist():
                rows[i] = (infos["episode"]["r"][i], infos["episode"]["l"][i], infos["episode"]["success"][i])
                running[i] = False
        for total, length, success in rows:
            found.returns.append(float(total))
            found.lengths.append(int(length))
            found.successes.append(bool(success))
    return Episodes(found.returns[:episodes], found.lengths[:episodes], found.successes[:episodes])


def begin(policy: Any, world: VectorEnv) -> None:
    """Tell a policy that remembers what was that all environments have begun an episode."""
    if hasattr(policy, "begin"):
        policy.begin(np.ones(world.num_envs, bool))
