"""Windows of a few steps out of recorded episodes: states, actions, rewards, returns, frames, all that a step has.

All but frames lies in memory end to end, and a batch is one gather.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.data.clip_crops import ClipGeometry, Cut
from mmssl.data.dataset import Dataset
from mmssl.data.episodes import split_episodes
from mmssl.data.lerobot import is_lerobot, read_lerobot
from mmssl.data.returns import returns_to_go
from mmssl.data.trajectory_features import FeatureFile
from mmssl.data.trajectory_files import Trajectory, TrajectoryFile, read_minari
from mmssl.data.trajectory_frames import WindowFrames, stack_windows
from mmssl.data.trajectory_sampling import TrajectorySampling
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError, unknown_name
from mmssl.keys import sample_keys, uniform
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

__all__ = ["Trajectory", "TrajectorySampling", "TrajectoryWindows", "open_trajectories"]

_FRACTION_STREAM, _ACTION_STREAM = 1, 2


class TrajectoryWindows(Dataset):
    """Windows of one or several recordings, joined.

    A window is `config.trajectory.length` steps of one episode; of an episode with fewer steps it is all of them, and
    zeros after its end. At step t, `action` is what was done after `state` was seen, `reward` is what that gave, and
    `return` is what there was to gain from there on. What was seen after the last step is in no window.

    Args:
        name: for reports.
        files: their episodes.
        config: its `trajectory`, `split`, `test_every` and `max_bad`; of frames `camera`, `image_size`, `cache` too.

    Attributes:
        episodes: those of the split, in which windows lie; of training those that `fraction` takes.
        numbers: int (E,) of each of them, counted over all recordings and splits.
        widths: modality -> numbers of a vector.
        tasks: names of the tasks, each once.
        control_hz: steps a second; None where no recording says.

    Raises:
        MmsslError: a modality that no recording has; recordings that differ in dimensions or in their control rate;
            every episode shorter than a window where `short` leaves them out, or any where it is an error.
    """

    def __init__(self, name: str, files: list[TrajectoryFile], config: "DataConfig"):
        self.sampling, self.split, self.files, self._config = config.trajectory, config.split, files, config
        self.control_hz = _one_rate(files)
        self.tasks = list(dict.fromkeys(episode.task for file in files for episode in file.episodes))
        self.episodes, self.numbers, of_file = self._chosen(config.split)
        self.features = FeatureFile(self.sampling.features) if "features" in self.sampling.vectors else None
        self.widths = self._widths(name)
        self._cut_up(name)
        fraction = 1.0 if config.crop_fraction is None else config.crop_fraction
        names = self.sampling.frames
        self.frames = WindowFrames(files, self.episodes, of_file, names, config.camera) if names else None
        size = config.image_size or (self.frames.size if self.frames else None)
        super().__init__(name, ClipGeometry(size, fraction), config.max_bad)
        self._has = {key: self._present(key) for key in self.widths} | (self.frames.has if self.frames else {})
        self.lacks = tuple(key for key, has in self._has.items() if not has.all())
        self.modality = self.sampling.modalities[0]
        self._table = {key: self._joined(key) for key in self.widths}
        self._views: dict[str, Tensor] | None = None
        self.groups = torch.from_numpy(self.numbers[self._episode])
        self.choose_target({"task": "single_label"}, config.target)
        self.classes = self.tasks if self.target else None
        if self.frames and config.cache == "memory":
            self.frames.load(self._first, self._note)

    def __len__(self) -> int:
        return len(self._start)

    def _chosen(self, split: str) -> tuple[list[Trajectory], np.ndarray, np.ndarray]:
        """Episodes of a split that are used, their numbers over all recordings and splits, and their recordings."""
        chosen, before = [], 0
        for number, file in enumerate(self.files):
            for place in split_episodes(len(file.episodes), split, self._config.test_every, file.task):
                chosen.append((file.episodes[place], before + place, number))
            before += len(file.episodes)
        if split == "train" and self.sampling.fraction < 1:
            order = _shuffled([number for _, number, _ in chosen], _FRACTION_STREAM)
            kept = np.sort(order[: max(1, round(self.sampling.fraction * len(order)))])
            chosen = [chosen[k] for k in kept]
        episodes, numbers, of_file = zip(*chosen, strict=True)
        return list(episodes), np.array(numbers), np.array(of_file)

    def episodes_of(self, split: str) -> list[Trajectory]:
        """Whole episodes of "train" (those that training uses), "test" or "all"."""
        return self._chosen(split)[0]

    def _widths(self, name: str) -> dict[str, int]:
        widths: dict[str, int] = {}
        for key in self.sampling.vectors:
            if key == "features":
                widths[key] = self.features.width
                continue
            stored = _stored(key)
            each = {t.task: t.arrays[stored].shape[1] for t in self.episodes if stored in t.arrays}
            if not each:
                there = sorted({k for t in self.episodes for k in t.arrays})
                raise MmsslError(
                    f"no recording of {name!r} has {stored!r}, there are {', '.join(there)}; leave {key} out of "
                    "trajectory.modalities, or out of the method."
                )
            if len(set(each.values())) > 1:
                raise MmsslError(
                    f"{stored!r} must have the same dimensions in all recordings, got {each}; train on them apart."
                )
            widths[key] = next(iter(each.values()))
        return widths

    def _cut_up(self, name: str) -> None:
        """First row of every episode and of every window."""
        sampling, length = self.sampling, self.sampling.length
        lengths = np.array([len(t) for t in self.episodes], np.int64)
        if sampling.short == "error" and (lengths < length).any():
            short = self.episodes[int((lengths < length).argmax())]
            raise MmsslError(
                f"{short.name} has {len(short)} steps, fewer than a window's {length}; lower trajectory.length, or set "
                "trajectory.short to pad or skip."
            )
        if sampling.short == "skip" and (lengths < length).all():
            raise MmsslError(
                f"every episode of {name!r} is shorter than a window of {length} steps, the longest has "
                f"{int(lengths.max())}; lower trajectory.length, or set trajectory.short to pad."
            )
        self._first, self._length = lengths.cumsum() - lengths, lengths
        counts = np.maximum(lengths - length, 0) // sampling.stride + 1  # windows of each episode
        counts = np.where((lengths < length) & (sampling.short == "skip"), 0, counts)
        self._episode = np.repeat(np.arange(len(lengths)), counts)
        place = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        start = self._first[self._episode] + place * sampling.stride
        self._start = torch.from_numpy(start)
        self._steps = torch.from_numpy(np.minimum((self._first + lengths)[self._episode] - start, length))  # valid ones
        self._whole = bool((self._steps == length).all())

    def _present(self, key: str) -> np.ndarray:
        """bool (E,): which episodes have a modality."""
        has = np.array([key == "features" or _stored(key) in t.arrays for t in self.episodes])
        if key == "action" and self.split == "train" and self.sampling.without_action > 0:
            order = _shuffled(self.numbers, _ACTION_STREAM)
            has[order[: round(self.sampling.without_action * len(order))]] = False
        return has

    def _joined(self, key: str) -> Tensor:
        """float32 (rows + T - 1, D) of all episodes; zeros of those that lack it, and after the last one."""
        width, parts = self.widths[key], []
        for t, number, has in zip(self.episodes, self.numbers, self._has[key], strict=True):
            parts.append(self._values(t, int(number), key) if has else np.zeros((len(t), width), np.float32))
        parts.append(np.zeros((self.sampling.length - 1, width), np.float32))  # where the last windows end
        return torch.from_numpy(np.concatenate(parts))

    @property
    def flat(self) -> dict[str, Tensor]:
        """Modality -> float32 (rows, D), all episodes end to end; zeros of those that lack it."""
        return {key: x[: int(self._length.sum())] for key, x in self._table.items()}

    def _values(self, t: Trajectory, number: int, key: str) -> np.ndarray:
        """float32 (T, D) of one episode that has it."""
        if key == "features":
            return self.features.of(number, t.name, len(t))
        if key == "return":
            s = self.sampling
            return returns_to_go(t.arrays["reward"], s.returns, s.discount, s.horizon)
        return t.arrays[key]

    def _note(self, number: int, error: Exception) -> None:
        """A damaged episode gives no window."""
        for place in np.flatnonzero(self._episode == number).tolist():
            self.bad.add(place, self.sample_name(place), f"{type(error).__name__}: {error}")

    def sample_name(self, place: int) -> str:
        number = int(self._episode[place])
        return f"{self.episodes[number].name} step {int(self._start[place]) - int(self._first[number])}"

    def arrays(self, place: int, draws: list[float] | None, augmentation: Augmentation | None) -> dict:
        """Frames of one window, uint8 (T, 3, H, W) of each camera. Raises one of `decode.UNREADABLE`."""
        number, row = int(self._episode[place]), int(self._start[place])
        first, cut = row - int(self._first[number]), Cut(draws, augmentation)
        return self.frames.window(number, first, row, self.sampling.length, cut, self.geometry)

    def fetch(
        self, index: Tensor, keys: Tensor | None = None, augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """A batch of windows: modality -> float32 (B, T, D) or uint8 (B, T, 3, H, W), `valid` bool (B, T), `index`.

        `present/<modality>` bool (B,) where some episodes lack it; zeros stand there, and where a step is not valid.
        The crop of a window's frames is all that is drawn.
        """
        frames = {}
        if self.frames is not None:
            index, frames = self._read_frames(index, keys, augmentation)
        start, valid = self._start[index], self._valid(index)
        shape = len(index), self.sampling.length
        batch = {key: x.index_select(0, start).view(*shape, self.widths[key]) for key, x in self._every().items()}
        if not self._whole:
            batch = {key: x * valid[..., None] for key, x in batch.items()}
        present = {}
        if self.lacks:
            owner = self._episode[index.numpy()]
            present = {f"present/{key}": torch.from_numpy(self._has[key][owner]) for key in self.lacks}
        return self.label({**batch, **frames, **present, "valid": valid}, index)

    def _every(self) -> dict[str, Tensor]:
        """Modality -> (rows, T * D), the window that begins at each row; views of one memory, in which the steps of a
        window lie side by side and are copied at once.
        """
        if self._views is None:
            length = self.sampling.length
            sizes = {key: (len(x) - length + 1, length * x.shape[1]) for key, x in self._table.items()}
            self._views = {key: x.as_strided(sizes[key], (x.shape[1], 1)) for key, x in self._table.items()}
        return self._views

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_views": None}  # pickled they would be copies

    def _valid(self, index: Tensor) -> Tensor:
        """bool (B, T): steps of windows that are no padding."""
        if self._whole:
            return torch.ones(len(index), self.sampling.length, dtype=torch.bool)
        return torch.arange(self.sampling.length) < self._steps[index][:, None]

    def _read_frames(
        self, index: Tensor, keys: Tensor | None, augmentation: Augmentation | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The places that were read, and their frames."""
        if self.geometry.draws(keys, augmentation) is None:
            index = self.readable_places(index)
            rows = self._start[index][:, None] + torch.arange(self.sampling.length)
            valid = self._valid(index)
            rows = torch.where(valid, rows, 0)
            if (frames := self.frames.gather(rows, self.geometry)) is not None:
                return index, {key: x * valid[..., None, None, None] for key, x in frames.items()}
        windows, index = self.read_rows(index, keys, augmentation)
        return index, stack_windows(windows, self.sampling.frames, self.name)

    def rows(self, key: str) -> Tensor:
        """All steps of a modality, float64 (N, D): padding is none, nor are those of episodes that lack it."""
        if key not in self.widths:
            raise unknown_name(f"modality of dataset {self.name!r}", key, self.widths)
        there = torch.from_numpy(np.repeat(self._has[key], self._length))
        return self._table[key][: len(there)][there].double()

    def statistics(self, key: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (population) of a modality over its steps, float64 (D,).

        Those of the training episodes, of a test part too.
        """
        if self.split == "test":
            config = dataclasses.replace(self._config, split="train", cache="none")
            return TrajectoryWindows(self.name, self.files, config).statistics(key)
        rows = self.rows(key)
        return rows.mean(0), rows.std(0, correction=0)

    def range_of(self, key: str) -> tuple[Tensor, Tensor]:
        """Least and largest value of each number of a modality, float64 (D,)."""
        rows = self.rows(key)
        return rows.amin(0), rows.amax(0)

    def _labels(self, target: str) -> Tensor:
        of_episode = torch.tensor([self.tasks.index(t.task) for t in self.episodes])
        return of_episode[torch.from_numpy(self._episode)]


def _stored(key: str) -> str:
    """What a modality is made from."""
    return "reward" if key == "return" else key


def _shuffled(numbers: list[int] | np.ndarray, stream: int) -> np.ndarray:
    """Places of these episodes in an order that a hash of their numbers gives: always the same."""
    keys = sample_keys(0, 0, stream, torch.as_tensor(np.asarray(numbers)))
    return uniform(keys, 1)[:, 0].argsort().numpy()


def _one_rate(files: list[TrajectoryFile]) -> float | None:
    rates = {file.task: file.control_hz for file in files if file.control_hz is not None}
    if len({round(rate, 3) for rate in rates.values()}) > 1:
        each = ", ".join(f"{task} {rate:g}" for task, rate in rates.items())
        raise MmsslError(
            f"the recordings have different control rates ({each} steps a second), so that a step means different "
            "times; train on them apart, or record them at one rate."
        )
    return next(iter(rates.values()), None)


@register_dataset("lerobot")
def open_trajectories(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> TrajectoryWindows:
    """Windows of the episodes in these folders, each a Minari dataset or one of LeRobot.

    Without `config.trajectory` they hold state and action.
    """
    if config.clip is not None:
        raise MmsslError(
            "windows of trajectories are no clips: set clip to null; the videos of a LeRobot data set can be read as a "
            "folder of videos, videos/<camera> in it."
        )
    config = dataclasses.replace(config, trajectory=config.trajectory or TrajectorySampling(4, ("state", "action")))
    clean, frames = config.trajectory.actions == "clean", bool(config.trajectory.frames)
    files = [read_lerobot(f) if is_lerobot(f) else read_minari(f, clean, frames) for f in folders]
    name = card.name if card else "+".join(file.task for file in files[:3]) + ("+..." if len(files) > 3 else "")
    return TrajectoryWindows(name, files, config)
