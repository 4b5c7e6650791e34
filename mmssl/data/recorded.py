"""Recorded episodes (Minari, HDF5) as single frames with state, task and more as labels.

Frames are stored one a chunk, so a frame is read without its episode. Whole episodes are held out: neighbouring frames
look alike, and a split through an episode would let a probe pass by memory.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset, stack_planes
from mmssl.data.decode import UNREADABLE, open_picture
from mmssl.data.memory import check_memory
from mmssl.data.recording_file import RecordingFile
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError, unknown_name
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

_VECTORS = ("state", "proprio")  # stored as observations, one row a frame
_TASKS = {
    "task": "single_label",
    "instruction": "single_label",
    "success": "single_label",
    "state": "regression",
    "proprio": "regression",
    "reward": "regression",
}


class RecordedFrames(Dataset):
    """Every frame of one camera of one or several recordings.

    Args:
        name: for reports.
        files: the recordings, joined in this order.
        config: split, camera, target, extras, cache, image_size and so on.

    Attributes:
        groups: the episode of each frame, counted over all recordings.
        cameras: cameras that every recording has.
        camera: the one that is read.
    """

    def __init__(self, name: str, files: list[RecordingFile], config: "DataConfig"):
        self.files, self.config = files, config
        self.cameras, self.camera, self._camera_of = self._choose_camera(config.camera)
        self._index(config)
        fraction = 1.0 if config.crop_fraction is None else config.crop_fraction
        super().__init__(name, Geometry(config.image_size or self._frame_size(), fraction), config.max_bad)
        self.groups = torch.from_numpy(self._group)
        self.choose_target({t: kind for t, kind in _TASKS.items() if self._has(t)}, config.target)
        if self.target in ("task", "instruction", "success"):
            self.classes = self._class_names(self.target)
        self._memory = self._load() if config.cache == "memory" else None

    def __len__(self) -> int:
        return len(self._time)

    def sample_name(self, place: int) -> str:
        return f"{self.files[self._file[place]].path} episode {self._episode[place]} frame {self._time[place]}"

    def _choose_camera(self, wanted: str | None) -> tuple[list[str], str | None, list[str]]:
        """Cameras that every recording has, the one that is read, and its name in each recording.

        Where none is asked for and none is shared (recordings of several suites), each recording gives its first one.
        """
        shared = [c for c in self.files[0].cameras if all(c in f.cameras for f in self.files)]
        blind = [f.task for f in self.files if not f.cameras]
        if blind:
            raise MmsslError(f"the recording of {', '.join(blind)} has no camera at all; record it with pictures.")
        if wanted is not None and wanted not in shared:
            if shared:
                raise unknown_name("camera", wanted, shared)
            listed = "; ".join(f"{f.task}: {', '.join(f.cameras)}" for f in self.files)
            raise MmsslError(f"these recordings share no camera, so not all have {wanted!r} ({listed}); leave it out.")
        camera = wanted or (shared[0] if shared else None)
        names = [camera or file.cameras[0] for file in self.files]
        for extra in self.config.extras:
            for file, name in zip(self.files, names, strict=True):
                if name not in file.planes[extra]:
                    raise MmsslError(f"the recording of {file.task} has no {extra}; record it with --{extra}.")
        return shared, camera, names

    def _frame_size(self) -> tuple[int, int] | None:
        """(H, W) of all frames; an `MmsslError` where the recordings differ."""
        sizes = {f.task: f.frame_size(camera) for f, camera in zip(self.files, self._camera_of, strict=True)}
        if len(set(sizes.values())) > 1:
            raise MmsslError(f"these recordings have frames of different sizes ({sizes}); give image_size.")
        return next(iter(sizes.values()))

    def _index(self, config: "DataConfig") -> None:
        """Fill the place -> (file, episode, time, group) tables of the wanted split."""
        rows, first = [], 0
        for number, file in enumerate(self.files):
            kept = split_episodes(len(file.lengths), config.split, config.test_every, file.task)
            for position in kept:
                length = file.lengths[position]
                rows.append((number, file.episodes[position], length, first + position))
            first += len(file.lengths)
        lengths = np.array([row[2] for row in rows])
        self._file, self._episode, self._group = (np.repeat([row[k] for row in rows], lengths) for k in (0, 1, 3))
        self._time = np.concatenate([np.arange(n) for n in lengths])

    def read(self, place: int) -> dict:
        file, episode, time = self.files[self._file[place]], int(self._episode[place]), int(self._time[place])
        camera = self._camera_of[self._file[place]]
        raw = {"image": file.frame(episode, f"rgb/{camera}", time)}
        if raw["image"].ndim == 1:  # JPEG bytes, as Minari itself writes pictures
            raw["image"] = open_picture(raw["image"].tobytes())
        for extra in self.config.extras:
            raw[extra] = file.frame(episode, f"{extra}/{camera}", time)
        return raw

    def _load(self) -> dict[str, Tensor]:
        """All frames as tensors (N, H, W, ...), read an episode at a time."""
        planes = {"image": "rgb", **{extra: extra for extra in self.config.extras}}
        memory = {}
        for key, plane in planes.items():
            shape, dtype = self.files[0].shape(f"{plane}/{self._camera_of[0]}")
            if len(shape) < 2:
                raise MmsslError(f"{self.files[0].path} stores JPEG frames; use cache: none.")
            check_memory(len(self) * int(np.prod(shape)) * dtype.itemsize, f"the {len(self)} frames of {self.name!r}")
            memory[key] = torch.empty((len(self), *shape), dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
        start = 0
        while start < len(self):
            file, episode = self.files[self._file[start]], int(self._episode[start])
            stop = start + int((self._group == self._group[start]).sum())
            camera = self._camera_of[self._file[start]]
            for key, plane in planes.items():
                self._load_episode(memory[key], start, stop, file, episode, f"{plane}/{camera}")
            start = stop
        return memory

    def _load_episode(self, out: Tensor, start: int, stop: int, file: RecordingFile, episode: int, path: str) -> None:
        """Read the frames of places start..stop into `out`; where the episode is damaged, those that can be read."""
        shape, _ = file.shape(path)
        if shape != out.shape[1:]:
            raise MmsslError(f"{file.path} has frames of {shape[:2]}, the first recording {tuple(out.shape[1:3])}.")
        try:
            out[start:stop] = torch.from_numpy(file.column(episode, path))
        except UNREADABLE:
            for place in range(start, stop):
                try:
                    out[place] = torch.from_numpy(file.frame(episode, path, place - start))
                except UNREADABLE as error:
                    self.bad.add(place, self.sample_name(place), f"{type(error).__name__}: {error}")

    def fetch(
        self, index: Tensor, keys: Tensor | None = None, augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """As `Dataset.fetch`; frames in memory that need no crop come by one gather."""
        if self._memory is None:
            return super().fetch(index, keys, augmentation)
        draws = self.geometry.draws(keys, augmentation)
        index = self.readable_places(index)
        frames = {key: values[index] for key, values in self._memory.items()}  # (B, H, W, ...)
        if draws is None and self.geometry.keeps(frames["image"].shape[1:3]):
            batch = {key: stack_planes(values, key) for key, values in frames.items()}
            return self.label(batch, index)
        arrays = {key: values.numpy() for key, values in frames.items()}
        rows = [
            self.geometry.apply({k: v[row] for k, v in arrays.items()}, draws[row] if draws else None, augmentation)
            for row in range(len(index))
        ]
        return self.collate(rows, index)

    def _has(self, target: str) -> bool:
        return target in ("task", "instruction") or all(target in file.columns for file in self.files)

    def _class_names(self, target: str) -> list[str]:
        if target == "success":
            return ["no", "yes"]
        return list(dict.fromkeys(getattr(file, target) for file in self.files))

    def _labels(self, target: str) -> Tensor:
        if target in ("task", "instruction"):
            names = self._class_names(target)
            numbers = np.array([names.index(getattr(file, target)) for file in self.files])
            return torch.from_numpy(numbers[self._file])
        values = self._values(target)
        return values[:, 0].long() if target == "success" else values

    def _values(self, target: str) -> Tensor:
        """float32 (N, K) of a recorded vector; constant dimensions are judged on every episode of every split."""
        every = [[file.vector(episode, target) for episode in file.episodes] for file in self.files]
        widths = {file.task: rows[0].shape[1] for file, rows in zip(self.files, every, strict=True)}
        if len(set(widths.values())) > 1:
            raise MmsslError(
                f"target {target!r} has different lengths ({widths}); join tasks of one kind, or use target task."
            )
        flat = [episode for rows in every for episode in rows]
        if self.config.drop_constant and target in _VECTORS:
            joined = np.concatenate(flat)
            moving = joined.std(axis=0) > 1e-6 * (1 + np.abs(joined).max(axis=0))
            flat = [episode[:, moving] for episode in flat]
        groups = list(dict.fromkeys(self._group.tolist()))
        return torch.from_numpy(np.concatenate([flat[group] for group in groups]).astype(np.float32))


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


@register_dataset("recorded")
def open_recorded(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Dataset:
    """Frames of one or several recordings, each the folder of a Minari dataset."""
    files = [RecordingFile(folder) for folder in folders]
    name = card.name if card else "+".join(file.task for file in files[:3]) + ("+..." if len(files) > 3 else "")
    return RecordedFrames(name, files, config)
