"""Windows of trajectories a second: ours beside Minari's own iteration over episodes, cut into the same windows.

    python benchmarks/trajectories.py                              # 100 made-up episodes of 1,000 steps, 17 + 6 numbers
    python benchmarks/trajectories.py --data /path/to/recording    # the folder of any Minari data set

Both sides give windows of four steps of states, actions and returns as tensors of batches, and are run in turn, several
times, in one process on one thread; time is the process's own, so that other work on the machine does not count. Ours
draws a new order of all windows each epoch, as training needs it; opening the data, once, is timed by itself. Minari's
iteration reads the file anew each epoch. Its windows come

    in order, strided    in the order of the episodes, each episode cut by one strided view: no order to train
                         in, but the most that this iteration can give
    in order, sliced     the plain way, a slice a window
    in random order      as ours: the episodes of a batch's windows are asked for by their numbers; a few batches only
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import minari
import numpy as np
import torch
import tyro
from torch import Tensor

from mmssl import open_dataset
from mmssl.data.loader import Loader
from mmssl.data.returns import returns_to_go
from mmssl.data.trajectory_files import Trajectory
from mmssl.data.trajectory_sampling import TrajectorySampling
from mmssl.data.trajectory_writing import write_trajectories

MODALITIES = ("state", "action", "return")
BATCHES = 4  # of Minari's windows in random order


@dataclass
class Settings:
    """What to time."""

    data: Path | None = None
    """Folder of a Minari data set; by default one that is made up."""
    length: int = 4
    """Steps of a window."""
    batch: int = 256
    rounds: int = 5
    threads: int = 1


def made_up(root: Path, episodes: int = 100, steps: int = 1000) -> Path:
    """A data set of noise, of HalfCheetah's dimensions."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(episodes):
        widths = {"state": 17, "action": 6, "reward": 1}
        arrays = {name: draw.normal(size=(steps, width)).astype(np.float32) for name, width in widths.items()}
        found.append(Trajectory(arrays, {}, "bench/noise", number, "noise"))
    return write_trajectories(root, found, "bench/noise-v0")


def minari_windows(dataset: minari.MinariDataset, length: int, strided: bool) -> Iterator[dict[str, np.ndarray]]:
    """The windows (n, T, D) of one episode after the other; without `strided` one window after the other (1, T, D)."""
    for episode in dataset.iterate_episodes():
        arrays = arrays_of(episode)
        if strided:
            view = np.lib.stride_tricks.sliding_window_view
            yield {key: view(x, length, 0).swapaxes(1, 2) for key, x in arrays.items()}
            continue
        for first in range(len(arrays["state"]) - length + 1):
            yield {key: x[None, first : first + length] for key, x in arrays.items()}


def minari_batches(dataset: minari.MinariDataset, settings: Settings, strided: bool) -> Iterator[dict[str, Tensor]]:
    """The windows as tensors, `batch` of them at a time."""
    held, count = [], 0
    for windows in minari_windows(dataset, settings.length, strided):
        rows = len(windows["state"])
        for first in range(0, rows, settings.batch):
            part = {key: x[first : first + settings.batch] for key, x in windows.items()}
            held.append(part)
            count += len(part["state"])
            if count >= settings.batch:
                yield {key: torch.from_numpy(np.concatenate([p[key] for p in held])) for key in MODALITIES}
                held, count = [], 0
    if held:
        yield {key: torch.from_numpy(np.concatenate([p[key] for p in held])) for key in MODALITIES}


def minari_random(dataset: minari.MinariDataset, settings: Settings, order: np.ndarray) -> Iterator[dict[str, Tensor]]:
    """A few batches of windows in random order: `order` (N, 2) holds the episode and the first step of each."""
    for first in range(0, min(len(order), BATCHES * settings.batch), settings.batch):
        chosen = order[first : first + settings.batch]
        episodes = {int(e.id): e for e in dataset.iterate_episodes(np.unique(chosen[:, 0]).tolist())}
        rows: dict[str, list[np.ndarray]] = {key: [] for key in MODALITIES}
        arrays = {number: arrays_of(episode) for number, episode in episodes.items()}
        for number, step in chosen.tolist():
            for key, x in arrays[number].items():
                rows[key].append(x[step : step + settings.length])
        yield {key: torch.from_numpy(np.stack(parts)) for key, parts in rows.items()}


def arrays_of(episode: minari.EpisodeData) -> dict[str, np.ndarray]:
    """Modality -> (T, D) of one episode."""
    seen = episode.observations
    state = np.asarray(seen["state"] if isinstance(seen, dict) else seen, np.float32)[: len(episode.actions)]
    reward = np.asarray(episode.rewards, np.float32)[:, None]
    return dict(zip(MODALITIES, (state, episode.actions, returns_to_go(reward, "average")), strict=True))


def rate(epoch: Callable[[], Iterator[dict[str, Tensor]]]) -> float:
    """Windows a second of the process's own time."""
    begun = time.process_time()
    count = sum(len(batch["state"]) for batch in epoch())
    return count / (time.process_time() - begun)


def loader(settings: Settings, root: Path) -> None:
    """Time both sides in turn, and print their rates and the ratio of each round."""
    folder = (settings.data or made_up(root)).resolve()
    os.environ["MINARI_DATASETS_PATH"] = str(folder.parents[1] if settings.data is None else folder.parent)
    theirs = minari.load_dataset(folder.relative_to(os.environ["MINARI_DATASETS_PATH"]).as_posix())
    begun = time.process_time()
    sampling = TrajectorySampling(settings.length, MODALITIES, short="skip")
    data = open_dataset(folder, split="all", trajectory=sampling, target="none")
    print(f"{len(data):,} windows of {settings.length} steps; ours opens them in {time.process_time() - begun:.2f} s")
    draw, starts = np.random.default_rng(0), [max(0, len(t) - settings.length + 1) for t in data.episodes]
    places = np.concatenate([np.stack([np.full(n, e), np.arange(n)], 1) for e, n in enumerate(starts)])
    ours, epoch = Loader(data, settings.batch, drop_last=False), iter(range(1000))
    sides = {
        "ours": lambda: ours.epoch(next(epoch)),
        "minari in order, strided": lambda: minari_batches(theirs, settings, True),
        "minari in order, sliced": lambda: minari_batches(theirs, settings, False),
        "minari in random order": lambda: minari_random(theirs, settings, draw.permutation(places)),
    }
    rates = {name: [] for name in sides}
    for turn in range(settings.rounds + 1):
        for name, side in sides.items():
            if (found := rate(side)) and turn:  # the first round warms up
                rates[name].append(found)
    for name, values in rates.items():
        ratios = sorted(mine / other for mine, other in zip(rates["ours"], values, strict=True))
        print(
            f"  {name:25s} {statistics.median(values):10,.0f} windows/s   ours is "
            f"{statistics.median(ratios):.1f} times as fast ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        )


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        loader(settings, Path(folder))


if __name__ == "__main__":
    main(tyro.cli(Settings))
