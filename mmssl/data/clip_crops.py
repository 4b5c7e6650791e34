"""From the frames of a clip to a tensor of a fixed size, all frames cropped alike, in the worker.

Frames stay (T, H, W, 3) in memory until they are small: torch's antialiased resizing of bytes is fastest in that layout
(on one core about four times as fast as Pillow frame by frame, with the same filter).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmssl.data.crops import Box, Geometry, cover_size, drawn_box
from mmssl.data.rand_augment import rand_augment
from mmssl.data.transforms import Augmentation

# Cropping whole frames and resizing the crop alone takes less time than resizing whole frames as they are decoded, so
# that is done only where whole frames would fill the memory of a worker, and only where it makes them clearly smaller.
HELD_BYTES = 128 * 2**20
DECODER_SHRINK = 0.75


@dataclass(frozen=True)
class Cut:
    """How the frames of one clip are cut out: what is drawn for it in training, and which crop it is at test time.

    Args:
        draws: uniform numbers of the sample, or None where nothing is drawn.
        augmentation: what to draw; None for the evaluation geometry.
        crop: number of the crop among `crops`, which lie evenly from end to end of the longer side.
    """

    draws: list[float] | None = None
    augmentation: Augmentation | None = None
    crop: int = 0
    crops: int = 1


class ClipGeometry(Geometry):
    """How the frames of a clip become a fixed-size tensor; see `Geometry` for its fields."""

    def decode_size(self, seen: tuple[int, int], cuts: list[Cut], frames: int) -> tuple[int, int] | None:
        """(H, W) at which `frames` frames of (height, width) `seen` are decoded for all of `cuts`; None: their own.

        It is the smallest size at which no crop has fewer pixels than it needs.
        """
        if self.image_size is None or 3 * seen[0] * seen[1] * frames <= HELD_BYTES:
            return None
        boxes = [drawn_box(seen, self.image_size, cut.draws, cut.augmentation) for cut in cuts]
        cover = cover_size(seen, self.image_size, self.crop_fraction)
        shrink = max(cover[0] / seen[0] if box is None else self._shrink(box) for box in boxes)
        if shrink > DECODER_SHRINK:
            return None
        if all(box is None for box in boxes):
            return cover
        return math.ceil(seen[0] * shrink), math.ceil(seen[1] * shrink)

    def _shrink(self, box: Box) -> float:
        left, top, right, bottom = box
        return max(self.image_size[0] / (bottom - top), self.image_size[1] / (right - left))

    def cut(self, frames: dict[str, np.ndarray | Tensor], seen: tuple[int, int], cut: Cut) -> dict[str, Tensor]:
        """All frames of one sample, cut out alike.

        Args:
            frames: "video..." uint8 (T, H, W, 3), "depth..." (T, H, W), "segmentation..." int (T, H, W); H and W may
                be smaller than `seen`, as `decode_size` has it.
            seen: (height, width) of the video itself, in which the crop is drawn.

        Returns:
            uint8 (T, 3, h, w), float32 (T, 1, h, w), int64 (T, h, w); not contiguous.
        """
        box = drawn_box(seen, self.image_size, cut.draws, cut.augmentation)
        return {key: self._cut(key, torch.as_tensor(value), seen, box, cut) for key, value in frames.items()}

    def _cut(self, key: str, x: Tensor, seen: tuple[int, int], box: Box | None, cut: Cut) -> Tensor:
        ids, depth = key.startswith("segmentation"), key.startswith("depth")
        x = x.float()[:, None] if ids or depth else x.permute(0, 3, 1, 2)  # (T, C, H, W); ids are exact up to 2**24
        method = self.interpolation if cut.augmentation is None else cut.augmentation.interpolation
        method = "nearest-exact" if ids else "bilinear" if depth else method
        x = self._evaluation(x, method, seen, cut) if box is None else self._random(x, method, seen, box)
        if ids:
            return x[:, 0].long()
        if cut.draws is not None and cut.augmentation.rand_augment and not depth:
            return _rand_augment(x, cut.draws[4 * cut.augmentation.crop_attempts :], cut.augmentation)
        return x

    def _random(self, x: Tensor, method: str, seen: tuple[int, int], box: Box) -> Tensor:
        left, top, right, bottom = scaled_box(box, seen, tuple(x.shape[-2:]))
        size = self.image_size or (box[3] - box[1], box[2] - box[0])
        return resize(x[..., top:bottom, left:right], size, method)

    def _evaluation(self, x: Tensor, method: str, seen: tuple[int, int], cut: Cut) -> Tensor:
        if self.image_size is None:
            return x
        x = resize(x, cover_size(seen, self.image_size, self.crop_fraction), method)
        slack = [have - want for have, want in zip(x.shape[-2:], self.image_size, strict=True)]
        offsets = [round(s / 2) for s in slack]
        if cut.crops > 1:
            longer = int(slack[1] >= slack[0])
            offsets[longer] = round(cut.crop * slack[longer] / (cut.crops - 1))
        (top, left), (height, width) = offsets, self.image_size
        return x[..., top : top + height, left : left + width]


def scaled_box(box: Box, seen: tuple[int, int], size: tuple[int, int]) -> Box:
    """`box` of a picture of (height, width) `seen`, in whole pixels of the same picture at `size`; never empty."""
    if tuple(seen) == tuple(size):
        return box
    spans = []
    for k, (first, last) in enumerate(((box[0], box[2]), (box[1], box[3]))):
        scale, end = size[1 - k] / seen[1 - k], size[1 - k]
        start = min(round(first * scale), end - 1)
        spans.append((start, min(max(round(last * scale), start + 1), end)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def resize(x: Tensor, size: tuple[int, int], method: str) -> Tensor:
    """(T, C, H, W) at `size` (h, w), antialiased but for "nearest-exact"."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if method == "nearest-exact":
        return F.interpolate(x, size, mode=method)
    return F.interpolate(x, size, mode=method, align_corners=False, antialias=True)


def _rand_augment(x: Tensor, draws: list[float], augmentation: Augmentation) -> Tensor:
    """The same operations on every frame of uint8 (T, 3, H, W)."""
    frames = [Image.fromarray(frame.numpy()) for frame in x.permute(0, 2, 3, 1).contiguous()]
    done = np.stack([np.asarray(rand_augment(frame, draws, augmentation)) for frame in frames])
    return torch.from_numpy(done).permute(0, 3, 1, 2)
