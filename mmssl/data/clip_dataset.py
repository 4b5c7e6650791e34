"""What every dataset of clips is: videos, each one sample, or one sample a view (clips x crops) where it is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.data.clip_crops import ClipGeometry, Cut
from mmssl.data.clips import ClipSampling, clip_draws, frame_indices
from mmssl.data.dataset import BadFiles, Dataset
from mmssl.data.decode import UNREADABLE
from mmssl.data.text import text_encoder
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from mmssl.data.loading import DataConfig


@dataclass(frozen=True)
class Wanted:
    """One clip that a row of a batch wants of a video.

    Args:
        frames: uniform numbers that choose its frames; None for the clip of test time.
        part: its number among `parts` clips of the video.
        cut: how its frames are cropped.
    """

    frames: list[float] | None
    part: int
    parts: int
    cut: Cut


class ClipDataset(Dataset):
    """Base of the datasets of clips. Subclasses write `read_clips`, `video_name`, `decode_whole` and `_labels`.

    Those with a text to each video also write `caption`, and call `read_texts`.

    The place of a sample is `video * views + view`, and its view is `clip * test_crops + crop`.

    Args:
        name: for reports.
        geometry: how frames are cropped.
        videos: how many there are.
        config: its `clip`, `views` and `max_bad`.

    Attributes:
        groups: int64 (N,) the video of each place, so that predictions are averaged over its views; recordings give
            the episode, which is held out whole.
    """

    modality = "video"

    def __init__(self, name: str, geometry: ClipGeometry, videos: int, config: "DataConfig"):
        self.clip = config.clip or ClipSampling()
        self.views = self.clip.test_clips * self.clip.test_crops if config.views else 1
        self.videos = videos
        super().__init__(name, geometry, config.max_bad)
        self.bad = BadFiles(config.max_bad, videos)
        self.groups = torch.arange(videos).repeat_interleave(self.views)

    def __len__(self) -> int:
        return self.videos * self.views

    def video_name(self, video: int) -> str:
        """What a message calls the video, usually its path."""
        raise NotImplementedError

    def read_clips(self, video: int, wanted: Sequence[Wanted]) -> list[dict[str, Tensor]]:
        """Clips of one video, decoded in one pass, each as `ClipGeometry.cut` gives it.

        Raises one of `decode.UNREADABLE`.
        """
        raise NotImplementedError

    def sample_name(self, place: int) -> str:
        return self.video_name(place // self.views)

    def frames_of(self, video: int, n: int, wanted: Wanted) -> list[int]:
        """The frames that a wanted clip of a video of `n` frames takes."""
        return frame_indices(self.clip, n, wanted.frames, wanted.part, wanted.parts)

    def fetch(
        self, index: Tensor, keys: Tensor | None = None, augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """A whole batch: {"video": uint8 (B, T, 3, H, W), "index": int64 (B,), "label"?, "text"?, "text_mask"?}.

        Rows of one video (repeated sampling, views) are decoded in one pass.

        Args:
            index: int64 (B,) places of the samples.
            keys: int64 (B,) from `mmssl.keys.sample_keys`; frames and crop are functions of these alone.
            augmentation: what to draw from the keys; None gives the frames and the crop of test time.
        """
        places, wanted = index.tolist(), self._wanted(index, keys, augmentation)
        rows: list[dict[str, Tensor]] = [{}] * len(places)
        used = index.clone()
        members: dict[int, list[int]] = {}
        for row, place in enumerate(places):
            members.setdefault(place // self.views, []).append(row)
        for video, its_rows in members.items():
            video, clips = self._first_readable_clips(video, places[its_rows[0]], [wanted[row] for row in its_rows])
            for row, clip in zip(its_rows, clips, strict=True):
                rows[row], used[row] = clip, video * self.views + places[row] % self.views
        return self.label(self._stack(rows), used)

    def _wanted(self, index: Tensor, keys: Tensor | None, augmentation: Augmentation | None) -> list[Wanted]:
        """What each row of a batch wants of its video."""
        training = keys is not None and augmentation is not None
        frames = clip_draws(self.clip, keys) if training else [None] * len(index)
        crops = self.geometry.draws(keys, augmentation) or [None] * len(index)
        wanted = []
        for place, frame_draws, crop_draws in zip(index.tolist(), frames, crops, strict=True):
            number, parts = 0, 1
            cut = Cut(crop_draws, augmentation)
            if self.views > 1:
                number, crop = divmod(place % self.views, self.clip.test_crops)
                parts, cut = self.clip.test_clips, Cut(crop_draws, augmentation, crop, self.clip.test_crops)
            wanted.append(Wanted(frame_draws, number, parts, cut))
        return wanted

    def _first_readable_clips(
        self, video: int, place: int, wanted: list[Wanted]
    ) -> tuple[int, list[dict[str, Tensor]]]:
        """Clips of `video`, or of the next readable one after it (round the end), with its number."""
        bad = self._bad_videos()
        for step in range(self.videos):
            here = (video + step) % self.videos
            if here in bad:
                continue
            there = here * self.views + place % self.views
            self.announce(there)
            try:
                return here, self.read_clips(here, wanted)
            except MmsslError:
                raise
            except UNREADABLE as error:
                self.bad.add(there, self.video_name(here), reason_of(error))
        raise MmsslError(self.bad.sentence())

    def _bad_videos(self) -> set[int]:
        return {place // self.views for place in self.bad.places}

    def _known_bad(self) -> Tensor | None:
        if not self.bad.places:
            return None
        bad = torch.zeros(self.videos, dtype=torch.bool)
        bad[list(self._bad_videos())] = True
        return bad.repeat_interleave(self.views)

    def _stack(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Samples (T, ...) of one size as a contiguous batch (B, T, ...)."""
        batch = {}
        for key in rows[0]:
            shapes = {tuple(row[key].shape) for row in rows}
            if len(shapes) > 1:
                sizes = sorted(shape[-2:] for shape in shapes)
                raise MmsslError(
                    f"the videos of dataset {self.name!r} differ in size, e.g. {sizes[0]} and {sizes[-1]}; give "
                    "image_size, e.g. image_size=(224, 224)."
                )
            first = rows[0][key]
            batch[key] = torch.empty((len(rows), *first.shape), dtype=first.dtype)
            for k, row in enumerate(rows):  # one copy a clip: `torch.stack` would keep the layout of the frames
                batch[key][k].copy_(row[key])
        return batch

    def label(self, batch: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """As `Dataset.label`; a label that the clip brings along (its own frames') stays. Texts are put beside it."""
        own = batch.get("label")
        batch = super().label(batch, index)
        if own is not None:
            batch["label"] = own
        if self.text_encoder is not None:
            captions = [next(iter(self.caption(place)), None) for place in index.tolist()]
            batch["text"], batch["text_mask"] = self.text_encoder(captions)
        return batch

    def read_texts(self, config: "DataConfig") -> None:
        """From now on every batch has `text` int64 (B, L) and `text_mask` bool (B, L), if `config.text` asks for it.

        A video without a text has a row of padding.
        """
        if config.text is not None:
            self.text_encoder = text_encoder(config.text)


def reason_of(error: Exception) -> str:
    """Why a video cannot be read; what says so itself needs no name of an error class before it."""
    return str(error) if type(error).__module__.startswith("mmssl.") else f"{type(error).__name__}: {error}"
