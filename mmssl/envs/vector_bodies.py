"""What a vector world is made of: single environments that show one dict of arrays, side by side in one process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np

from mmssl.envs.make import make_sim
from mmssl.envs.rendering import opengl_context
from mmssl.envs.suites import Task
from mmssl.envs.wrappers import open_renderer
from mmssl.errors import MmsslError

STEP, REST = -1, -2  # in place of a seed: take the action; do nothing
DIVERGED = slice(4, 7)  # mjWARN_BADQPOS, mjWARN_BADQVEL, mjWARN_BADQACC
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class Recipe:
    """All that one environment is made from; it travels to worker processes.

    Attributes:
        task: a task of a suite; or None, where `make` gives any `gymnasium.Env`.
        observe: `state`, `pixels` or `both`.
        proprio: show `proprio` too.
        cameras, size, faithful: as in `mmssl.envs.wrappers.make_env`.
    """

    task: Task | None = None
    make: Callable[[], gym.Env] | None = None
    observe: Literal["state", "pixels", "both"] = "state"
    proprio: bool = False
    cameras: tuple[str, ...] = ()
    size: tuple[int, int] = (84, 84)
    faithful: bool = False

    @property
    def name(self) -> str:
        return "the environment" if self.task is None else self.task.full_name


class Outcome(NamedTuple):
    """What one step of one environment gave."""

    obs: dict[str, np.ndarray]
    reward: float
    terminated: bool
    truncated: bool
    success: bool


class Body:
    """One environment. `layout` says what it shows, name -> (shape, dtype); frames are single ones (3, H, W)."""

    layout: Layout
    action_space: gym.Space

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Begin the episode of a seed."""
        raise NotImplementedError

    def step(self, action: np.ndarray) -> Outcome:
        """Take an action in the environment's own units; the reward is NaN where the simulation broke down."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what it holds."""


class SimBody(Body):
    """A task of a suite, from its state, from pictures or both."""

    def __init__(self, recipe: Recipe):
        if recipe.observe != "state":
            opengl_context()  # first: without a backend the simulators fail at their import, in words of their own
        self.env, self.renderer = make_sim(recipe.task), None
        self.vectors = [
            name for name, shown in (("state", recipe.observe != "pixels"), ("proprio", recipe.proprio)) if shown
        ]
        if recipe.observe != "state":
            self.renderer = open_renderer(self.env, recipe.cameras, recipe.size, False, False, recipe.faithful)
        data = self.env.data  # None where there is no MuJoCo
        self._warnings = np.zeros(3) if data is None else data.warning.number[DIVERGED]  # a view: it had to start anew
        self.action_space = self.env.action_space
        spaces = self.env.observation_space
        self.layout = {name: (spaces[name].shape, np.dtype(np.float32)) for name in self.vectors}
        for camera in self.renderer.cameras if self.renderer else ():
            self.layout[f"image/{camera}"] = ((3, *recipe.size), np.dtype(np.uint8))

    def _see(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen = {name: observation[name] for name in self.vectors}
        if self.renderer:
            for camera, picture in self.renderer.render()["rgb"].items():
                seen[f"image/{camera}"] = picture.transpose(2, 0, 1)  # (3, H, W)
        return seen

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        return self._see(self.env.reset(seed=seed)[0])

    def step(self, action: np.ndarray) -> Outcome:
        before = self._warnings.tolist()
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            if type(error).__name__ not in ("PhysicsError", "FatalError"):  # dm_control's and MuJoCo's
                raise
            nothing = {name: np.full(shape, 0, dtype) for name, (shape, dtype) in self.layout.items()}
            return Outcome(nothing, np.nan, False, True, False)
        if self._warnings.tolist() != before:
            reward = np.nan
        return Outcome(self._see(observation), reward, terminated, truncated, info["success"])

    def close(self) -> None:
        if self.renderer:
            self.renderer.close()
        self.env.close()


class OwnBody(Body):
    """Any `gymnasium.Env`: a Box of one dimension is shown as `state`, a Dict of Boxes as it is.

    Pictures in the Dict are uint8 (3, H, W) and called `image/<camera>`.
    """

    def __init__(self, recipe: Recipe):
        self.env = recipe.make()
        self.action_space, space = self.env.action_space, self.env.observation_space
        self.alone = isinstance(space, gym.spaces.Box)
        spaces = {"state": space} if self.alone else getattr(space, "spaces", {})
        if not spaces or not all(isinstance(s, gym.spaces.Box) for s in spaces.values()):
            raise MmsslError(f"observations must be a Box or a Dict of Boxes, got {space}.")
        self.layout = {name: (s.shape, self._dtype(name, s)) for name, s in spaces.items()}

    @staticmethod
    def _dtype(name: str, space: gym.spaces.Box) -> np.dtype:
        picture = space.dtype == np.uint8
        if picture != name.startswith("image") or len(space.shape) != (3 if picture else 1):
            raise MmsslError(
                f"the observation {name!r} of shape {space.shape}, {space.dtype} is neither a vector nor a picture; "
                "vectors have one dimension, pictures are uint8 (3, H, W) and named image/<camera>."
            )
        return np.dtype(np.uint8 if picture else np.float32)

    def _see(self, observation: Any) -> dict[str, np.ndarray]:
        return {"state": observation} if self.alone else observation

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        return self._see(self.env.reset(seed=seed)[0])

    def step(self, action: np.ndarray) -> Outcome:
        observation, reward, terminated, truncated, info = self.env.step(action)
        success = bool(info.get("success", info.get("is_success", False)))
        return Outcome(self._see(observation), float(reward), bool(terminated), bool(truncated), success)

    def close(self) -> None:
        self.env.close()


def make_body(recipe: Recipe) -> Body:
    """One environment of a recipe."""
    return SimBody(recipe) if recipe.task is not None else OwnBody(recipe)


class Buffers:
    """What n environments say, written in place.

    Attributes:
        obs: name -> (n, ...), single frames.
        reward: float64 (n,); terminated, truncated, success: bool (n,).
    """

    def __init__(self, obs: dict[str, np.ndarray], reward: Any, terminated: Any, truncated: Any, success: Any):
        self.obs, self.reward, self.success = obs, reward, success
        self.terminated, self.truncated = terminated, truncated

    @classmethod
    def new(cls, layout: Layout, n: int) -> "Buffers":
        flags = (np.zeros(n, bool) for _ in range(3))
        return cls({k: np.zeros((n, *shape), dtype) for k, (shape, dtype) in layout.items()}, np.zeros(n), *flags)

    def rows(self, rows: slice) -> "Buffers":
        """The same memory, some of the environments."""
        obs = {name: array[rows] for name, array in self.obs.items()}
        return Buffers(obs, *(x[rows] for x in (self.reward, self.terminated, self.truncated, self.success)))

    def begin(self, i: int, obs: dict[str, np.ndarray]) -> None:
        """Note that environment i began an episode."""
        self.look(i, obs)
        self.reward[i], self.terminated[i], self.truncated[i], self.success[i] = 0.0, False, False, False

    def note(self, i: int, outcome: Outcome) -> None:
        """Note what a step of environment i gave."""
        self.look(i, outcome.obs)
        self.reward[i], self.success[i] = outcome.reward, outcome.success
        self.terminated[i], self.truncated[i] = outcome.terminated, outcome.truncated

    def look(self, i: int, obs: dict[str, np.ndarray]) -> None:
        """Note what environment i shows."""
        for name, array in self.obs.items():
            array[i] = obs[name]


class Here:
    """n environments in this process, one after the other."""

    def __init__(self, recipe: Recipe, n: int):
        self.bodies = [make_body(recipe)]
        self.bodies += [make_body(recipe) for _ in range(n - 1)]
        self.layout, self.action_space = self.bodies[0].layout, self.bodies[0].action_space
        self.buffers = Buffers.new(self.layout, n)

    def step(self, actions: np.ndarray, seeds: np.ndarray) -> None:
        """Fill `buffers`: where a seed is STEP the action is taken, where it is REST nothing happens, elsewhere the
        episode of that seed begins."""
        for i, seed in enumerate(seeds.tolist()):
            if seed == STEP:
                self.buffers.note(i, self.bodies[i].step(actions[i]))
            elif seed != REST:
                self.buffers.begin(i, self.bodies[i].reset(seed))

    def close(self) -> None:
        for body in self.bodies:
            body.close()
