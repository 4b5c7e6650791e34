"""`make_vec("suite/task", n)`: n environments that step together, in this process, in threads or in worker processes.

Observations are dicts of arrays: `state` and `proprio` float32 (n, D), `image/<camera>` uint8 (n, stack * 3, H, W),
oldest frame first. After an end the next step ignores the action and shows the first observation of the next episode
(`AutoresetMode.NEXT_STEP`); `world.starting` says of which environments that is true.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from math import isfinite
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from mmssl.envs.batch_mujoco import batch_mujoco
from mmssl.envs.make import has_success
from mmssl.envs.suites import find_task
from mmssl.envs.vector_bodies import REST, STEP, Here, Recipe
from mmssl.envs.vector_workers import Workers
from mmssl.envs.window import Window
from mmssl.errors import MmsslError, unknown_name

OBSERVE = ("state", "pixels", "both")


def episode_seed(seed: int, environment: int, episode: int) -> int:
    """The seed of an episode, in [0, 2**31): a hash of the run's seed, the environment and the episode's number."""
    return _hash(seed, environment, episode)


def checkpoint_seed(seed: int, environment: int, checkpoint: int) -> int:
    """The seed with which an environment begins anew at a checkpoint, in [0, 2**31)."""
    return _hash(seed, environment, checkpoint, 1)


def _hash(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


class VectorWorld(gym.vector.VectorEnv):
    """n environments that step together.

    Args:
        runner: where they are: `Here`, `Workers` or a batch of MuJoCo worlds.
        name: of the task, for messages.
        frame_stack: frames in a picture, the first one of an episode repeated.
        seed: of episodes and of random actions.
        scale: actions are given in [-1, 1] and mapped to the environment's own range, after being clipped; False: they
            are given in the environment's units, and nothing is clipped.
        limit: how often the simulation may break down.

    Attributes:
        starting: bool (n,), whose next step ignores the action and begins an episode.
        broken: how often an observation or a reward was not finite, or MuJoCo found the simulation unstable. Such an
            episode is cut (truncated), with reward 0 and the vectors of the step before.
    """

    metadata: ClassVar[dict] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
    has_success: bool = True
    """Whether the task can be done or not done; True where that is not known."""

    def __init__(
        self, runner: Any, name: str = "the environment", frame_stack: int = 1, seed: int = 0, scale: bool = True,
        limit: int = 10,
    ):  # fmt: skip
        self.runner, self.name, self.frame_stack, self.scale, self.limit = runner, name, frame_stack, scale, limit
        self.num_envs = len(runner.buffers.reward)
        self._set_spaces(runner.action_space)
        self.starting, self.broken = np.ones(self.num_envs, bool), 0
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        self._succeeded = np.zeros(self.num_envs, bool)
        self._last: dict[str, np.ndarray] = {}
        pictures = {name: value for name, value in runner.layout.items() if len(value[0]) == 3}
        self._stacks = {name: Window(self.num_envs, frame_stack, *value) for name, value in pictures.items()}
        self._seed(seed)

    def _set_spaces(self, own: gym.Space) -> None:
        self.discrete = isinstance(own, gym.spaces.Discrete)
        if not self.discrete and not (isinstance(own, gym.spaces.Box) and len(own.shape) == 1):
            raise MmsslError(f"{self.name} must take a vector or one of n numbers as its action, got {own}.")
        self.scale = self.scale and not self.discrete
        if self.scale:
            low, high = own.low.astype(np.float32), own.high.astype(np.float32)
            if not np.isfinite([low, high]).all():
                raise MmsslError(f"{self.name} has actions without bounds, {own}; take scale=False.")
            self._middle, self._half = (low + high) / 2, (high - low) / 2
            own = gym.spaces.Box(-1.0, 1.0, own.shape, np.float32)
        self.single_action_space = own
        self.action_space = batch_space(own, self.num_envs)
        self.single_observation_space = gym.spaces.Dict({k: _space(*v) for k, v in self.layout.items()})
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    @cached_property
    def layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name -> (shape, dtype) of one environment's observations, frames stacked."""
        stacked = {}
        for name, (shape, dtype) in self.runner.layout.items():
            stacked[name] = ((shape[0] * self.frame_stack, *shape[1:]), dtype) if len(shape) == 3 else (shape, dtype)
        return stacked

    def spaces(self) -> dict[str, Any]:
        """What an algorithm must know: `observations`, `action_dim`, `discrete` and `n_envs`."""
        space = self.single_action_space
        dim = int(space.n) if self.discrete else space.shape[0]
        return {"observations": self.layout, "action_dim": dim, "discrete": self.discrete, "n_envs": self.num_envs}

    def _seed(self, seed: int) -> None:
        if seed < 0:
            raise MmsslError(f"seed must be 0 or more, got {seed}.")
        self.seed, self.episodes = seed, np.zeros(self.num_envs, np.int64)
        self._rng = np.random.default_rng([seed, 2])
        self.single_action_space.seed(seed)
        self.action_space.seed(seed)

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Actions (n, A) in [-1, 1], clipped to it, in the environment's own units; exact where these are the same."""
        clipped = np.minimum(np.maximum(actions, np.float32(-1)), np.float32(1))  # np.clip takes twice as long
        return clipped * self._half + self._middle

    def from_env(self, actions: np.ndarray) -> np.ndarray:
        """Actions (..., A) in the environment's own units as `step` takes them: in [-1, 1], clipped to it."""
        if not self.scale:
            return actions
        half = np.where(self._half == 0, 1, self._half)  # a dimension with one value alone
        return np.clip((actions - self._middle) / half, -1, 1).astype(np.float32)

    def random_actions(self) -> np.ndarray:
        """Uniform actions, float32 (n, A) or int64 (n,), from the world's own seeded generator."""
        space = self.single_action_space
        if self.discrete:
            return self._rng.integers(space.start, space.start + space.n, self.num_envs)
        return self._rng.uniform(space.low, space.high, (self.num_envs, *space.shape)).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begin an episode everywhere; with a seed all over again, with the first episodes of that seed."""
        if seed is not None:
            self._seed(int(seed))
        return self.reset_all()

    def reset_all(self, seed_of: Callable[[int], int] | None = None) -> tuple[dict, dict]:
        """Begin an episode everywhere, now: (observations, infos); `seed_of(environment)` gives the seeds, for
        checkpoints: `lambda i: checkpoint_seed(run_seed, i, checkpoint)`."""
        return self.reset_where(np.ones(self.num_envs, bool), seed_of)

    def reset_where(self, rows: np.ndarray, seed_of: Callable[[int], int] | None = None) -> tuple[dict, dict]:
        """Begin an episode in some environments, bool (n,), now; the others are left as they are."""
        rows = np.asarray(rows, bool)
        seeds = self._seeds(rows, REST, seed_of)
        self.runner.step(np.zeros(self.action_space.shape, self.action_space.dtype), seeds)
        return self._finish(rows, self._mend(), rows)

    def _seeds(self, rows: np.ndarray, other: int, seed_of: Callable[[int], int] | None = None) -> np.ndarray:
        """int64 (n,): seeds of the episodes that begin in `rows`, `other` elsewhere."""
        seeds = np.full(self.num_envs, other, np.int64)
        for i in np.flatnonzero(rows).tolist():
            seeds[i] = episode_seed(self.seed, i, int(self.episodes[i])) if seed_of is None else seed_of(i)
            self.episodes[i] += 1
        return seeds

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One step of all: observations, rewards float64 (n,), terminated, truncated bool (n,), infos.

        infos: `success` bool (n,); where episodes ended, `_episode` bool (n,) says which, and `episode` has their
        return `r`, length `l` and whether they ever succeeded, `success`, (n,) each, 0 elsewhere.

        Raises:
            MmsslError: actions of another shape or not finite; the simulation broke down too often; a worker died.
        """
        if not self._last:
            raise MmsslError("reset the world before the first step.")
        begins = self.starting
        self.runner.step(self._check(actions), self._seeds(begins, STEP) if begins.any() else self._stepping)
        return self._result(begins, self._mend())

    @cached_property
    def _stepping(self) -> np.ndarray:
        return np.full(self.num_envs, STEP, np.int64)

    def _check(self, actions: Any) -> np.ndarray:
        actions = np.asarray(actions, self.action_space.dtype)
        if actions.shape != self.action_space.shape:
            raise MmsslError(f"{self.name} takes actions {self.action_space.shape}, got {actions.shape}.")
        if not _finite(actions):
            raise MmsslError(f"actions must be finite, got {actions[~np.isfinite(actions)][0]}.")
        return self.to_env(actions) if self.scale else actions

    def _mend(self) -> np.ndarray | None:
        """Cut the episodes of environments that broke down: bool (n,), or None where all is well."""
        buffers = self.runner.buffers
        vectors = [array for name, array in buffers.obs.items() if name not in self._stacks]
        if _finite(buffers.reward) and all(_finite(v) for v in vectors):
            return None
        broken = ~np.isfinite(buffers.reward)
        for vector in vectors:
            broken |= ~np.isfinite(vector).all(1)
        for name, array in buffers.obs.items():
            if name not in self._stacks:
                array[broken] = self._last[name][broken] if self._last else 0
        buffers.reward[broken], buffers.terminated[broken], buffers.truncated[broken] = 0.0, False, True
        self.broken += int(broken.sum())
        if self.broken > self.limit:
            raise MmsslError(
                f"the simulation of {self.name} broke down {self.broken} times (values that are not finite, or MuJoCo "
                f"found it unstable), more than the {self.limit} allowed; check the actions, or raise the limit."
            )
        return broken

    def _result(self, begins: np.ndarray, broken: np.ndarray | None) -> tuple:
        buffers = self.runner.buffers
        rewards, terminated, truncated = buffers.reward.copy(), buffers.terminated.copy(), buffers.truncated.copy()
        self._returns += rewards
        self._lengths += ~begins
        self._succeeded |= buffers.success
        obs, infos = self._finish(begins, broken, None)
        ended = terminated | truncated
        if ended.any():
            parts = {"r": self._returns, "l": self._lengths, "success": self._succeeded}
            infos["episode"] = {name: np.where(ended, values, 0) for name, values in parts.items()}
            infos["episode"]["success"] = infos["episode"]["success"].astype(bool)
            infos["_episode"] = ended
        return obs, rewards, terminated, truncated, infos

    def _finish(self, begins: np.ndarray, broken: np.ndarray | None, moved: np.ndarray | None) -> tuple[dict, dict]:
        """Observations and infos, after the counters of episodes that began are set to 0; `moved` None means all."""
        buffers, some = self.runner.buffers, begins.any()
        if some:
            self._returns[begins], self._lengths[begins], self._succeeded[begins] = 0.0, 0, False
        self.starting = buffers.terminated | buffers.truncated
        infos = {"success": buffers.success.copy()}
        if broken is not None:
            infos["broken"] = broken
        self._last = {}
        for name, array in buffers.obs.items():
            if name in self._stacks:
                array = self._stacks[name].push(array, begins if some else None, moved)
            self._last[name] = array.copy()
        return dict(self._last), infos

    def state_dict(self) -> dict[str, Any]:
        """What going on after `reset_all` needs: counters and generators, not the simulators' state."""
        counters = {"seed": self.seed, "episodes": self.episodes.copy(), "broken": self.broken}
        return counters | {"rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave, of a world with as many environments."""
        if len(state["episodes"]) != self.num_envs:
            raise MmsslError(f"the saved world has {len(state['episodes'])} environments, this one {self.num_envs}.")
        self._seed(state["seed"])
        self.episodes, self.broken = np.array(state["episodes"], np.int64), int(state["broken"])
        self._rng.bit_generator.state = state["rng"]

    @property
    def flat(self) -> "FlatState":
        """The same world with `state` alone as its observation, a Box."""
        return FlatState(self)

    def close_extras(self, **kwargs: Any) -> None:
        self.runner.close()


class WorldWrapper(gym.vector.VectorWrapper):
    """Something around a world that leaves what it does not change as it is: `starting`, `random_actions` and so on."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)


class FlatState(WorldWrapper):
    """A world whose observation is its `state`, float32 (n, D), alone."""

    def __init__(self, env: gym.vector.VectorEnv):
        super().__init__(env)
        if "state" not in env.single_observation_space.spaces:
            raise MmsslError("this world does not show its state; make it with observe='state'.")
        self.single_observation_space = env.single_observation_space["state"]
        self.observation_space = env.observation_space["state"]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        obs, infos = self.env.reset(seed=seed, options=options)
        return obs["state"], infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        obs, *rest = self.env.step(actions)
        return obs["state"], *rest


def _finite(array: np.ndarray) -> bool:
    """Whether all values are finite; the sum is looked at first, which is quick."""
    return bool(isfinite(array.sum()) or np.isfinite(array).all())


def _space(shape: tuple[int, ...], dtype: np.dtype) -> gym.spaces.Box:
    low, high = (0, 255) if dtype == np.uint8 else (-np.inf, np.inf)
    return gym.spaces.Box(low, high, shape, dtype.type)


def make_vec(
    task: str,
    n: int,
    *,
    observe: Literal["state", "pixels", "both"] = "state",
    proprio: bool = False,
    cameras: Sequence[str] = (),
    size: tuple[int, int] = (84, 84),
    frame_stack: int = 1,
    action_repeat: int | None = None,
    seed: int = 0,
    workers: int = 0,
    faithful: bool = False,
    scale: bool = True,
    limit: int = 10,
    fast: bool = True,
) -> VectorWorld:
    """n environments of a task.

    Args:
        task: "suite/task".
        observe: `state`, the pictures of `cameras`, or both.
        proprio: show `proprio` too, what the robot's own sensors would say.
        cameras: () is the task's own one.
        size: (height, width) of pictures in pixels.
        frame_stack: frames in a picture.
        action_repeat: control steps of one step; None is what the suite says.
        seed: of the episodes and of random actions.
        workers: processes that share the work, 0 for none; a Gymnasium task on the fast path takes threads instead.
            Nothing but the time depends on it. Processes are spawned, so a script needs `if __name__ == "__main__":`.
        faithful: shadows, reflections and multisampling, as the model file asks.
        scale, limit: see `VectorWorld`.
        fast: step several MuJoCo worlds of Gymnasium at once where that is known to give the same numbers.

    Raises:
        MmsslError: an unknown task or camera, with the nearest name; a number that cannot be; nothing can render.
    """
    recipe = describe(task, observe, proprio, cameras, size, action_repeat, faithful)
    _check_numbers(n=(n, 1), workers=(workers, 0), frame_stack=(frame_stack, 1), limit=(limit, 0))
    runner = batch_mujoco(recipe, n, workers) if fast else None
    if runner is None:
        runner = Workers(recipe, n, min(workers, n)) if workers else Here(recipe, n)
    world = VectorWorld(runner, recipe.name, frame_stack, seed, scale, limit)
    world.has_success = has_success(recipe.task)
    return world


def wrap_vec(
    make: Callable[[], gym.Env],
    n: int,
    *,
    frame_stack: int = 1,
    seed: int = 0,
    workers: int = 0,
    scale: bool = True,
    limit: int = 10,
) -> VectorWorld:
    """n environments of your own, with the same contract; see `mmssl.envs.vector_bodies.OwnBody` for what they may
    show. With `workers` `make` must be importable, a function of a module."""
    _check_numbers(n=(n, 1), workers=(workers, 0), frame_stack=(frame_stack, 1), limit=(limit, 0))
    recipe = Recipe(make=make)
    runner = Workers(recipe, n, min(workers, n)) if workers else Here(recipe, n)
    return VectorWorld(runner, recipe.name, frame_stack, seed, scale, limit)


def describe(
    task: str,
    observe: str,
    proprio: bool,
    cameras: Sequence[str],
    size: tuple[int, int],
    action_repeat: int | None,
    faithful: bool,
) -> Recipe:
    """The recipe of a task, checked."""
    if observe not in OBSERVE:
        raise unknown_name("value of observe", observe, OBSERVE)
    if isinstance(cameras, str):
        raise MmsslError(f"cameras must be a list of names, got {cameras!r}; write ({cameras!r},).")
    if cameras and observe == "state":
        raise MmsslError(f"cameras {list(cameras)} need observe='pixels' or 'both', got 'state'.")
    if len(size) != 2 or min(size) < 1:
        raise MmsslError(f"size must be (height, width) of at least 1 pixel, got {size}.")
    found = find_task(task)
    if action_repeat is not None:
        _check_numbers(action_repeat=(action_repeat, 1))
        found = replace(found, action_repeat=action_repeat)
    return Recipe(found, None, observe, proprio, tuple(cameras), tuple(size), faithful)


def _check_numbers(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise MmsslError(f"{name} must be at least {least}, got {value}.")
