"""The DeepMind control suite (Tassa et al. 2018), by dm_control."""

import numpy as np

from mmssl.envs.make import SimEnvironment, require
from mmssl.envs.suites import Task
from mmssl.registry import register_environment


@register_environment("dmc")
class DeepMindControl(SimEnvironment):
    """State: the task's own observations in their order, flattened. Proprioception: the actuated joints."""

    def __init__(self, task: Task):
        super().__init__(task)
        suite = require("dm_control.suite")
        self._domain, _, self._name = task.id.partition("-")
        self._load = lambda seed: suite.load(self._domain, self._name, task_kwargs={"random": seed, **task.kwargs})
        self._env = self._load(0)
        self.model, self.data = self._env.physics.model._model, self._env.physics.data._data
        self.control_dt = self._env.control_timestep() * task.action_repeat
        spec = self._env.action_spec()
        shape = np.ones(spec.shape, np.float32)
        import gymnasium as gym

        space = gym.spaces.Box(shape * spec.minimum, shape * spec.maximum, dtype=np.float32)
        self.set_spaces(space, self.start(0))

    def start(self, seed: int) -> np.ndarray:
        self._env.task._random = np.random.RandomState(seed)
        self._env._step_limit = float("inf")  # our own horizon ends the episode
        return self._flat(self._env.reset())

    def advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        step = self._env.step(action.astype(np.float64))
        terminated = bool(step.last())  # inside the step limit only a true end, of discount 0, is last
        return self._flat(step), step.reward or 0.0, terminated, False

    @staticmethod
    def _flat(step: object) -> np.ndarray:
        return np.concatenate([np.ravel(v) for v in step.observation.values()]).astype(np.float32)
