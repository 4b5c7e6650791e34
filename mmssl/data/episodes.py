"""The episodes of one split of several recordings: cameras, frames in memory, and what was recorded beside each frame.

Whole episodes are held out: neighbouring frames look alike, and a split through an episode would let a probe pass by
memory. Laid end to end, the frames of the split are its rows.
"""

import contextlib
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.data.decode import UNREADABLE, open_picture, to_rgb
from mmssl.data.memory import check_memory
from mmssl.data.recording_file import RecordingFile
from mmssl.data.segmentation_classes import ClassMaps
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
Planes = dict[str, list[str | None]]
"""Batch key -> its path in each recording, e.g. "rgb/corner"; None where the recording lacks it."""


class Episodes:
    """Which episodes of which recordings, in which order.

    Args:
        files: the recordings, joined in this order.
        config: its `split`, `test_every`, `camera`, `cameras`, `extras`, `segmentation` and `drop_constant`.

    Attributes:
        file, episode, group, length: int (E,) of each episode: its recording's number, its id there, its number over
            all recordings and splits, and its number of frames.
        first: int (E,) its first row.
        cameras: cameras that every recording has.
        camera: the one that is read; None where several are, or where each recording has its own.
        maps: geom ids -> classes; None where segmentation is not read, or is to be ids.
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
            raise MmsslError(
                f"the recording of {', '.join(blind)} has no camera at all; record it with pictures, or set "
                "trajectory to read its states and actions."
            )
        self.cameras = [c for c in files[0].cameras if all(c in f.cameras for f in files)]
        self.camera = None if config.cameras else config.camera or (self.cameras[0] if self.cameras else None)
        self.maps = self._class_maps()

    def __len__(self) -> int:
        return len(self.length)

    def _class_maps(self) -> ClassMaps | None:
        if "segmentation" not in self.config.extras or self.config.segmentation == "ids":
            return None
        scenes = [file.metadata.get("geoms") or [] for file in self.files]
        for file, geoms in zip(self.files, scenes, strict=True):
            if file.planes["segmentation"] and not geoms:
                raise MmsslError(
                    f"the recording of {file.task} does not name its geoms, so that its segmentation has no classes; "
                    "set segmentation to ids."
                )
        return ClassMaps(scenes, self.config.segmentation)

    @property
    def frames(self) -> int:
        return int(self.length.sum())

    def name(self, number: int) -> str:
        return f"{self.files[self.file[number]].path} episode {self.episode[number]}"

    def planes(self, pictures: str) -> Planes:
        """Pictures of the chosen camera or cameras under `pictures` ("image" or "video"), and the extras beside them.

        With `cameras` the keys are `<modality>/<camera>`. Vectors have a key of their own, and no camera.

        Raises:
            MmsslError: an unknown camera; no recording has an extra; a recording has none of the cameras.
        """
        config = self.config
        chosen = {f"/{camera}": self._having(camera) for camera in config.cameras} or {"": self._one_camera()}
        for number, file in enumerate(self.files):
            if all(names[number] is None for names in chosen.values()):
                raise MmsslError(
                    f"the recording of {file.task} has none of the cameras {', '.join(config.cameras)}, its own are "
                    f"{', '.join(file.cameras)}; leave it out, or name one of these."
                )
        kinds = {pictures: "rgb", **{extra: extra for extra in config.extras if extra not in VECTORS}}
        pairs = itertools.product(kinds.items(), chosen.items())
        planes = {f"{key}{ending}": self._paths(plane, names) for (key, plane), (ending, names) in pairs}
        return planes | {extra: self._vector(extra) for extra in config.extras if extra in VECTORS}

    def _one_camera(self) -> list[str | None]:
        """Name of the camera in each recording. Where none is asked for and none is shared (recordings of several
        suites), each recording gives its first one.
        """
        wanted = self.config.camera
        if wanted is not None and wanted not in self.cameras:
            if self.cameras:
                raise unknown_name("camera", wanted, self.cameras)
            listed = "; ".join(f"{f.task}: {', '.join(f.cameras)}" for f in self.files)
            raise MmsslError(f"these recordings share no camera, so not all have {wanted!r} ({listed}); leave it out.")
        return [self.camera or file.cameras[0] for file in self.files]

    def _having(self, camera: str) -> list[str | None]:
        known = sorted({name for file in self.files for name in file.cameras})
        if camera not in known:
            raise unknown_name("camera", camera, known)
        return [camera if camera in file.cameras else None for file in self.files]

    def _paths(self, plane: str, names: list[str | None]) -> list[str | None]:
        """Path of a plane in each recording, whose camera has one of `names`."""
        paths = [
            f"{plane}/{name}" if name in file.planes[plane] else None
            for file, name in zip(self.files, names, strict=True)
        ]
        if not any(paths):
            tasks = ", ".join(dict.fromkeys(file.task for file in self.files))
            raise MmsslError(
                f"the recording of {tasks} has no {plane} of {', '.join({n for n in names if n})}; record it with "
                f"--{plane}."
            )
        return paths

    def _vector(self, name: str) -> list[str | None]:
        widths = {file.task: file.shape(name)[0][0] if name in file.columns else None for file in self.files}
        if len(set(widths.values())) > 1 or None in widths.values():
            raise MmsslError(f"extra {name!r} must have one length in all recordings, got {widths}; leave it out.")
        return [name] * len(self.files)

    def frame_size(self, planes: Planes) -> tuple[int, int] | None:
        """(H, W) of all pictures of `planes`; an `MmsslError` where the recordings differ."""
        sizes = {}
        for number, file in enumerate(self.files):
            paths = [paths[number] or "" for paths in planes.values()]
            first = next(path for path in paths if path.startswith("rgb/"))
            sizes[file.task] = file.frame_size(first.removeprefix("rgb/"))
        if len(set(sizes.values())) > 1:
            raise MmsslError(f"these recordings have frames of different sizes ({sizes}); give image_size.")
        return next(iter(sizes.values()))

    def frame(self, number: int, path: str, time: int) -> np.ndarray:
        """One stored frame of one plane of an episode: pixels or JPEG bytes, metres, ids or classes, a vector."""
        return self._classed(number, path, self._file(number).frame(int(self.episode[number]), path, time))

    def read(self, number: int, path: str, times: list[int]) -> np.ndarray:
        """Frames (T, H, W, ...) of one plane of an episode, or rows (T, D), each read once."""
        unique = sorted(set(times))
        stored = [self.frame(number, path, time) for time in unique]
        frames = np.stack([decoded(x) if path.startswith("rgb/") else x for x in stored])
        return frames[np.searchsorted(unique, times)]

    def _file(self, number: int) -> RecordingFile:
        return self.files[self.file[number]]

    def _classed(self, number: int, path: str, values: np.ndarray) -> np.ndarray:
        if self.maps is None or not path.startswith("segmentation/"):
            return values
        return self.maps(self.file[number], values)

    def load(self, planes: Planes, name: str, note: Note) -> dict[str, Tensor]:
        """All rows of each plane as tensors (N, H, W, ...) or (N, D), read an episode at a time; zeros where missing.

        Args:
            planes: what to read.
            name: of the dataset, for messages.
            note: called with each frame that cannot be read.
        """
        memory = {}
        for key, paths in planes.items():
            file, path = next((f, path) for f, path in zip(self.files, paths, strict=True) if path)
            shape, dtype = file.shape(path)
            if len(shape) < 2 and path not in VECTORS:
                raise MmsslError(f"{file.path} stores JPEG frames; use cache: none.")
            needed = self.frames * int(np.prod(shape)) * dtype.itemsize
            check_memory(needed, f"the {self.frames} frames of {name!r}")
            memory[key] = torch.zeros((self.frames, *shape), dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
        for number in range(len(self)):
            for key, paths in planes.items():
                if path := paths[self.file[number]]:
                    self._load_episode(memory[key], number, path, note)
        return memory

    def having(self, planes: Planes) -> dict[str, np.ndarray]:
        """Batch key -> bool (E,), which episodes have it, of those that not all have."""
        there = {key: np.array([path is not None for path in paths])[self.file] for key, paths in planes.items()}
        return {key: has for key, has in there.items() if None in planes[key]}

    def _load_episode(self, out: Tensor, number: int, path: str, note: Note) -> None:
        """Read the rows of an episode into `out`; where it is damaged, those that can be read."""
        file, episode = self._file(number), int(self.episode[number])
        start, stop = int(self.first[number]), int(self.first[number] + self.length[number])
        shape, _ = file.shape(path)
        if shape != out.shape[1:]:
            raise MmsslError(f"{file.path} has frames of {shape[:2]}, the first recording {tuple(out.shape[1:3])}.")
        try:
            out[start:stop] = torch.from_numpy(self._classed(number, path, file.column(episode, path)))
        except UNREADABLE:
            for row in range(start, stop):
                try:
                    out[row] = torch.from_numpy(np.asarray(self.frame(number, path, row - start)))
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

    def vectors(self, name: str) -> Tensor:
        """(N, D): a recorded vector of every row, with the dimensions that never change, in the precision stored.

        Damaged episodes are left out, of which training leaves out what cannot be read.
        """
        parts = []
        for number in range(len(self)):
            with contextlib.suppress(*UNREADABLE):
                parts.append(self._file(number).vector(int(self.episode[number]), name))
        if not parts:
            raise MmsslError(f"no {name!r} of {', '.join(file.task for file in self.files)} can be read; record again.")
        return torch.from_numpy(np.concatenate(parts))


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
