"""Gymnasium's own MuJoCo tasks, version 5, and the gymnasium-robotics ones (Fetch, Adroit, FrankaKitchen)."""

from typing import Any

import numpy as np

from mmssl.envs.make import SimEnvironment, require
from mmssl.envs.suites import Task
from mmssl.registry import register_environment


@register_environment("gymnasium")
class GymnasiumMujoco(SimEnvironment):
    """State: the observation, and for goal tasks the desired goal behind it. Proprioception: the actuated joints."""

    packages = ("gymnasium",)

    def __init__(self, task: Task):
        super().__init__(task)
        gym = require("gymnasium")
        for package in self.packages[1:]:
            gym.register_envs(require(package))
        self._env = gym.make(task.id, disable_env_checker=True, max_episode_steps=10**9, **task.kwargs)
        inner = self._env.unwrapped
        inner = getattr(inner, "robot_env", inner)  # FrankaKitchen holds its MuJoCo world in there
        self.model, self.data = inner.model, inner.data
        self.control_dt = inner.dt * task.action_repeat
        self.set_spaces(self._env.action_space, self.start(0))

    def start(self, seed: int) -> np.ndarray:
        observation, _ = self._env.reset(seed=seed)
        return flat_state(observation)

    def advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        observation, reward, terminated, _, info = self._env.step(action)
        success = info.get("success", info.get("is_success", False))
        return flat_state(observation), float(reward), terminated, bool(success)


def flat_state(observation: Any) -> np.ndarray:
    """float32 (D,) of an array observation, or of a goal task's `observation` and, where it is one array, its goal."""
    if not isinstance(observation, dict):
        return np.asarray(observation, np.float32)
    goal = observation.get("desired_goal")
    parts = [observation["observation"]] + ([goal] if isinstance(goal, np.ndarray) else [])
    return np.concatenate([np.ravel(p) for p in parts]).astype(np.float32)
