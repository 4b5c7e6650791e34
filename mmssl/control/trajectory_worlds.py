"""A trajectory model at work in a task's own world, by mask alone: returns, successes and a film."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from mmssl.control.evaluate import Episodes, evaluate
from mmssl.control.trajectory_policy import How, TrajectoryPolicy
from mmssl.control.video import MOST, Onlooker, play_episodes, write_film
from mmssl.envs.rendering import opengl_context
from mmssl.envs.suites import find_task
from mmssl.envs.vector import make_vec
from mmssl.errors import MmsslError
from mmssl.methods.mtm import MTM
from mmssl.trajectory_masking import OBSERVED, kind_of

TOGETHER = 16
"""Environments that one prediction serves."""


@dataclass(frozen=True)
class Acting:
    """One way in which a model acts; `target_return` is of `rcbc`, the others are those of `TrajectoryPolicy`."""

    how: How = "bc"
    target_return: float | None = None
    history: int | None = None
    past_actions: bool = False

    def policy(self, model: MTM, world: VectorEnv) -> "InWorld":
        """The policy for all environments of a world."""
        return InWorld(
            TrajectoryPolicy(
                model, world.num_envs, self.how, self.target_return, history=self.history,
                past_actions=self.past_actions,
            ),
            world,
        )  # fmt: skip


class InWorld:
    """A policy whose actions are in the units of the recordings, in a world that takes them in [-1, 1]."""

    def __init__(self, policy: TrajectoryPolicy, world: VectorEnv):
        self.policy, self.world = policy, world

    def begin(self, rows: np.ndarray) -> None:
        self.policy.begin(rows)

    def act(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        return self.world.from_env(self.policy.act(obs))


class RandomPolicy:
    """Uniform actions."""

    def __init__(self, world: VectorEnv):
        self.world = world

    def act(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        return self.world.random_actions()


def open_world(model: MTM, task: str, n: int, seed: int = 0) -> VectorEnv:
    """n environments of a task, which shows what the model observes.

    Raises:
        MmsslError: an unknown task, or one that shows or takes something else than the model was trained on.
    """
    widths = model.config.widths
    world = make_vec(task, n, proprio="proprio" in widths, seed=seed)
    try:
        _check(widths, world, task)
    except MmsslError:
        world.close()
        raise
    return world


def _check(widths: dict[str, int], world: VectorEnv, task: str) -> None:
    shown, spaces = {name: shape for name, (shape, _) in world.layout.items()}, world.spaces()
    for name in [name for name in widths if kind_of(name) == OBSERVED]:
        if name not in shown:
            raise MmsslError(f"the model sees {name!r}, and {task} shows {', '.join(shown)}; give another --task.")
        if shown[name] != (widths[name],):
            raise MmsslError(
                f"the model was trained on {name!r} of {widths[name]} numbers, and {task} shows "
                f"{'x'.join(map(str, shown[name]))}; give a --task like that of the training."
            )
    if spaces["discrete"] or spaces["action_dim"] != widths.get("action"):
        kind = "discrete actions" if spaces["discrete"] else "numbers"
        raise MmsslError(
            f"the model was trained on actions of {widths.get('action')} numbers, and {task} takes "
            f"{spaces['action_dim']} {kind}; give a --task like that of the training."
        )


def run_episodes(
    model: MTM, task: str, ways: dict[str, Acting], episodes: int, seed: int = 0
) -> tuple[dict[str, Episodes], bool]:
    """Name of a way -> its episodes, and of `random` actions; and whether the task can be done or not done.

    All begin at the same starts.
    """
    world = open_world(model, task, min(TOGETHER, episodes), seed)
    try:
        found = {"random": evaluate(RandomPolicy(world), world, episodes, seed)}
        for name, way in ways.items():
            found[name] = evaluate(way.policy(model, world), world, episodes, seed)
        return found, world.has_success
    finally:
        world.close()


def film_episode(model: MTM, task: str, way: Acting, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Film the beginning of an episode: `policy.mp4`, `.webp` and `.png` in a folder; returns what came of it.

    Raises:
        MmsslError: nothing can render here, the task cannot be filmed, PyAV is not installed.
    """
    opengl_context()  # first: without a backend the simulators fail at their import, in words of their own
    frames: list[np.ndarray] = []

    def keep(frame: np.ndarray) -> bool:
        frames.append(frame)
        return len(frames) < MOST

    world = open_world(model, task, 1, seed)
    try:
        onlooker = Onlooker(world, find_task(task))
        episode = next(play_episodes(way.policy(model, world), world, 1, onlooker, keep))
        onlooker.close()
    finally:
        world.close()
    folder.mkdir(parents=True, exist_ok=True)
    write_film(folder, frames, onlooker.fps)
    return {"task": task, "return": episode.total, "length": episode.length, "success": episode.success}
