"""Observations, rewards and ends of Gymnasium's MuJoCo tasks, version 5, for n worlds at once.

Each rule does what the `step` of its class does, in the same order and the same precision, so that the numbers are the
same bits; its settings are those of an environment that Gymnasium itself made.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

State = dict[str, np.ndarray]  # name -> float64 (n, ...)


class Rule:
    """What a task says about n worlds.

    Attributes:
        reads: name -> what is read of each world's `MjData` after a step.
        forces: contact forces are read, which MuJoCo computes on request.
    """

    forces: ClassVar[bool] = False
    hidden: ClassVar[int] = 1
    """How many places, x and y, are left out of observations."""

    def __init__(self, env: Any):
        self.env, self.dt = env, env.dt
        self.reads: dict[str, Callable[[Any], np.ndarray]] = {"qpos": lambda d: d.qpos, "qvel": lambda d: d.qvel}
        self.skip = self.hidden if getattr(env, "_exclude_current_positions_from_observation", False) else 0

    def place(self, now: State) -> np.ndarray:
        """Where the worlds' robots are along x, (n,)."""
        return now["qpos"][:, 0]

    def observe(self, now: State) -> np.ndarray:
        """Observations (n, D)."""
        return np.concatenate([now["qpos"][:, self.skip :], now["qvel"]], axis=1)

    def judge(self, now: State, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rewards float64 (n,) and true ends bool (n,); `before` is `place` before the step."""
        return self.forward(now, before) - self.control_cost(actions), np.zeros(len(actions), bool)

    def forward(self, now: State, before: np.ndarray) -> np.ndarray:
        """Reward for the speed along x, (n,)."""
        return self.env._forward_reward_weight * ((self.place(now) - before) / self.dt)

    def control_cost(self, actions: np.ndarray) -> np.ndarray:
        """float32 (n,), as Gymnasium's for float32 actions."""
        return self.env._ctrl_cost_weight * np.square(actions).sum(1)


class Swimmer(Rule):
    """Swimmer-v5."""

    hidden = 2


class Walker2d(Rule):
    """Walker2d-v5, and what Hopper-v5 shares with it."""

    def observe(self, now: State) -> np.ndarray:
        return np.concatenate([now["qpos"][:, self.skip :], np.clip(now["qvel"], -10, 10)], axis=1)

    def healthy(self, now: State) -> np.ndarray:
        """Which robots are upright, bool (n,)."""
        z, angle = now["qpos"][:, 1], now["qpos"][:, 2]
        (low, high), (left, right) = self.env._healthy_z_range, self.env._healthy_angle_range
        return (low < z) & (z < high) & (left < angle) & (angle < right)

    def judge(self, now: State, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        healthy = self.healthy(now)
        gain = self.forward(now, before) + healthy * self.env._healthy_reward
        return gain - self.costs(now, actions), ~healthy & self.env._terminate_when_unhealthy

    def costs(self, now: State, actions: np.ndarray) -> np.ndarray:
        """What is taken off the reward, (n,)."""
        return self.control_cost(actions)


class Hopper(Walker2d):
    """Hopper-v5."""

    def healthy(self, now: State) -> np.ndarray:
        low, high = self.env._healthy_state_range
        state = np.concatenate([now["qpos"], now["qvel"]], axis=1)[:, 2:]
        return ((low < state) & (state < high)).all(1) & super().healthy(now)


class Ant(Walker2d):
    """Ant-v5."""

    forces = True
    hidden = 2

    def __init__(self, env: Any):
        super().__init__(env)
        self.reads |= {"xpos": lambda d: d.body(env._main_body).xpos, "cfrc_ext": lambda d: d.cfrc_ext}

    def place(self, now: State) -> np.ndarray:
        return now["xpos"][:, 0]

    def observe(self, now: State) -> np.ndarray:
        parts = [now["qpos"][:, self.skip :], now["qvel"]]
        if self.env._include_cfrc_ext_in_observation:
            parts.append(self._contacts(now)[:, 6:])  # without the world's own
        return np.concatenate(parts, axis=1)

    def _contacts(self, now: State) -> np.ndarray:
        """Forces on all bodies, (n, bodies * 6)."""
        return np.clip(now["cfrc_ext"], *self.env._contact_force_range)

    def healthy(self, now: State) -> np.ndarray:
        low, high = self.env._healthy_z_range
        z, finite = now["qpos"][:, 2], np.isfinite(now["qpos"]).all(1) & np.isfinite(now["qvel"]).all(1)
        return finite & (low <= z) & (z <= high)

    def costs(self, now: State, actions: np.ndarray) -> np.ndarray:
        return self.control_cost(actions) + self.env._contact_cost_weight * np.square(self._contacts(now)).sum(1)


class InvertedPendulum(Rule):
    """InvertedPendulum-v5."""

    def judge(self, now: State, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        finite = np.isfinite(now["qpos"]).all(1) & np.isfinite(now["qvel"]).all(1)
        terminated = ~finite | (np.abs(now["qpos"][:, 1]) > 0.2)
        return (~terminated).astype(np.float64), terminated


_CLASSES = {
    "half_cheetah_v5:HalfCheetahEnv": Rule,
    "swimmer_v5:SwimmerEnv": Swimmer,
    "walker2d_v5:Walker2dEnv": Walker2d,
    "hopper_v5:HopperEnv": Hopper,
    "ant_v5:AntEnv": Ant,
    "inverted_pendulum_v5:InvertedPendulumEnv": InvertedPendulum,
}
RULES: dict[str, type[Rule]] = {f"gymnasium.envs.mujoco.{name}": rule for name, rule in _CLASSES.items()}
"""A class of Gymnasium, as its registry names it -> its rule."""
