"""Recorded episodes as clips: of any camera or of several at once, with depth, segmentation or state of every frame.

A sample is a stretch of an episode, as many to each as clips fit into it without overlap. In training a clip starts
anywhere in its stretch; at test time the clips of an episode are evenly spread. Where views are asked for, an episode
is one sample with `test_clips` clips.
"""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.data.clip_crops import ClipGeometry
from mmssl.data.clip_dataset import ClipDataset, Wanted, reason_of
from mmssl.data.clips import TooShort, frame_indices
from mmssl.data.dataset import stack_planes
from mmssl.data.episodes import VECTORS, Episodes
from mmssl.data.recording_file import RecordingFile
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from mmssl.data.loading import DataConfig

_OF_FRAMES = ("state", "proprio", "reward")  # a clip has that of its last frame


class RecordedClips(ClipDataset):
    """Clips of one or several recordings.

    Args:
        name: for reports.
        files: the recordings, joined in this order.
        config: clip, split, camera or cameras, target, extras, cache, image_size and so on.

    Attributes:
        groups: the episode of each sample, counted over all recordings.
        cameras: cameras that every recording has.
        camera: the one that is read; None where several are, or where each recording has its own.
        lacks: what not all recordings have of the cameras and extras.

    Raises:
        MmsslError: every episode is too short for what `config.clip` asks.
    """

    def __init__(self, name: str, files: list[RecordingFile], config: "DataConfig"):
        self.files, self.config, self.episodes = files, config, Episodes(files, config)
        self._planes = self.episodes.planes("video")
        self.cameras, self.camera = self.episodes.cameras, self.episodes.camera
        self._has = self.episodes.having(self._planes)
        fraction = 1.0 if config.crop_fraction is None else config.crop_fraction
        size = config.image_size or self.episodes.frame_size(self._planes)
        self._cut_up(config)
        super().__init__(name, ClipGeometry(size, fraction), len(self._episode), config)
        self.modality, self.lacks = next(iter(self._planes)), tuple(self._has)
        self.segmentation_classes = None if self.episodes.maps is None else self.episodes.maps.names
        self._check_lengths()
        self.groups = torch.from_numpy(self.episodes.group[self._episode]).repeat_interleave(self.views)
        self.choose_target(self.episodes.targets(), config.target)
        self.classes = self.episodes.class_names(self.target)
        self._values = self.episodes.values(self.target) if self.target in _OF_FRAMES else None
        self._memory = self._load() if config.cache == "memory" else None
        self.read_texts(config)

    def _cut_up(self, config: "DataConfig") -> None:
        """Episode of each sample, its number there, and how many samples its episode has."""
        clip = config.clip
        whole = clip.reach is None or (config.views and clip.test_clips * clip.test_crops > 1)
        counts = np.ones_like(self.episodes.length) if whole else np.maximum(1, self.episodes.length // clip.reach)
        self._episode = np.repeat(np.arange(len(counts)), counts)
        self._part = np.arange(len(self._episode)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._parts = np.repeat(counts, counts)

    def _check_lengths(self) -> None:
        longest = int(self.episodes.length.max())
        if longest < self.clip.needed and (self.clip.frame_by_frame or self.clip.short == "skip"):
            raise MmsslError(
                f"every episode of {self.name!r} is too short, the longest has {longest} frames, but "
                f"{self.clip.demand}; {self.clip.remedy}."
            )

    def video_name(self, video: int) -> str:
        name = self.episodes.name(self._episode[video])
        return name if self._parts[video] == 1 else f"{name} clip {self._part[video]}"

    def caption(self, place: int) -> list[str]:
        """What the robot of the clip is to do."""
        return [self.files[self.episodes.file[self._episode[place // self.views]]].instruction]

    def frames_of(self, video: int, n: int, wanted: Wanted) -> list[int]:
        if self.views > 1:
            return super().frames_of(video, n, wanted)
        return frame_indices(self.clip, n, wanted.frames, int(self._part[video]), int(self._parts[video]))

    def read_clips(self, video: int, wanted: Sequence[Wanted]) -> list[dict[str, Tensor]]:
        number = self._episode[video]
        first, n = int(self.episodes.first[number]), int(self.episodes.length[number])
        times = [self.frames_of(video, n, w) for w in wanted]
        there = [key for key in self._planes if key not in self._has or self._has[key][number]]
        stored = {key: self._stored(key, number, first, list(chain(*times))) for key in there}
        clips = []
        for k, (frames, want) in enumerate(zip(times, wanted, strict=True)):
            rows = slice(k * len(frames), (k + 1) * len(frames))
            raw = {key: values[rows] for key, values in stored.items()}
            vectors = {key: raw.pop(key).float() for key in VECTORS if key in raw}  # (T, D)
            clip = {**self.geometry.cut(raw, tuple(next(iter(raw.values())).shape[1:3]), want.cut), **vectors}
            if self._values is not None:
                clip["label"] = self._values[first + frames[-1]]
            clips.append(clip)
        return clips

    def _stored(self, key: str, number: int, first: int, times: list[int]) -> Tensor:
        """Frames (T, H, W, ...) of one plane of an episode, from memory or from the disk."""
        if self._memory is not None:
            return self._memory[key][first + torch.tensor(times)]
        path = self._planes[key][self.episodes.file[number]]
        return torch.from_numpy(self.episodes.read(number, path, times))

    def _stack(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """As `ClipDataset._stack`, with zeros for what a clip lacks."""
        present = {f"present/{key}": torch.tensor([key in row for row in rows]) for key in self.lacks}
        for row in rows:
            frames, _, *size = next(x for key, x in row.items() if key.startswith("video")).shape
            for key in self.lacks:
                row.setdefault(key, _no_frames(key, frames, size))
        return present | super()._stack(rows)

    def _load(self) -> dict[str, Tensor]:
        def note(row: int, error: Exception) -> None:
            """An episode with a damaged frame gives no clip."""
            number = int(np.searchsorted(self.episodes.first, row, "right")) - 1
            for video in np.flatnonzero(self._episode == number).tolist():
                self.bad.add(video * self.views, self.video_name(video), reason_of(error))

        return self.episodes.load(self._planes, self.name, note)

    def fetch(
        self, index: Tensor, keys: Tensor | None = None, augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """As `ClipDataset.fetch`; clips in memory that need no crop come by one gather."""
        if self._memory is None or self.geometry.draws(keys, augmentation) is not None:
            return super().fetch(index, keys, augmentation)
        if not self.geometry.keeps(self._memory[self.modality].shape[1:3]):
            return super().fetch(index, keys, augmentation)
        index = self.readable_places(index)
        try:
            rows = torch.tensor(self._rows(index, keys, augmentation))  # (B, T)
        except TooShort:  # the slow way counts it and finds the next one
            return super().fetch(index, keys, augmentation)
        numbers = self._episode[(index // self.views).numpy()]
        batch = {f"present/{key}": torch.from_numpy(has[numbers]) for key, has in self._has.items()}
        batch |= {key: stack_planes(values[rows], key) for key, values in self._memory.items()}
        if self._values is not None:
            batch["label"] = self._values[rows[:, -1]]
        return self.label(batch, index)

    def _rows(self, index: Tensor, keys: Tensor | None, augmentation: Augmentation | None) -> list[list[int]]:
        """Rows (B, T) of the frames that a batch takes."""
        rows = []
        for place, wanted in zip(index.tolist(), self._wanted(index, keys, augmentation), strict=True):
            video = place // self.views
            first, n = (int(x[self._episode[video]]) for x in (self.episodes.first, self.episodes.length))
            rows.append([first + time for time in self.frames_of(video, n, wanted)])
        return rows

    def decode_whole(self, place: int) -> int:
        """Decodes the sample's own stretch of its episode."""
        video = place // self.views
        number, part, parts = self._episode[video], int(self._part[video]), int(self._parts[video])
        n = int(self.episodes.length[number])
        times = list(range(part * n // parts, (part + 1) * n // parts))
        for paths in self._planes.values():
            if path := paths[self.episodes.file[number]]:
                self.episodes.read(number, path, times)
        return len(times)

    def _labels(self, target: str) -> Tensor:
        episode = torch.from_numpy(self._episode).repeat_interleave(self.views)  # (N,)
        if target in ("task", "instruction"):
            return self.episodes.classes(target)[episode]
        values = self.episodes.values(target)
        if target == "success":
            parts = values[:, 0].split(self.episodes.length.tolist())
            return torch.stack([part.max() for part in parts]).long()[episode]
        rows = self._rows(torch.arange(len(self)), None, None)  # of the clips of test time
        return values[torch.tensor(rows)[:, -1]]


def _no_frames(key: str, frames: int, size: list[int]) -> Tensor:
    """What stands in a batch in place of a clip that is not there."""
    if key.startswith("segmentation"):
        return torch.zeros(frames, *size, dtype=torch.int64)
    if key.startswith("depth"):
        return torch.zeros(frames, 1, *size)
    return torch.zeros(frames, 3, *size, dtype=torch.uint8)
