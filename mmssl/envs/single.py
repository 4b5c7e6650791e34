"""`make_single("suite/task")`: one environment with the contract of a vector world, for users of plain Gymnasium."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from mmssl.envs.vector import VectorWorld, make_vec
from mmssl.errors import MmsslError


class SingleWorld(gym.Env):
    """A vector world of one environment, without its leading dimension. An episode is a function of its seed alone."""

    metadata: ClassVar[dict] = {"render_modes": []}

    def __init__(self, world: VectorWorld):
        if world.num_envs != 1:
            raise MmsslError(f"a single environment needs a world of one, got one of {world.num_envs}.")
        self.world = world
        self.observation_space, self.action_space = world.single_observation_space, world.single_action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        obs, _ = self.world.reset_all(lambda _: chosen)
        return _first(obs), {"success": False}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """As `VectorWorld.step`; infos: `success`, and at an end `episode` with `r`, `l` and `success`."""
        if self.world.starting[0]:
            raise MmsslError("the episode is over; reset the environment before the next step.")
        obs, reward, terminated, truncated, infos = self.world.step(np.asarray(action)[None])
        info: dict[str, Any] = {"success": bool(infos["success"][0])}
        if "episode" in infos:
            info["episode"] = {name: values[0].item() for name, values in infos["episode"].items()}
        return _first(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def close(self) -> None:
        self.world.close()


def _first(obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[0] for name, value in obs.items()}


def make_single(task: str, **settings: Any) -> SingleWorld:
    """One environment of a task; the settings are those of `make_vec`, without `n`, `seed` and `workers`."""
    return SingleWorld(make_vec(task, 1, **settings))
