"""Gymnasium's classic control tasks with continuous actions, whose physics is a few lines of Python."""

from typing import Any

import numpy as np

from mmssl.envs.make import SimEnvironment, require
from mmssl.envs.suites import Task
from mmssl.registry import register_environment


@register_environment("classic")
class ClassicControl(SimEnvironment):
    """State: the observation, which the robot's own sensors say too. There is no MuJoCo world, so no pictures."""

    model = data = None

    def __init__(self, task: Task):
        super().__init__(task)
        gym = require("gymnasium")
        self._env: Any = gym.make(task.id, disable_env_checker=True, max_episode_steps=10**9, **task.kwargs)
        self.control_dt = self._env.unwrapped.dt * task.action_repeat
        self.set_spaces(self._env.action_space, self.start(0))

    def start(self, seed: int) -> np.ndarray:
        return self._env.reset(seed=seed)[0]

    def advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        state, reward, terminated, _, _ = self._env.step(action)
        return state, float(reward), terminated, False

    def proprio(self, state: np.ndarray) -> np.ndarray:
        return state.copy()
