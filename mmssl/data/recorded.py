"""Recorded episodes (Minari, HDF5) as single frames with state, task and more as labels, of one camera or of several.

Frames are stored one a chunk, so a frame is read without its episode. With `clip` set, the same recordings give clips
(`recorded_clips.py`).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset, stack_planes
from mmssl.data.decode import open_picture
from mmssl.data.episodes import VECTORS, Episodes
from mmssl.data.recorded_clips import RecordedClips
from mmssl.data.recording_file import RecordingFile
from mmssl.data.trajectories import open_trajectories
from mmssl.data.transforms import Augmentation
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig


class RecordedFrames(Dataset):
    """Every frame of one or several recordings, seen by one camera or by several at once.

    Args:
        name: for reports.
        files: the recordings, joined in this order.
        config: split, camera or cameras, target, extras, cache, image_size and so on.

    Attributes:
        groups: the episode of each frame, counted over all recordings.
        cameras: cameras that every recording has.
        camera: the one that is read; None where several are, or where each recording has its own.
        lacks: what not all recordings have of the cameras and extras.
    """

    def __init__(self, name: str, files: list[RecordingFile], config: "DataConfig"):
        self.files, self.config, self.episodes = files, config, Episodes(files, config)
        self._planes = self.episodes.planes("image")
        self.cameras, self.camera, self.modality = self.episodes.cameras, self.episodes.camera, next(iter(self._planes))
        has = self.episodes.having(self._planes)
        lengths = self.episodes.length
        self._row_episode = np.repeat(np.arange(len(lengths)), lengths)
        self._time = np.arange(len(self._row_episode)) - np.repeat(self.episodes.first, lengths)
        fraction = 1.0 if config.crop_fraction is None else config.crop_fraction
        size = config.image_size or self.episodes.frame_size(self._planes)
        super().__init__(name, Geometry(size, fraction), config.max_bad)
        self.lacks = tuple(has)
        self._has = {key: torch.from_numpy(there[self._row_episode]) for key, there in has.items()}  # bool (N,)
        self.segmentation_classes = None if self.episodes.maps is None else self.episodes.maps.names
        self.groups = torch.from_numpy(self.episodes.group[self._row_episode])
        self.choose_target(self.episodes.targets(), config.target)
        self.classes = self.episodes.class_names(self.target)
        self._memory = self._load() if config.cache == "memory" else None

    def __len__(self) -> int:
        return len(self._time)

    def sample_name(self, place: int) -> str:
        return f"{self.episodes.name(self._row_episode[place])} frame {self._time[place]}"

    def read(self, place: int) -> dict:
        number, time = self._row_episode[place], int(self._time[place])
        raw = {}
        for key, paths in self._planes.items():
            if path := paths[self.episodes.file[number]]:
                raw[key] = self.episodes.frame(number, path, time)
                if path.startswith("rgb/") and raw[key].ndim == 1:  # JPEG bytes, as Minari itself writes pictures
                    raw[key] = open_picture(raw[key].tobytes())
        return raw

    def arrays(self, place: int, draws: list[float] | None, augmentation: Augmentation | None) -> dict:
        return self._cropped(self.read(place), draws, augmentation)

    def _cropped(self, raw: dict, draws: list[float] | None, augmentation: Augmentation | None) -> dict:
        """Pictures as the geometry cuts them; vectors (D,) as (1, D)."""
        vectors = {key: np.asarray(raw.pop(key), np.float32)[None] for key in VECTORS if key in raw}
        return {**self.geometry.apply(raw, draws, augmentation), **vectors}

    def _load(self) -> dict[str, Tensor]:
        def note(row: int, error: Exception) -> None:
            self.bad.add(row, self.sample_name(row), f"{type(error).__name__}: {error}")

        return self.episodes.load(self._planes, self.name, note)

    def fetch(
        self, index: Tensor, keys: Tensor | None = None, augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """As `Dataset.fetch`; frames in memory that need no crop come by one gather."""
        if self._memory is None:
            return super().fetch(index, keys, augmentation)
        draws = self.geometry.draws(keys, augmentation)
        index = self.readable_places(index)
        frames = {key: values[index] for key, values in self._memory.items()}  # (B, H, W, ...)
        if draws is None and self.geometry.keeps(frames[self.modality].shape[1:3]):
            batch = {f"present/{key}": has[index] for key, has in self._has.items()}
            return self.label(batch | {key: stack_planes(values, key) for key, values in frames.items()}, index)
        arrays = {key: values.numpy() for key, values in frames.items()}
        rows = []
        for row, place in enumerate(index.tolist()):
            there = {k: v[row] for k, v in arrays.items() if k not in self._has or self._has[k][place]}
            rows.append(self._cropped(there, draws[row] if draws else None, augmentation))
        return self.collate(rows, index)

    def _labels(self, target: str) -> Tensor:
        if target in ("task", "instruction"):
            return self.episodes.classes(target)[self._row_episode]
        values = self.episodes.values(target)
        return values[:, 0].long() if target == "success" else values


@register_dataset("recorded")
def open_recorded(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Dataset:
    """Frames, with `config.clip` clips, with `config.trajectory` windows of states and actions, of recordings.

    Each is the folder of a Minari dataset.
    """
    if config.trajectory is not None:
        return open_trajectories(folders, config, card)
    files = [RecordingFile(folder) for folder in folders]
    name = card.name if card else "+".join(file.task for file in files[:3]) + ("+..." if len(files) > 3 else "")
    if config.clip is not None:
        return RecordedClips(name, files, config)
    return RecordedFrames(name, files, config)
