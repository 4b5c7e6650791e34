"""Meta-World (Yu et al. 2019, version 3): a Sawyer arm, 50 tasks, each with a scripted expert."""

import warnings
from typing import Any

import numpy as np

from mmssl.envs.make import SimEnvironment, require
from mmssl.envs.suites import Task
from mmssl.registry import register_environment


@register_environment("metaworld")
class MetaWorld(SimEnvironment):
    """State: Meta-World's 39 numbers with the goal shown. Proprioception (suite file): hand position and gripper."""

    has_success = True

    def __init__(self, task: Task):
        super().__init__(task)
        classes = require("metaworld.env_dict").ALL_V3_ENVIRONMENTS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its first observations lie outside its own declared space
            self._env = classes[task.id](**task.kwargs)
        env = self._env
        env._partially_observable = False  # the goal is part of the state, as the experts expect
        env.__dict__.pop("sawyer_observation_space", None)
        env._freeze_rand_vec, env.seeded_rand_vec = False, True  # else it draws from numpy's global generator
        env._set_task_called = True
        env.max_path_length = 10**9  # our own horizon ends the episode
        self.model, self.data = env.model, env.data
        self.control_dt = env.dt * task.action_repeat
        self.set_spaces(env.action_space, self.start(0))

    def start(self, seed: int) -> np.ndarray:
        import mujoco

        mujoco.mj_resetData(self.model, self.data)  # nothing of the last episode may leak into this one
        self._env.seed(seed)
        self._env._did_see_sim_exception = False
        self._env.reset()
        self._state = self._fresh_state()
        return self._state

    def _fresh_state(self) -> np.ndarray:
        """State (39,) just after a reset. Meta-World's own reset moves bodies and goals last, so that its first
        observation, and a picture taken then, lag behind them (window-open: by 0.15 m)."""
        import mujoco

        env = self._env
        mujoco.mj_kinematics(self.model, self.data)
        for name, position in env._target_site_config:
            env._set_pos_site(name, position)
        env._get_obs()  # it keeps what it returns as the previous frame, which is half of the next one
        return np.array(env._get_obs(), np.float64)

    def advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        self._state, reward, _, _, info = self._env.step(action)
        return self._state, reward, False, bool(info["success"])

    def expert(self) -> Any:
        policy = require("metaworld.policies").ENV_POLICY_MAP[self.task.id]()
        return lambda _: policy.get_action(self._state)  # float64, as the scripts were written for
