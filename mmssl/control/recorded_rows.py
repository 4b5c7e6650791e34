"""Recorded episodes as rows of a replay: what was seen, done and got, and how each episode ended."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from gymnasium.vector import VectorEnv

from mmssl.control.replay import Replay
from mmssl.data.loading import open_dataset
from mmssl.data.trajectories import TrajectorySampling
from mmssl.data.trajectory_files import Trajectory
from mmssl.errors import MmsslError


def read_episodes(source: str, wanted: dict[str, int], actions: int) -> list[Trajectory]:
    """All episodes of a source, those that are held out in pretraining too.

    Of an episode that was cut the last step counts only where what was seen after it is stored, as Minari stores it:
    without that the value behind it is not known.

    Args:
        source: a card, a folder or an id.
        wanted: name -> width of what the task shows.
        actions: numbers of an action.

    Raises:
        MmsslError: nothing there; what is wanted is missing or of another width.
    """
    sampling = TrajectorySampling(1, (*wanted, "action", "reward"))
    episodes = open_dataset(source, trajectory=sampling, split="all").episodes
    for episode in episodes:
        _check(episode, {**wanted, "action": actions, "reward": 1})
    return [e for e in (_usable(episode, list(wanted)) for episode in episodes) if len(e)]


def _check(episode: Trajectory, wanted: dict[str, int]) -> None:
    for name, width in wanted.items():
        if name not in episode.arrays:
            raise MmsslError(f"{episode.name} has no {name!r}, which learning needs; take other data.")
        if (found := episode.arrays[name].shape[1]) != width:
            raise MmsslError(
                f"{name!r} of {episode.name} has {found} numbers and the task's has {width}; take data of this task."
            )


def _usable(episode: Trajectory, names: Sequence[str]) -> Trajectory:
    """The episode with a `last` of every name, one step shorter where that is not known and matters."""
    if all(name in episode.last for name in names):
        return episode
    last = {name: episode.arrays[name][-1] for name in names}
    if episode.terminated:  # nothing is worth anything after it, whatever was seen
        return replace(episode, last=last)
    return replace(episode, arrays={name: array[:-1] for name, array in episode.arrays.items()}, last=last)


def rows_of(episodes: Sequence[Trajectory]) -> int:
    """Rows of a replay that holds them all: one more of each episode for its end, and one for what would come next."""
    return sum(len(episode) + 1 for episode in episodes) + 1


def fill(replay: Replay, episodes: Sequence[Trajectory], world: VectorEnv) -> None:
    """Store episodes as the world, behind its encoder where it has one, would have shown them."""
    frozen, names = getattr(world, "frozen", None), list(replay.spaces.vectors)
    for episode in episodes:
        obs = {name: np.concatenate([episode.arrays[name], last[None]]) for name, last in episode.last.items()}
        if frozen is not None:
            obs["features"] = frozen.sequence(obs)
        terminated = np.zeros(len(episode), bool)
        terminated[-1] = episode.terminated
        reward = episode.arrays["reward"][:, 0]
        replay.extend({n: obs[n] for n in names}, world.from_env(episode.arrays["action"]), reward, terminated)
