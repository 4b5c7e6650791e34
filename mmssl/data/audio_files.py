"""Files of sound, or the sound tracks of videos, with an optional class or several each; and folders of them."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.data.audio import AudioUnreadable, Sound, open_sound
from mmssl.data.audio_sampling import AudioSampling, first_sample, to_length
from mmssl.data.clip_dataset import reason_of
from mmssl.data.crops import Geometry
from mmssl.data.dataset import BadFiles, Dataset
from mmssl.data.decode import UNREADABLE
from mmssl.data.folders import PathList
from mmssl.data.label_sets import LabelSets
from mmssl.data.transforms import AUDIO_STREAM, Augmentation
from mmssl.errors import MmsslError
from mmssl.keys import uniform

if TYPE_CHECKING:
    from mmssl.data.loading import DataConfig

_AT_ONCE = 60  # seconds that are held at once where a whole file is decoded
Segments = list[tuple[float, float] | None]


class AudioFiles(Dataset):
    """Stretches of sound files, `audio` float32 (B, 1, S), of `config.audio.seconds` each.

    The place of a sample is `file * views + view`.

    Args:
        files: paths of sounds, or of videos whose sound track is meant.
        labels: class id of each file; or class ids of each, which gives `label` float32 (B, K); or None.
        classes: class names in label order, or None.
        sampling: which stretch of each makes a sample.
        segments: (start, end) in seconds of the part of each file that is meant, or None for the whole. A file that is
            shorter than `end` has been cut to that part already.
    """

    modality = "audio"

    def __init__(
        self,
        name: str,
        files: list[str],
        labels: list[int] | LabelSets | None,
        classes: list[str] | None,
        sampling: AudioSampling,
        config: "DataConfig",
        segments: Segments | None = None,
    ):
        _refuse(name, config)
        self.files, self.audio = PathList(files), sampling
        self.views = sampling.test_clips if config.views else 1
        super().__init__(name, Geometry(None), config.max_bad)
        self.classes = classes
        self.bad = BadFiles(config.max_bad, len(files))
        self.groups = torch.arange(len(files)).repeat_interleave(self.views)
        several = isinstance(labels, LabelSets)
        self._ids = labels if labels is None or several else torch.tensor(labels, dtype=torch.int64)
        tasks = {} if labels is None else {"class": "multi_label" if several else "single_label"}
        self.choose_target(tasks, config.target, None if labels is None else "class")
        self._segments = None if segments is None else _packed(segments)

    def __len__(self) -> int:
        return len(self.files) * self.views

    def sample_name(self, place: int) -> str:
        return self.files[place // self.views]

    def fetch(
        self, index: Tensor, keys: Tensor | None = None, augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """A whole batch: {"audio": float32 (B, 1, S), "index": int64 (B,), "label"?}.

        Args:
            index: int64 (B,) places of the samples.
            keys: int64 (B,) from `mmssl.keys.sample_keys`; where a sample begins is a function of these alone.
            augmentation: None gives the stretches of test time.
        """
        training = keys is not None and augmentation is not None
        draws = uniform(keys, 1, AUDIO_STREAM)[:, 0].tolist() if training else [None] * len(index)
        sounds, used = torch.empty(len(index), 1, self.audio.samples), index.clone()
        for row, (place, draw) in enumerate(zip(index.tolist(), draws, strict=True)):
            used[row], sound = self._first_readable_sound(place, draw)
            sounds[row, 0] = torch.from_numpy(sound)
        return self.label({"audio": sounds}, used)

    def _first_readable_sound(self, place: int, draw: float | None) -> tuple[int, np.ndarray]:
        """(S,) of the file at `place`, or of the next readable one after it (round the end), with its own place."""
        first, view = divmod(place, self.views)
        for step in range(len(self.files)):
            file = (first + step) % len(self.files)
            here = file * self.views + view
            if file * self.views in self.bad.places:
                continue
            self.announce(here)
            try:
                return here, self.read_sound(file, draw, view)
            except MmsslError:
                raise
            except UNREADABLE as error:
                self.bad.add(file * self.views, self.files[file], reason_of(error))
        raise MmsslError(self.bad.sentence())

    def read_sound(self, file: int, draw: float | None = None, view: int = 0) -> np.ndarray:
        """float32 (S,): one sample of a file. Raises one of `decode.UNREADABLE`.

        Args:
            draw: a uniform number that says where it begins; None for the stretch `view` of test time.
        """
        sampling, rate = self.audio, self.audio.sample_rate
        with open_sound(self.files[file]) as sound:
            begin, n = self._part(file, sound)
            first = first_sample(sampling, n, draw, view, self.views)
            wave = sound.read(rate, begin + first, min(sampling.samples, n), sampling.channel)
            if sampling.silent == "skip" and not wave.any() and not sound.read(rate, begin, n, sampling.channel).any():
                raise AudioUnreadable("silent: every sample is 0")
            return to_length(sampling, wave)

    def _part(self, file: int, sound: Sound) -> tuple[int, int]:
        """(first, number) of the samples of a file that are meant, at the wanted rate."""
        rate, whole = self.audio.sample_rate, sound.length(self.audio.sample_rate)
        start, end = (0.0, 0.0) if self._segments is None else self._segments[file].tolist()
        first, last = round(start * rate), round(end * rate)
        return (first, last - first) if first < last <= whole else (0, whole)

    def decode_whole(self, place: int) -> int:
        """Decode all of a file: its length in samples at the wanted rate. Raises one of `decode.UNREADABLE`."""
        file = place // self.views
        with open_sound(self.files[file]) as sound:
            facts = sound.facts
            for first in range(0, facts.frames, _AT_ONCE * facts.rate):
                sound.read(facts.rate, first, _AT_ONCE * facts.rate, self.audio.channel)
            length = sound.length(self.audio.sample_rate)
        self.read_sound(file)
        return length

    def _known_bad(self) -> Tensor | None:
        if not self.bad.places:
            return None
        bad = torch.zeros(len(self.files), dtype=torch.bool)
        bad[[place // self.views for place in self.bad.places]] = True
        return bad.repeat_interleave(self.views)

    def _labels(self, target: str) -> Tensor:
        ids = self._ids[torch.arange(len(self._ids))] if isinstance(self._ids, LabelSets) else self._ids
        return ids.repeat_interleave(self.views, dim=0)

    def label(self, batch: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        batch["index"] = index
        if self.target is not None:
            batch["label"] = self._ids[index // self.views]
        return batch

    def target_labels(self) -> Tensor:
        """As `labels`; not kept, as no batch needs them."""
        return self.labels()

    def label_pairs(self) -> tuple[Tensor, Tensor]:
        if not isinstance(self._ids, LabelSets) or self.views > 1:
            return super().label_pairs()
        return self._ids.pairs()


def _packed(segments: Segments) -> Tensor:
    """float64 (N, 2), (0, 0) for a whole file."""
    return torch.tensor([(0.0, 0.0) if s is None else s for s in segments], dtype=torch.float64)


def _refuse(name: str, config: "DataConfig") -> None:
    """Options of pictures and recordings."""
    if config.cache == "memory":
        raise MmsslError("cache: memory holds images and recordings; files of sound are decoded: use cache: none.")
    for option in ("image_size", "clip", "camera", "cameras", "extras"):
        if getattr(config, option):
            raise MmsslError(f"{option} is of pictures, and {name!r} holds sound; leave it out.")
