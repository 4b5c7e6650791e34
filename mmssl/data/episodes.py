"""The episodes of one split of several recordings: cameras, frames in memory, and what was recorded beside each frame.

Whole episodes are held out: neighbouring frames look alike, and a split through an episode would let a probe pass by
memory. Laid end to end, the frames of the split are its rows.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.data.decode import UNREADABLE, open_picture, to_rgb
from mmssl.data.memory import check_memory
from mmssl.data.recording_file import RecordingFile
from mmssl.errors import MmsslError, unknown_name

if TYPE_CHECKING:
    from mmssl.data.loading import DataConfig

VECTORS = ("state", "proprio")  # stored as observations, one row a frame
TASKS = {
    "task": "single_label",
    "instruction": "single_label",
    "success": "single_label",
    "state": "regression",
    "proprio": "regression",
    "reward": "regression",
}
Note = Callable[[int, Exception], None]  # (row, error) of a frame that cannot be read


class Episodes:
    """Which episodes of which recordings, in which order.

    Args:
        files: the recordings, joined in this order.
        config: its `split`, `test_every`, `extras` and `drop_constant`.

    Attributes:
        file, episode, group, length: int (E,) of each episode: its recording's number, its id there, its number over
            all recordings and splits, and its number of frames.
        first: int (E,) its first row.
        cameras: cameras that every recording has.
    """

    def __init__(self, files: list[RecordingFile], config: "DataConfig"):
        self.files, self.config = files, config
        rows, before = [], 0
        for number, file in enumerate(files):
            for position in split_episodes(len(file.lengths), config.split, config.test_every, file.task):
                rows.append((number, file.episodes[position], before + position, file.lengths[position]))
            before += len(file.lengths)
        self.file, self.episode, self.group, self.length = np.array(rows).reshape(-1, 4).T
        self.first = np.cumsum(self.length) - self.length
        if blind := [f.task for f in files if not f.cameras]:
            raise MmsslError(f"the recording of {', '.join(blind)} has no camera at all; record it with pictures.")
        self.cameras = [c for c in files[0].cameras if all(c in f.cameras for f in files)]

    def __len__(self) -> int:
        return len(self.length)

    @property
    def frames(self) -> int:
        return int(self.length.sum())

    def name(self, number: int) -> str:
        return f"{self.files[self.file[number]].path} episode {self.episode[number]}"

    def camera(self, wanted: str | None) -> tuple[str | None, list[str]]:
        """The camera that is read (None where each recording has its own) and its name in each recording.

        Where none is asked for and none is shared (recordings of several suites), each recording gives its first one.
        """
        if wanted is not None and wanted not in self.cameras:
            if self.cameras:
                raise unknown_name("camera", wanted, self.cameras)
            listed = "; ".join(f"{f.task}: {', '.join(f.cameras)}" for f in self.files)
            raise MmsslError(f"these recordings share no camera, so not all have {wanted!r} ({listed}); leave it out.")
        camera = wanted or (self.cameras[0] if self.cameras else None)
        names = [camera or file.cameras[0] for file in self.files]
        for extra in self.config.extras:
            for file, name in zip(self.files, names, strict=True):
                if name not in file.planes[extra]:
                    raise MmsslError(f"the recording of {file.task} has no {extra}; record it with --{extra}.")
        return camera, names

    def frame_size(self, cameras: list[str]) -> tuple[int, int] | None:
        """(H, W) of all frames of one camera a recording; an `MmsslError` where the recordings differ."""
        sizes = {f.task: f.frame_size(camera) for f, camera in zip(self.files, cameras, strict=True)}
        if len(set(sizes.values())) > 1:
            raise MmsslError(f"these recordings have frames of different sizes ({sizes}); give image_size.")
        return next(iter(sizes.values()))

    def read(self, number: int, plane: list[str], times: list[int]) -> np.ndarray:
        """Frames (T, H, W, ...) of one episode, each read once. `plane`: its path in each recording."""
        file, episode = self.files[self.file[number]], int(self.episode[number])
        path = plane[self.file[number]]
        unique = sorted(set(times))
        frames = np.stack([decoded(file.frame(episode, path, time)) for time in unique])
        return frames[np.searchsorted(unique, times)]

    def load(self, planes: dict[str, list[str]], name: str, note: Note) -> dict[str, Tensor]:
        """All rows of each plane as tensors (N, H, W, ...), read an episode at a time.

        Args:
            planes: key -> path in each recording, e.g. "rgb/corner".
            name: of the dataset, for messages.
            note: called with each frame that cannot be read.
        """
        memory = {}
        for key, paths in planes.items():
            shape, dtype = self.files[0].shape(paths[0])
            if len(shape) < 2:
                raise MmsslError(f"{self.files[0].path} stores JPEG frames; use cache: none.")
            needed = self.frames * int(np.prod(shape)) * dtype.itemsize
            check_memory(needed, f"the {self.frames} frames of {name!r}")
            memory[key] = torch.empty((self.frames, *shape), dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
        for number in range(len(self)):
            for key, paths in planes.items():
                self._load_episode(memory[key], number, paths[self.file[number]], note)
        return memory

    def _load_episode(self, out: Tensor, number: int, path: str, note: Note) -> None:
        """Read the rows of an episode into `out`; where it is damaged, those that can be read."""
        file, episode = self.files[self.file[number]], int(self.episode[number])
        start, stop = int(self.first[number]), int(self.first[number] + self.length[number])
        shape, _ = file.shape(path)
        if shape != out.shape[1:]:
            raise MmsslError(f"{file.path} has frames of {shape[:2]}, the first recording {tuple(out.shape[1:3])}.")
        try:
            out[start:stop] = torch.from_numpy(file.column(episode, path))
        except UNREADABLE:
            for row in range(start, stop):
                try:
                    out[row] = torch.from_numpy(file.frame(episode, path, row - start))
                except UNREADABLE as error:
                    note(row, error)

    def targets(self) -> dict[str, str]:
        """Target name -> what it means, of all that every recording has."""
        return {target: kind for target, kind in TASKS.items() if self._has(target)}

    def _has(self, target: str) -> bool:
        return target in ("task", "instruction") or all(target in file.columns for file in self.files)

    def class_names(self, target: str | None) -> list[str] | None:
        """Classes of a target in label order; None for one that has none."""
        if target == "success":
            return ["no", "yes"]
        if target in ("task", "instruction"):
            return list(dict.fromkeys(getattr(file, target) for file in self.files))
        return None

    def classes(self, target: str) -> Tensor:
        """int64 (E,) class of each episode for the target task or instruction."""
        names = self.class_names(target)
        numbers = np.array([names.index(getattr(file, target)) for file in self.files])
        return torch.from_numpy(numbers[self.file])

    def values(self, target: str) -> Tensor:
        """float32 (N, K): a recorded vector of every row; constant dimensions are judged on every episode of every
        split.
        """
        every = [[file.vector(episode, target) for episode in file.episodes] for file in self.files]
        widths = {file.task: rows[0].shape[1] for file, rows in zip(self.files, every, strict=True)}
        if len(set(widths.values())) > 1:
            raise MmsslError(
                f"target {target!r} has different lengths ({widths}); join tasks of one kind, or use target task."
            )
        flat = [episode for rows in every for episode in rows]
        if self.config.drop_constant and target in VECTORS:
            joined = np.concatenate(flat)
            moving = joined.std(axis=0) > 1e-6 * (1 + np.abs(joined).max(axis=0))
            flat = [episode[:, moving] for episode in flat]
        return torch.from_numpy(np.concatenate([flat[group] for group in self.group]).astype(np.float32))


def decoded(frame: np.ndarray) -> np.ndarray:
    """A stored frame as pixels: JPEG bytes, as Minari itself writes pictures, become uint8 (H, W, 3)."""
    return np.asarray(to_rgb(open_picture(frame.tobytes()))) if frame.ndim == 1 else frame


def split_episodes(n: int, split: str, every: int, task: str) -> list[int]:
    """Positions of the wanted episodes: the last of every `every` is test, or the last of all where there are fewer."""
    if split not in ("train", "test", "all"):
        raise unknown_name("split", split, ("train", "test", "all"))
    if split == "all":
        return list(range(n))
    k = min(every, n)
    if k < 2:
        raise MmsslError(
            f"the recording of {task} has {n} episode, too few to hold one out; record more or use split: all."
        )
    return [e for e in range(n) if (e % k == k - 1) == (split == "test")]
