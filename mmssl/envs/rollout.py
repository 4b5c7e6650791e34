"""One episode, from reset to its end, written as it happens."""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.envs.blind import Blind
from mmssl.envs.make import SimEnvironment, make_sim, without_opengl
from mmssl.envs.policies import NoisyAction, Policy, find_policy
from mmssl.envs.randomize import RandomizeConfig, VisualRandomizer
from mmssl.envs.rendering import opengl_context
from mmssl.envs.storage import EpisodeWriter
from mmssl.envs.suites import Task
from mmssl.envs.wrappers import open_renderer


@dataclass(frozen=True)
class RolloutConfig:
    """Everything that an episode depends on besides its task and its number."""

    size: tuple[int, int] = (64, 64)
    cameras: tuple[str, ...] = ()
    depth: bool = False
    segmentation: bool = False
    policy: str | tuple[str, ...] = "auto"
    """Its name; several share the episodes: episode i is of the one at place i modulo their number."""
    noise: float = 0.0
    randomize: RandomizeConfig = field(default_factory=RandomizeConfig)
    every: int = 1
    after_success: int | None = None
    faithful: bool = False
    seed: int = 0
    pictures: bool = True

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the policies."""
        return (self.policy,) if isinstance(self.policy, str) else self.policy


def episode_seed(seed: int, task: Task, episode: int) -> np.random.SeedSequence:
    """The seed of one episode: a function of the run's seed, the task's name and the episode's number alone."""
    return np.random.SeedSequence([seed, zlib.crc32(task.full_name.encode()), episode])


class Recorder:
    """A task's world with its cameras, ready to record any of its episodes.

    Args:
        task, config: what is recorded.
        policies: those that `config.policies` names, None for one to be found by its name; () for all.
    """

    def __init__(self, task: Task, config: RolloutConfig, policies: tuple[Policy | None, ...] = ()):
        self.task, self.config = task, config
        pairs = zip(config.policies, policies or (None,) * len(config.policies), strict=True)
        self.policies = tuple(policy or find_policy(name) for name, policy in pairs)
        self._open_world()

    def _open_world(self) -> None:
        config = self.config
        if not config.pictures:
            with without_opengl():
                self.env: SimEnvironment = make_sim(self.task)
            self.renderer, self.randomizer = Blind(), None
            return
        opengl_context()  # first: without a backend the simulators fail at their import, in words of their own
        self.env = make_sim(self.task)
        self.renderer = open_renderer(
            self.env, config.cameras, config.size, config.depth, config.segmentation, config.faithful
        )
        self.randomizer = VisualRandomizer(self.renderer, config.randomize)

    def close(self) -> None:
        self.renderer.close()
        self.env.close()

    def record(self, episode: int, path: Path, alive: Any = lambda: None) -> dict[str, Any]:
        """Record the episode with this number to a file. `alive` is called at each step and may raise to stop.

        Returns its length in steps, its number of pictures and whether it succeeded.
        """
        writer = EpisodeWriter(
            path, capacity=-(-self.task.horizon // (self.config.every * self.task.action_repeat)) + 2
        )
        try:
            return self._record(episode, writer, alive)
        except BaseException:
            writer.discard()
            raise

    def _record(self, episode: int, writer: EpisodeWriter, alive: Any) -> dict[str, Any]:
        config, env = self.config, self.env
        seeds = episode_seed(config.seed, self.task, episode).spawn(4)
        world = int(seeds[0].generate_state(1)[0] % 2**31)
        if self.randomizer:
            self.randomizer.restore()
        observation, info = env.reset(seed=world)
        drawn = self.randomizer.apply(seeds[3]) if self.randomizer and config.randomize.any else {}
        act = self.policies[episode % len(self.policies)](env, np.random.default_rng(seeds[1]))
        noisy = NoisyAction(env, np.random.default_rng(seeds[2]), config.noise)
        log = _Log(self, writer)
        observation["rgb"] = log.observe(observation, info["success"])
        end, left = False, None
        while not end:
            block = _Block()
            for _ in range(config.every):
                alive()
                clean = np.asarray(act(observation), np.float32)
                rgb, action = observation["rgb"], noisy(clean)
                observation, reward, terminated, truncated, info = env.step(action)
                observation["rgb"] = rgb
                block.add(action, clean, reward, info["success"])
                if info["success"] and left is None and config.after_success is not None:
                    left = config.after_success + 1
                left = None if left is None else left - 1
                end = terminated or truncated or (left is not None and left <= 0)
                if end:
                    break
            observation["rgb"] = log.observe(observation, block.success)
            log.act(block, terminated, end and not terminated)
        return log.finish(episode, world, drawn)


class _Block:
    """The steps between two recorded observations: one, or `every` of them."""

    def __init__(self) -> None:
        self.actions: list[np.ndarray] = []
        self.clean: list[np.ndarray] = []
        self.reward, self.success = 0.0, False

    def add(self, action: np.ndarray, clean: np.ndarray, reward: float, success: bool) -> None:
        self.actions.append(action)
        self.clean.append(clean)
        self.reward += reward
        self.success |= success


class _Log:
    """Collects the small arrays of an episode and hands its pictures to the writer."""

    def __init__(self, recorder: Recorder, writer: EpisodeWriter):
        self.recorder, self.writer = recorder, writer
        self.rows: dict[str, list] = {}

    def _append(self, key: str, value: Any) -> None:
        self.rows.setdefault(key, []).append(value)

    def observe(self, observation: dict, success: bool) -> dict[str, np.ndarray]:
        """Record an observation with its pictures; returns the RGB ones."""
        pictures = self.recorder.renderer.render()
        self.writer.add_pictures(pictures)
        for camera, pose in pictures["pose"].items():
            self._append(f"infos/camera_pose/{camera}", pose)
        data = self.recorder.env.data
        self._append("observations/proprio", observation["proprio"])
        self._append("observations/state", observation["state"])
        self._append("infos/success", np.bool_(success))
        if data is not None:
            self._append("infos/qpos", data.qpos.copy())
            self._append("infos/qvel", data.qvel.copy())
        return pictures["rgb"]

    def act(self, block: _Block, terminated: bool, truncated: bool) -> None:
        """Record the step or steps that led to the newest observation; missing ones of a short block are zeros."""
        every = self.recorder.config.every
        action, clean = (self._stack(rows, every) for rows in (block.actions, block.clean))
        self._append("actions", action)
        self._append("rewards", np.float32(block.reward))
        self._append("terminations", np.bool_(terminated))
        self._append("truncations", np.bool_(truncated))
        if self.recorder.config.noise:
            self._append("infos/policy_action", clean)
        if every > 1:
            self._append("infos/steps", np.int32(len(block.actions)))

    @staticmethod
    def _stack(rows: list[np.ndarray], every: int) -> np.ndarray:
        if every == 1:
            return rows[0]
        return np.stack(rows + [np.zeros_like(rows[0])] * (every - len(rows)))  # (every, A)

    def finish(self, episode: int, world: int, drawn: dict) -> dict[str, Any]:
        arrays = {k: np.stack(v) for k, v in self.rows.items()}
        for key in ("infos/policy_action", "infos/steps"):  # infos have a row for the reset too
            if key in arrays:
                arrays[key] = np.concatenate([np.zeros_like(arrays[key][:1]), arrays[key]])
        steps, success = len(arrays["rewards"]), bool(arrays["infos/success"].any())
        attributes = {
            "id": episode, "seed": world, "total_steps": steps, "success": success,
            "instruction": self.recorder.task.instruction, "randomization": json.dumps(drawn),
        }  # fmt: skip
        if len(names := self.recorder.config.policies) > 1:
            attributes["policy"] = names[episode % len(names)]
        self.writer.finish(arrays, attributes)
        return {
            "steps": steps,
            "pictures": self.writer.frames * len(self.recorder.renderer.cameras),
            "success": success,
        }
