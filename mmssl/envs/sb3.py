"""A vector world as Stable-Baselines3 wants it, so that its algorithms train on our worlds and on frozen features."""

from functools import cache
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from mmssl.envs.make import unbounded
from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


def sb3_vec(world: gym.vector.VectorEnv) -> "VecEnv":
    """A `VectorWorld`, or an `EncodeObservation` over one, as a `VecEnv` of Stable-Baselines3.

    Where only vectors are seen they are joined into one Box, for `MlpPolicy`; with pictures it is a Dict, for
    `MultiInputPolicy`. An ended environment begins anew in the same step: infos have `terminal_observation`,
    `TimeLimit.truncated`, `is_success` and, at an end, `episode` with `r`, `l` and `t`.

    Raises:
        MmsslError: Stable-Baselines3 is not installed.
    """
    return _adapter()(world)


@cache
def _adapter() -> type:
    """The class, made when first needed, so that nothing else needs Stable-Baselines3."""
    try:
        from stable_baselines3.common.vec_env import VecEnv
    except ImportError:
        raise MmsslError("this adapter needs stable-baselines3; pip install stable-baselines3 brings it.") from None
    return type("Sb3World", (_Methods, VecEnv), {"__doc__": sb3_vec.__doc__})


class _Methods:
    """What `VecEnv` asks for."""

    def __init__(self, world: gym.vector.VectorEnv):
        self.world, spaces = world, world.single_observation_space.spaces
        self.joined = all(len(space.shape) == 1 for space in spaces.values())
        space = unbounded((sum(s.shape[0] for s in spaces.values()),)) if self.joined else gym.spaces.Dict(spaces)
        super().__init__(world.num_envs, space, world.single_action_space)
        self._actions: np.ndarray | None = None
        self._steps = 0

    def _shown(self, obs: dict[str, np.ndarray]) -> Any:
        return np.concatenate(list(obs.values()), axis=1) if self.joined else obs

    def reset(self) -> Any:
        seed = self._seeds[0]
        self._reset_seeds()
        obs, infos = self.world.reset(seed=seed)
        self.reset_infos = [{"is_success": bool(s)} for s in infos["success"]]
        return self._shown(obs)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict]]:
        obs, rewards, terminated, truncated, infos = self.world.step(self._actions)
        self._steps += 1
        shown, ended = self._shown(obs), terminated | truncated
        notes: list[dict] = [{"is_success": bool(s), "TimeLimit.truncated": False} for s in infos["success"]]
        for i in np.flatnonzero(ended).tolist():
            episode = {name: values[i].item() for name, values in infos["episode"].items()}
            notes[i] = {
                "terminal_observation": shown[i] if self.joined else {k: v[i] for k, v in shown.items()},
                "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                "is_success": episode.pop("success"),
                "episode": {**episode, "t": self._steps},
            }
        if ended.any():
            shown = self._shown(self.world.reset_where(ended)[0])
        return shown, rewards.astype(np.float32), ended, notes

    def close(self) -> None:
        self.world.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list:
        return [getattr(self.world, attr_name)] * len(self._get_indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.world, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list:
        raise MmsslError(f"the environments of a world have no methods of their own, got {method_name!r}.")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * len(self._get_indices(indices))
