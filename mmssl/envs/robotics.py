"""gymnasium-robotics: Fetch, Adroit hand and FrankaKitchen, recorded like Gymnasium's own tasks."""

import numpy as np

from mmssl.envs.gymnasium_mujoco import GymnasiumMujoco
from mmssl.registry import register_environment


@register_environment("robotics")
class GymnasiumRobotics(GymnasiumMujoco):
    """Success is the environment's own; for FrankaKitchen it means that every sub-task of the episode is done."""

    packages = ("gymnasium", "gymnasium_robotics")
    has_success = True

    def advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        state, reward, terminated, success = super().advance(action)
        kitchen_done = terminated and hasattr(self._env.unwrapped, "tasks_to_complete")
        return state, reward, terminated, success or kitchen_done
