"""`mmssl rl play RUN`: a trained policy at work, without noise: returns, successes and a film."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from gymnasium.vector import VectorEnv

from mmssl.control.base import Spaces
from mmssl.control.movie import Movie
from mmssl.control.saving import LoadedPolicy, load_policy
from mmssl.control.video import SIZE, Episode, Onlooker, play_episodes
from mmssl.envs.rendering import opengl_context
from mmssl.envs.suites import find_task
from mmssl.errors import MmsslError


def play(
    run: Annotated[Path, tyro.conf.Positional],
    *,
    episodes: int = 3,
    task: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    video: bool = True,
    camera: str | None = None,
    size: tuple[int, int] = SIZE,
    device: str = "cpu",
) -> list[Episode]:
    """Run a saved policy, print what it gets, and film it.

    Args:
        run: A run of `mmssl rl` (its first seed), one of its seeds (runs/NAME/seed-1), or an exported policy.
        episodes: How many.
        task: SUITE/TASK, where it is another one than the policy learned in; it must look and move alike.
        seed: Of the episodes.
        out: The film, an .mp4 file; figures/play.mp4 in the run folder if not given.
        video: Whether to film at all.
        camera: By which; the task's own if not given.
        size: Height and width of the film in pixels.
        device: Where the policy works: cpu, cuda, ...

    Returns:
        The episodes.
    """
    if episodes < 1 or seed < 0:
        raise MmsslError(f"episodes must be at least 1 and seed 0 or more, got {episodes} and {seed}.")
    if out is not None and out.suffix != ".mp4":
        raise MmsslError(f"the film is an .mp4 file, got --out {out}.")
    if video:
        opengl_context()  # first: without a backend the simulators fail at their import, in words of their own
    loaded = _in_task(load_policy(run, device), task)
    world = loaded.make_world(1, seed)
    try:
        _check_spaces(loaded, Spaces(**world.spaces()))
        if not video:
            return _play(loaded, world, episodes)
        onlooker = Onlooker(world, find_task(loaded.config.task), camera, size)
        path = out or run / "figures" / "play.mp4"
        with Movie(path, onlooker.fps) as movie:
            played = _play(loaded, world, episodes, onlooker, movie.add)
        onlooker.close()
    finally:
        world.close()
    print(f"film: {path}")
    return played


def _in_task(loaded: LoadedPolicy, task: str | None) -> LoadedPolicy:
    """The policy with another task, and without workers, whose simulators are out of sight."""
    config = replace(loaded.config, workers=0, task=task or loaded.config.task)
    return replace(loaded, config=config)


def _check_spaces(loaded: LoadedPolicy, found: Spaces) -> None:
    """Raise an `MmsslError` where a world shows or takes something else than the policy knows."""
    know = loaded.spaces
    mine, its = ({name: tuple(s) for name, (s, _) in spaces.observations.items()} for spaces in (know, found))
    if mine != its:
        raise MmsslError(f"the policy was trained on {_words(mine)}, and {loaded.config.task} shows {_words(its)}.")
    if (know.action_dim, know.discrete) != (found.action_dim, found.discrete):
        kinds = [f"{s.action_dim} {'discrete actions' if s.discrete else 'numbers'}" for s in (know, found)]
        raise MmsslError(f"the policy gives {kinds[0]}, and {loaded.config.task} takes {kinds[1]}.")


def _words(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _play(loaded: LoadedPolicy, world: VectorEnv, count: int, *film: Any) -> list[Episode]:
    """Play, say how it goes, and return the episodes; `film` is an onlooker and what it shows its frames to."""
    played = []
    print(f"{loaded.config.algorithm.name} on {loaded.config.task}, trained for {loaded.steps:,} steps")
    for k, episode in enumerate(play_episodes(loaded.policy, world, count, *film)):
        done = "" if episode.success is None else ", success" if episode.success else ", no success"
        print(f"episode {k}: return {episode.total:.1f} in {episode.length} steps{done}", flush=True)
        played.append(episode)
    returns = [episode.total for episode in played]
    line = f"return {np.mean(returns):.1f} on the average, from {min(returns):.1f} to {max(returns):.1f}"
    if played[0].success is not None:
        line += f"; success in {sum(episode.success for episode in played)} of {count}"
    print(line)
    return played
