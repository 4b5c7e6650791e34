"""Recorded episodes (Minari, HDF5) as single frames with state, task and more as labels.

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
from mmssl.data.episodes import Episodes
from mmssl.data.recorded_clips import RecordedClips
from mmssl.data.recording_file import RecordingFile
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig


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
        self.files, self.config, self.episodes = files, config, Episodes(files, config)
        self.cameras = self.episodes.cameras
        self.camera, self._camera_of = self.episodes.camera(config.camera)
        lengths = self.episodes.length
        self._row_episode = np.repeat(np.arange(len(lengths)), lengths)
        self._time = np.arange(len(self._row_episode)) - np.repeat(self.episodes.first, lengths)
        fraction = 1.0 if config.crop_fraction is None else config.crop_fraction
        size = config.image_size or self.episodes.frame_size(self._camera_of)
        super().__init__(name, Geometry(size, fraction), config.max_bad)
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
        file, episode = self.files[self.episodes.file[number]], int(self.episodes.episode[number])
        camera = self._camera_of[self.episodes.file[number]]
        raw = {"image": file.frame(episode, f"rgb/{camera}", time)}
        if raw["image"].ndim == 1:  # JPEG bytes, as Minari itself writes pictures
            raw["image"] = open_picture(raw["image"].tobytes())
        for extra in self.config.extras:
            raw[extra] = file.frame(episode, f"{extra}/{camera}", time)
        return raw

    def _load(self) -> dict[str, Tensor]:
        planes = {"image": "rgb", **{extra: extra for extra in self.config.extras}}
        paths = {key: [f"{plane}/{camera}" for camera in self._camera_of] for key, plane in planes.items()}

        def note(row: int, error: Exception) -> None:
            self.bad.add(row, self.sample_name(row), f"{type(error).__name__}: {error}")

        return self.episodes.load(paths, self.name, note)

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

    def _labels(self, target: str) -> Tensor:
        if target in ("task", "instruction"):
            return self.episodes.classes(target)[self._row_episode]
        values = self.episodes.values(target)
        return values[:, 0].long() if target == "success" else values


@register_dataset("recorded")
def open_recorded(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Dataset:
    """Frames, or with `config.clip` clips, of one or several recordings, each the folder of a Minari dataset."""
    files = [RecordingFile(folder) for folder in folders]
    name = card.name if card else "+".join(file.task for file in files[:3]) + ("+..." if len(files) > 3 else "")
    if config.clip is not None:
        return RecordedClips(name, files, config)
    if config.cameras:
        raise MmsslError(f"several cameras ({', '.join(config.cameras)}) at once need clip; for frames give camera.")
    return RecordedFrames(name, files, config)
