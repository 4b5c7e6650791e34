"""From a picture of any size to an array of a fixed size, one sample at a time, in the worker.

Training takes a random-resized crop whose place is a function of the sample's key. Evaluation scales the picture so
that it covers the wanted size divided by `crop_fraction` and takes the centre, as the published ImageNet figures do.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from mmssl.data.decode import to_rgb, upright_size
from mmssl.data.rand_augment import N_DRAWS as RAND_AUGMENT_DRAWS
from mmssl.data.rand_augment import rand_augment
from mmssl.data.transforms import CROP_STREAM, Augmentation
from mmssl.keys import uniform

RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
Box = tuple[int, int, int, int]  # left, top, right, bottom; whole pixels
# (across, down) in quarters of what is left over: corners and centre, then middles of the sides and inner quarters
_FIXED_OFFSETS = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 2)),
    *((0, 2), (4, 2), (2, 4), (2, 0)),
    *((1, 1), (3, 1), (1, 3), (3, 3)),
)


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes a fixed-size array.

    Args:
        image_size: (H, W) of the result; None keeps each picture's own size.
        crop_fraction: share of the resized picture's side that the evaluation crop keeps (0.875 = 224 of 256).
        interpolation: "bicubic" or "bilinear".
    """

    image_size: tuple[int, int] | None = None
    crop_fraction: float = 0.875
    interpolation: str = "bicubic"

    def keeps(self, size: tuple[int, ...]) -> bool:
        """True where a picture of this (H, W) comes out as it is."""
        return self.image_size is None or (self.crop_fraction == 1.0 and tuple(size) == self.image_size)

    def draws(self, keys: Tensor | None, augmentation: Augmentation | None) -> list[list[float]] | None:
        """Uniform numbers for each sample of a batch, or None where nothing is drawn in the worker."""
        if keys is None or augmentation is None:
            return None
        if not crops_at_random(augmentation) and not augmentation.rand_augment:
            return None
        wanted = 4 * augmentation.crop_attempts + RAND_AUGMENT_DRAWS * augmentation.rand_augment_ops
        return uniform(keys, wanted, CROP_STREAM).tolist()

    def apply(self, raw: dict, draws: list[float] | None, augmentation: Augmentation | None) -> dict[str, np.ndarray]:
        """All pictures of one sample, cropped alike: uint8 (H, W, 3), depth float32 (H, W), segmentation int (H, W)."""
        main = next(iter(raw.values()))
        height, width = upright_size(main) if isinstance(main, Image.Image) else main.shape[:2]
        box = drawn_box((height, width), self.image_size, draws, augmentation)
        out = {}
        for key, picture in raw.items():
            if key.startswith(("depth", "segmentation")):
                out[key] = self._plane(picture, box, nearest=key.startswith("segmentation"))
            else:
                out[key] = np.asarray(self._picture(picture, (height, width), box, draws, augmentation))
        return out

    def _picture(self, picture, size, box, draws, augmentation) -> Image.Image | np.ndarray:
        if isinstance(picture, np.ndarray):
            if box is None and draws is None and self.keeps(picture.shape[:2]):
                return picture
            picture = Image.fromarray(picture)
        method = RESAMPLE[augmentation.interpolation if augmentation else self.interpolation]
        if box is None:
            done = centre(to_rgb(picture), self.image_size, self.crop_fraction, method)
        else:
            done = crop_resize(picture, size, box, self.image_size, method)
        if augmentation is not None and augmentation.rand_augment and draws is not None:
            done = rand_augment(done, draws[4 * augmentation.crop_attempts :], augmentation)
        return done

    def _plane(self, plane: np.ndarray, box: Box | None, nearest: bool) -> np.ndarray:
        """Depth or segmentation under the same crop; ids, and depth with unknown places (0), are never averaged."""
        plane = plane.astype(np.int32 if nearest else np.float32)
        if box is None and self.keeps(plane.shape):
            return plane
        method = Image.Resampling.NEAREST if nearest or not plane.all() else Image.Resampling.BILINEAR
        picture = Image.fromarray(plane)
        if box is None:
            return np.asarray(centre(picture, self.image_size, self.crop_fraction, method))
        height, width = self.image_size or (box[3] - box[1], box[2] - box[0])
        return np.asarray(picture.resize((width, height), method, box=box))


def crops_at_random(augmentation: Augmentation) -> bool:
    return augmentation.crop_scale is not None or augmentation.crop_scales is not None


def drawn_box(
    seen: tuple[int, int], size: tuple[int, int] | None, draws: list[float] | None, augmentation: Augmentation | None
) -> Box | None:
    """The random crop of a picture of (height, width) `seen` for the output `size`; None for the evaluation crop."""
    if draws is None or augmentation is None or not crops_at_random(augmentation):
        return None
    if augmentation.crop_scales is not None:
        return multi_scale_crop(*seen, size, draws, augmentation.crop_scales)
    return random_crop(*seen, draws, augmentation)


def random_crop(height: int, width: int, draws: list[float], augmentation: Augmentation) -> Box:
    """Random-resized crop of Szegedy et al. 2015 (Inception) from uniform draws, four an attempt.

    With `crop_attempts` = 10 it is torchvision's rule, whose last resort is the largest centre crop of an allowed
    ratio; with 1 it is the single draw that is clamped to the picture, which MAE's linear probe uses.
    """
    low, high = augmentation.crop_scale
    log_low, log_high = (math.log(r) for r in augmentation.crop_ratio)
    for attempt in range(augmentation.crop_attempts):
        area, ratio, down, across = draws[4 * attempt : 4 * attempt + 4]
        area = height * width * (low + (high - low) * area)
        ratio = math.exp(log_low + (log_high - log_low) * ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if augmentation.crop_attempts == 1:
            w, h = max(1, min(w, width)), max(1, min(h, height))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(down * (height - h + 1)), int(across * (width - w + 1))
            return left, top, left + w, top + h
    return _central_box(height, width, augmentation.crop_ratio)


def multi_scale_crop(
    height: int, width: int, size: tuple[int, int] | None, draws: list[float], scales: tuple[float, ...]
) -> Box:
    """TSN's multi-scale crop (Wang et al. 2016; VideoMAE pretrains with it) from two uniform draws.

    A side within 3 pixels of the output's is taken as the output's, which saves the resizing.
    """
    short = min(height, width)
    sides = [max(1, int(short * scale)) for scale in scales]
    heights, widths = ([wanted if size and abs(s - wanted) < 3 else s for s in sides] for wanted in size or (0, 0))
    pairs = [(h, w) for i, h in enumerate(heights) for j, w in enumerate(widths) if abs(i - j) <= 1]
    h, w = pairs[int(draws[0] * len(pairs))]
    h, w = min(h, height), min(w, width)
    across, down = _FIXED_OFFSETS[int(draws[1] * len(_FIXED_OFFSETS))]
    left, top = across * ((width - w) // 4), down * ((height - h) // 4)
    return left, top, left + w, top + h


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop_resize(
    picture: Image.Image, seen: tuple[int, int], box: Box, size: tuple[int, int] | None, method
) -> Image.Image:
    """`box` of the picture at `size` (H, W). `seen` is the upright (height, width) in which the box was drawn.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the crop still has more pixels than it needs.
    """
    height, width = size or (box[3] - box[1], box[2] - box[0])
    shrink = max(width / (box[2] - box[0]), height / (box[3] - box[1]))
    if picture.format == "JPEG" and shrink <= 0.5:
        picture.draft(None, (math.ceil(picture.size[0] * shrink), math.ceil(picture.size[1] * shrink)))
    picture = to_rgb(picture)
    scale_x, scale_y = picture.size[0] / seen[1], picture.size[1] / seen[0]
    left, top, right, bottom = box
    window = (
        left * scale_x,
        top * scale_y,
        min(right * scale_x, picture.size[0]),
        min(bottom * scale_y, picture.size[1]),
    )
    return picture.resize((width, height), method, box=window)


def centre(picture: Image.Image, size: tuple[int, int] | None, fraction: float, method) -> Image.Image:
    """Resize to cover size / fraction, then crop the centre: torchvision's Resize(256), CenterCrop(224) at 0.875."""
    if size is None:
        return picture
    width, height = picture.size
    if fraction == 1.0 and (height, width) == size:
        return picture
    new_h, new_w = cover_size((height, width), size, fraction)
    picture = picture.resize((new_w, new_h), method)
    left, top = round((new_w - size[1]) / 2), round((new_h - size[0]) / 2)
    return picture.crop((left, top, left + size[1], top + size[0]))


def cover_size(seen: tuple[int, int], size: tuple[int, int], fraction: float) -> tuple[int, int]:
    """(height, width) of a picture of the size `seen` scaled so that it just covers `size` / fraction."""
    cover = max(size[0] / fraction / seen[0], size[1] / fraction / seen[1])
    return max(int(seen[0] * cover + 1e-6), size[0]), max(int(seen[1] * cover + 1e-6), size[1])
