"""Several worlds of one Gymnasium MuJoCo task, version 5, stepped together from their state.

MuJoCo's own steps are left as they are; what surrounds them, observations, rewards and ends, is computed for all worlds
at once. The numbers are those of Gymnasium's own `step`, bit by bit, which the tests compare. One MuJoCo model serves
all worlds, and threads can share the work, for MuJoCo steps without Python's lock.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np

from mmssl.envs.batch_rules import RULES
from mmssl.envs.vector_bodies import DIVERGED, REST, STEP, Buffers, Recipe


def batch_mujoco(recipe: Recipe, n: int, threads: int = 0) -> "BatchMujoco | None":
    """The fast path for a recipe, or None where there is none: other tasks, pictures, proprioception, an action repeat.

    Args:
        recipe: what one environment is.
        n: worlds.
        threads: that step them; 0 and 1 are this one alone.
    """
    task = recipe.task
    plain = recipe.observe == "state" and not recipe.proprio
    if not plain or task.family != "gymnasium" or task.action_repeat != 1 or task.id not in gym.registry:
        return None
    return BatchMujoco(recipe, n, threads) if gym.spec(task.id).entry_point in RULES else None


class BatchMujoco:
    """n worlds of a Gymnasium MuJoCo task; the same face as `mmssl.envs.vector_bodies.Here`."""

    def __init__(self, recipe: Recipe, n: int, threads: int = 0):
        import mujoco

        self.task, self._mujoco = recipe.task, mujoco
        made = gym.make(self.task.id, disable_env_checker=True, max_episode_steps=10**9, **self.task.kwargs)
        self.env = made.unwrapped  # its data is exchanged, so that each world is reset by Gymnasium's own code
        self.model, self.rule = self.env.model, RULES[gym.spec(self.task.id).entry_point](self.env)
        self.datas = [mujoco.MjData(self.model) for _ in range(n)]
        self.action_space = self.env.action_space
        self.layout = {"state": (self.env.observation_space.shape, np.dtype(np.float32))}
        self.buffers, self.steps = Buffers.new(self.layout, n), np.zeros(n, np.int64)
        self._open_views()
        edges = np.linspace(0, n, max(1, min(threads, n)) + 1).astype(int).tolist()
        self._parts = [range(a, b) for a, b in pairwise(edges)]
        self._pool = ThreadPoolExecutor(len(self._parts) - 1) if len(self._parts) > 1 else None

    def _open_views(self) -> None:
        """Arrays that all worlds are read into, and the places in MuJoCo's memory that they are read from."""
        n = len(self.datas)
        self._controls = [data.ctrl for data in self.datas]
        self._warnings = [data.warning.number[DIVERGED] for data in self.datas]
        self._warned = np.zeros((n, 3), np.int32)
        reads = self.rule.reads.values()
        self._sources = [view(data).reshape(-1) for data in self.datas for view in reads]
        edges = np.cumsum([0] + [part.size for part in self._sources[: len(reads)]]).tolist()
        self._all = np.zeros((n, edges[-1]))
        self.now = {name: self._all[:, a:b] for name, (a, b) in zip(self.rule.reads, pairwise(edges), strict=True)}

    def _read(self) -> None:
        np.concatenate(self._sources, out=self._all.reshape(-1))
        np.concatenate(self._warnings, out=self._warned.reshape(-1))

    def step(self, actions: np.ndarray, seeds: np.ndarray) -> None:
        """As `Here.step`."""
        stepping = seeds == STEP
        if stepping.all():
            self._advance(self._parts, actions)
            self._note(actions, slice(None))
            return
        if stepping.any():
            self._advance([[i for i in part if stepping[i]] for part in self._parts], actions)
            self._note(actions, stepping)
        for i in np.flatnonzero(~stepping & (seeds != REST)).tolist():
            self._reset(i, int(seeds[i]))
        self._read()

    def _reset(self, i: int, seed: int) -> None:
        self.env.data = self.datas[i]
        observation, _ = self.env.reset(seed=seed)
        self.buffers.begin(i, {"state": observation})
        self.steps[i] = 0

    def _advance(self, parts: list[Any], actions: np.ndarray) -> None:
        """MuJoCo's steps of the worlds in `parts`, a thread for each part."""
        if self._pool is None:
            self._simulate(parts[0], actions)
            return
        others = [self._pool.submit(self._simulate, part, actions) for part in parts[1:]]
        self._simulate(parts[0], actions)
        for other in others:
            other.result()

    def _simulate(self, worlds: Any, actions: np.ndarray) -> None:
        step, model, skip = self._mujoco.mj_step, self.model, self.env.frame_skip
        for i in worlds:
            self._controls[i][:] = actions[i]
            step(model, self.datas[i], skip)
        if self.rule.forces:  # Gymnasium computes them always, and they change nothing but what is read here
            for i in worlds:
                self._mujoco.mj_rnePostConstraint(model, self.datas[i])

    def _note(self, actions: np.ndarray, rows: Any) -> None:
        """Fill the buffers of the worlds `rows` that have stepped."""
        buffers = self.buffers
        before = self.rule.place(self.now).copy()
        self._read()
        reward, terminated = self.rule.judge(self.now, before, actions)
        if self._warned.any():
            reward[self._warned.any(1)] = np.nan  # MuJoCo began this world anew
        self.steps[rows] += 1
        buffers.obs["state"][rows] = self.rule.observe(self.now)[rows]
        buffers.reward[rows], buffers.terminated[rows] = reward[rows], terminated[rows]
        buffers.truncated[rows] = (~terminated & (self.steps >= self.task.horizon))[rows]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
        self.env.close()
