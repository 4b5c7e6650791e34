"""Videos whose frames have answers: masks of objects, part labels, or joints. What label propagation is judged on.

A sequence is read a frame at a time. As a dataset its frames are single images, grouped by sequence.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from PIL import Image

from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.decode import UNREADABLE, open_picture, to_rgb
from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from mmssl.data.loading import DataConfig

Kind = Literal["masks", "parts", "keypoints"]
IGNORE = 255
"""The id of pixels that count neither for nor against anybody."""


class LabelledVideo:
    """One sequence. A subclass sets the fields and writes `_frame` and `_labels`.

    Attributes:
        name: what a table calls it.
        kind: what its labels are: "masks" of objects (ids are the sequence's own), "parts" (ids are classes, the same
            in all sequences) or "keypoints".
        classes: names: of the part with id 0, 1, ..., or of each joint; empty for objects without names.
        times: numbers of the frames in the source, in order.
    """

    kind: ClassVar[Kind] = "masks"
    classes: tuple[str, ...] = ()

    def __init__(self, name: str, length: int):
        self.name = name
        self.times: Sequence[int] = range(length)

    def __len__(self) -> int:
        return len(self.times)

    def frame(self, place: int) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return self._frame(self.times[place])

    def labels(self, place: int) -> np.ndarray | None:
        """uint8 (H, W) ids, 0 = background, 255 = to be ignored; or float32 (K, 2) joints, x and y in pixels.

        None where the frame is not annotated; the first one always is.
        """
        return self._labels(self.times[place])

    def every(self, stride: int) -> "LabelledVideo":
        """The same sequence with only every `stride`-th frame, from the first on."""
        thinned = copy.copy(self)
        thinned.times = self.times[::stride]
        return thinned

    def _frame(self, time: int) -> np.ndarray:
        raise NotImplementedError

    def _labels(self, time: int) -> np.ndarray | None:
        raise NotImplementedError


class PictureSequence(LabelledVideo):
    """A folder of frames.

    Args:
        frames: the pictures in their order.

    Raises:
        MmsslError: no frame at all.
    """

    def __init__(self, name: str, folder: Path, frames: list[Path]):
        if not frames:
            raise MmsslError(f"the sequence {name!r} has no frames in {folder}; unpack the dataset again.")
        super().__init__(name, len(frames))
        self.frames = frames

    def _frame(self, time: int) -> np.ndarray:
        try:
            return np.asarray(to_rgb(open_picture(self.frames[time])))
        except UNREADABLE as error:
            raise unreadable(self.frames[time], self.name, error) from None


class MaskSequence(PictureSequence):
    """A folder of frames and a folder of palette pictures whose indices are the ids.

    Args:
        masks: one file a frame, None where there is none; the first frame must have one.
    """

    def __init__(self, name: str, folder: Path, frames: list[Path], masks: list[Path | None]):
        super().__init__(name, folder, frames)
        self.masks = masks
        if masks[0] is None:
            raise MmsslError(
                f"the sequence {name!r} has no annotation of its first frame ({frames[0].name}), from which labels are "
                "propagated; give a split with annotations."
            )

    def _labels(self, time: int) -> np.ndarray | None:
        return None if self.masks[time] is None else read_ids(self.masks[time], self.name)


def read_ids(file: Path, name: str) -> np.ndarray:
    """uint8 (H, W) ids of a palette or grey picture; anything else is an `MmsslError`."""
    try:
        with Image.open(file) as picture:
            if picture.mode not in ("P", "L"):
                raise MmsslError(
                    f"{file} is a picture of mode {picture.mode}; an annotation holds one id a pixel (palette or grey)."
                )
            return np.asarray(picture)
    except MmsslError:
        raise
    except UNREADABLE as error:
        raise unreadable(file, name, error) from None


def unreadable(file: Path, name: str, error: Exception) -> MmsslError:
    return MmsslError(
        f"{file} of the sequence {name!r} cannot be read ({type(error).__name__}: {error}); unpack the dataset again."
    )


def pair_by_stem(frames: list[Path], folder: Path) -> list[Path | None]:
    """For each frame the PNG of the same stem in `folder`, or None."""
    there = {file.stem: file for file in folder.glob("*.png")}
    return [there.get(frame.stem) for frame in frames]


def read_list(file: Path, what: str) -> list[str]:
    """The words at the line beginnings of a list file. Raises an `MmsslError` where there is no such file."""
    try:
        return [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    except OSError:
        beside = sorted(other.stem for other in file.parent.glob("*.txt"))
        listed = f"there: {', '.join(beside)}" if beside else "the folder holds no list"
        raise MmsslError(f"there is no list {file} of {what} ({listed}); give one that is there.") from None


class LabelledFrames(Dataset):
    """The frames of labelled sequences as single images; `groups` is the sequence of each.

    Attributes:
        videos: the sequences.
    """

    def __init__(self, name: str, videos: list[LabelledVideo], config: "DataConfig"):
        if config.clip is not None:
            raise MmsslError(
                f"{name!r} gives single frames, for its labels; for clips give its folder of frame folders."
            )
        self.videos = videos
        self._video = np.repeat(np.arange(len(videos)), [len(video) for video in videos])
        self._place = np.concatenate([np.arange(len(video)) for video in videos])
        fraction = 1.0 if config.crop_fraction is None else config.crop_fraction
        super().__init__(name, Geometry(config.image_size, fraction), config.max_bad)
        self.groups = torch.from_numpy(self._video)

    def __len__(self) -> int:
        return len(self._place)

    def sample_name(self, place: int) -> str:
        return f"{self.videos[self._video[place]].name} frame {self._place[place]}"

    def read(self, place: int) -> dict:
        return {"image": self.videos[self._video[place]].frame(int(self._place[place]))}
