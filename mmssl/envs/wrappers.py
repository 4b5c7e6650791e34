"""`make_env`: a task with pictures as observations, for policies that see."""

from typing import Any

import gymnasium as gym
import numpy as np

from mmssl.envs.make import SimEnvironment, make_sim
from mmssl.envs.randomize import RandomizeConfig, VisualRandomizer
from mmssl.envs.rendering import Renderer, camera_names, opengl_context
from mmssl.errors import MmsslError


def open_renderer(env: SimEnvironment, cameras: tuple[str, ...], size: tuple[int, int], *options: bool) -> Renderer:
    """A renderer with the cameras asked for, or with the task's default one; `options` are depth and so on."""
    if env.model is None:
        raise MmsslError(
            f"{env.task.full_name} has no MuJoCo world to draw; take its state alone (mmssl record --no-pictures)."
        )
    cameras = tuple(cameras) or (env.task.camera or camera_names(env.model, env.task.cameras)[0],)
    return Renderer(env.model, env.data, cameras, size, env.task.cameras, *options)


def picture_space(env: SimEnvironment, renderer: Renderer) -> gym.spaces.Dict:
    """The space of observations with pictures: nested dicts of kind and camera beside proprio and state."""
    if not renderer.cameras:
        return env.observation_space
    farthest = float(np.finfo(np.float16).max)
    kinds = {"rgb": gym.spaces.Box(0, 255, (*renderer.size, 3), np.uint8)}
    if renderer.depth:
        kinds["depth"] = gym.spaces.Box(0, farthest, renderer.size, np.float16)
    if renderer.segmentation:
        kinds["segmentation"] = gym.spaces.Box(-1, env.model.ngeom - 1, renderer.size, np.int16)
    pictures = {kind: gym.spaces.Dict(dict.fromkeys(renderer.cameras, space)) for kind, space in kinds.items()}
    return gym.spaces.Dict({**env.observation_space.spaces, **pictures})


class CameraObservation(gym.Wrapper):
    """Adds `rgb`, and `depth` and `segmentation` where asked for, to the observations of a `SimEnvironment`.

    Each is a dict from camera to picture, as `Renderer.render` gives them. With `randomize`, every episode looks
    different, as its seed says.
    """

    def __init__(
        self,
        env: SimEnvironment,
        cameras: tuple[str, ...] = (),
        size: tuple[int, int] = (84, 84),
        depth: bool = False,
        segmentation: bool = False,
        randomize: RandomizeConfig | None = None,
        faithful: bool = False,
    ):
        super().__init__(env)
        self.renderer = open_renderer(env, cameras, size, depth, segmentation, faithful)
        self.randomizer = VisualRandomizer(self.renderer, randomize) if randomize and randomize.any else None
        self.observation_space = picture_space(env, self.renderer)

    def _see(self, observation: dict) -> dict[str, Any]:
        pictures = self.renderer.render()
        pictures.pop("pose")
        return {**observation, **pictures}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        if self.randomizer:
            self.randomizer.restore()
        observation, info = self.env.reset(seed=seed, options=options)
        if self.randomizer:
            look = int(self.env.np_random.integers(2**31)) if seed is None else seed
            self.randomizer.apply(np.random.SeedSequence(look))
        return self._see(observation), info

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        observation, *rest = self.env.step(action)
        return self._see(observation), *rest

    def close(self) -> None:
        self.renderer.close()
        super().close()


def make_env(
    task: str,
    cameras: tuple[str, ...] | None = (),
    size: tuple[int, int] = (84, 84),
    depth: bool = False,
    segmentation: bool = False,
    randomize: RandomizeConfig | None = None,
    faithful: bool = False,
) -> gym.Env:
    """The world of "suite/task". `cameras=()` is the task's default camera, None is no picture at all.

    Raises an `MmsslError` for an unknown suite, task or camera, with the list, and where nothing can render.
    """
    if cameras is None:
        return make_sim(task)
    opengl_context()  # first: without a backend the simulators fail at their import, in words of their own
    env = make_sim(task)
    return CameraObservation(env, tuple(cameras), tuple(size), depth, segmentation, randomize, faithful)
