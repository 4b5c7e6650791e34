"""What is drawn anew for every sample: the settings, and the part that runs batched on the device.

The random crop happens in the worker (`crops.py`); flips, colour and erasing happen here, on uint8 batches, with
parameters drawn from each sample's own key. Two copies of a picture in one batch therefore come out different, and the
same keys give the same draws on any device.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmssl.data.audio_augment import augment_sound
from mmssl.errors import MmsslError
from mmssl.keys import mix, uniform

# Streams of `keys.uniform`. Masks use 0 and up; augmentation begins at 1000, so that the two never share a draw.
CROP_STREAM, FLIP_STREAM, COLOUR_STREAM, ERASE_STREAM, MIX_STREAM, CLIP_STREAM = range(1000, 1006)
AUDIO_STREAM, GAIN_STREAM, SPEC_STREAM, CAPTION_STREAM = range(1006, 1010)
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma, as Pillow and torchvision
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for every sample. The defaults are MAE's for pretraining (He et al. 2021).

    Args:
        crop_scale: share of the picture's area that a random-resized crop takes; null takes the evaluation crop.
        crop_ratio: width / height of the crop.
        crop_attempts: draws until one fits, then a centre crop (torchvision); 1 clamps one draw (MAE's linear probe).
        crop_scales: instead of `crop_scale` (null): shares of the shorter side, in falling order, from which height and
            width of the crop are drawn, at most one place apart, at one of 13 fixed positions (TSN's multi-scale crop;
            VideoMAE: 1, 0.875, 0.75, 0.66).
        interpolation: how the crop is resized.
        hflip: probability of a left-right flip.
        brightness: factor drawn from 1 - b .. 1 + b; contrast and saturation likewise.
        contrast: as brightness.
        saturation: as brightness.
        hue: shift drawn from -hue .. hue, in turns of the colour circle (at most 0.5).
        color_prob: probability that the four above are applied to a sample.
        grayscale: probability that colour is removed.
        erase: probability that a rectangle is replaced by noise (Zhong et al. 2017).
        erase_scale: share of the area that is erased.
        rand_augment: magnitude of RandAugment (Cubuk et al. 2019), 0 for none; MAE fine-tunes with 9.
        rand_augment_ops: operations a sample, each applied with probability 0.5.
        rand_augment_std: standard deviation of the magnitude.
        gain: sound: lowest and highest factor of a waveform; null for none.
        gain_beta: sound: alpha of a factor drawn from Beta(alpha, alpha) + 0.5, 0 for none; Audio-MAE's option has 10.
        roll: sound: a waveform is shifted in a circle by any share of its length. (In the authors' code the shift is
            always 0.)
    """

    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_attempts: int = 10
    crop_scales: tuple[float, ...] | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    hflip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    color_prob: float = 1.0
    grayscale: float = 0.0
    erase: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 1 / 3)
    rand_augment: float = 0.0
    rand_augment_ops: int = 2
    rand_augment_std: float = 0.5
    gain: tuple[float, float] | None = None
    gain_beta: float = 0.0
    roll: bool = False

    def __post_init__(self):
        for name in ("hflip", "color_prob", "grayscale", "erase"):
            _within(name, getattr(self, name), 0.0, 1.0)
        for name in ("brightness", "contrast", "saturation"):
            _within(name, getattr(self, name), 0.0, 1.0)
        _within("hue", self.hue, 0.0, 0.5)
        _within("rand_augment", self.rand_augment, 0.0, 10.0)
        ceilings = {"crop_scale": 1.0, "crop_ratio": math.inf, "erase_scale": 1.0, "gain": math.inf}
        if self.gain is not None and self.gain_beta:
            raise MmsslError(f"gain {tuple(self.gain)} and gain_beta {self.gain_beta:g} are two ways; give one.")
        _within("gain_beta", self.gain_beta, 0.0, math.inf)
        for name, ceiling in ceilings.items():
            pair = getattr(self, name)
            if pair is not None and not 0 < pair[0] <= pair[1] <= ceiling:
                raise MmsslError(f"{name} must be two increasing numbers in (0, {ceiling:g}], got {tuple(pair)}.")
        if self.crop_scales is not None:
            self._check_scales(self.crop_scales)
        if self.crop_attempts < 1 or self.rand_augment_ops < 1:
            raise MmsslError("crop_attempts and rand_augment_ops must be at least 1.")

    def _check_scales(self, scales: tuple[float, ...]) -> None:
        if self.crop_scale is not None:
            raise MmsslError(
                f"crop_scale {tuple(self.crop_scale)} and crop_scales {tuple(scales)} are two ways to crop; set "
                "crop_scale to null to use crop_scales."
            )
        if not scales or not all(0 < s <= 1 for s in scales) or list(scales) != sorted(scales, reverse=True):
            raise MmsslError(f"crop_scales must be falling numbers in (0, 1], got {tuple(scales)}.")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise MmsslError(f"{name} must lie in [{low:g}, {high:g}], got {value!r}.")


class BatchAugment:
    """Flip, colour and erase a batch on its device, or make its sound louder and shift it, each sample by its own key.

    `augment(batch, keys)` takes {"image": uint8 (B, 3, H, W), "video": (B, T, 3, H, W), ...} and int64 keys (B,) and
    gives a new dict of the same shapes and dtypes; `audio` is float32 (B, 1, S). Depth and segmentation
    are flipped with their image; the frames of a clip, and all cameras of a sample, share their parameters.
    """

    def __init__(self, augmentation: Augmentation):
        self.augmentation = augmentation

    def __call__(self, batch: dict[str, Tensor], keys: Tensor) -> dict[str, Tensor]:
        a, batch = self.augmentation, self._flip(batch, keys)
        for key in batch:
            if is_picture(key):
                batch[key] = self._colour_and_erase(batch[key], keys)
                if a.erase and f"present/{key}" in batch:  # noise is no picture: what is not there stays zero
                    present = batch[f"present/{key}"]
                    batch[key] = batch[key] * present.view(-1, *[1] * (batch[key].dim() - 1))
            elif is_sound(key) and (a.gain is not None or a.gain_beta or a.roll):
                batch[key] = augment_sound(batch[key], uniform(keys, 2, GAIN_STREAM), a)
        return batch

    def _flip(self, batch: dict[str, Tensor], keys: Tensor) -> dict[str, Tensor]:
        batch = dict(batch)
        if not self.augmentation.hflip:
            return batch
        flip = uniform(keys, 1, FLIP_STREAM)[:, 0] < self.augmentation.hflip  # (B,)
        for key, x in batch.items():
            if is_picture(key) or key.split("/")[0] in ("depth", "segmentation"):
                batch[key] = torch.where(flip.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)
        return batch

    def _colour_and_erase(self, x: Tensor, keys: Tensor) -> Tensor:
        a = self.augmentation
        clip = x if x.dim() == 5 else x[:, None]  # (B, T, 3, H, W)
        if a.brightness or a.contrast or a.saturation or a.hue or a.grayscale:
            clip = colour(clip, keys, a)
        if a.erase:
            clip = erase(clip, keys, a)
        return clip if x.dim() == 5 else clip[:, 0]


def is_picture(key: str) -> bool:
    """Whether a batch key holds pictures: `image`, `video`, or one camera of either."""
    return key.split("/")[0] in ("image", "video")


def is_sound(key: str) -> bool:
    """Whether a batch key holds waveforms: `audio`, or one microphone of it."""
    return key.split("/")[0] == "audio"


def colour(clip: Tensor, keys: Tensor, a: Augmentation) -> Tensor:
    """Brightness, contrast, saturation, hue and grey, in this order, of uint8 (B, T, 3, H, W).

    The formulas are torchvision's `adjust_*`; its random order of the four is not drawn.
    """
    draws = uniform(keys, 6, COLOUR_STREAM)  # (B, 6)
    on = (draws[:, 4] < a.color_prob).float()
    factors = [1 + on * (2 * draws[:, k] - 1) * s for k, s in enumerate((a.brightness, a.contrast, a.saturation))]
    brightness, contrast, saturation = (f.view(-1, 1, 1, 1, 1) for f in factors)
    x = clip.float() / 255.0
    if a.brightness:
        x = (x * brightness).clamp(0, 1)
    if a.contrast:  # the mean is taken over the whole clip, so that all its frames share one change
        x = (x * contrast + luma(x).mean(dim=(1, 2, 3, 4), keepdim=True) * (1 - contrast)).clamp(0, 1)
    if a.saturation:
        x = (x * saturation + luma(x) * (1 - saturation)).clamp(0, 1)
    if a.hue:
        x = shift_hue(x, (on * (2 * draws[:, 3] - 1) * a.hue).view(-1, 1, 1, 1))
    if a.grayscale:
        x = torch.where((draws[:, 5] < a.grayscale).view(-1, 1, 1, 1, 1), luma(x).expand_as(x), x)
    return (x * 255.0 + 0.5).to(torch.uint8)


def luma(x: Tensor) -> Tensor:
    """Brightness (…, 1, H, W) of RGB (…, 3, H, W)."""
    weights = torch.tensor(_GREY, device=x.device, dtype=x.dtype).view(3, 1, 1)
    return (x * weights).sum(-3, keepdim=True)


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """RGB float (B, T, 3, H, W) in [0, 1] with its HSV hue moved by `turns` (B, 1, 1, 1) of a full circle."""
    high, low = x.amax(-3), x.amin(-3)  # (B, T, H, W)
    chroma = high - low
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    r, g, b = x.unbind(-3)
    hue = torch.where(
        high == r, (g - b) / safe, torch.where(high == g, 2.0 + (b - r) / safe, 4.0 + (r - g) / safe)
    )  # in sixths of a turn
    hue = torch.remainder(hue + 6.0 * turns, 6.0)
    # Each channel of HSV -> RGB is value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6, n = 5, 3, 1.
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = torch.remainder(hue + n, 6.0)
        channels.append(high - chroma * torch.minimum(k, 4.0 - k).clamp(0, 1))
    return torch.stack(channels, dim=-3)


def erase(clip: Tensor, keys: Tensor, a: Augmentation) -> Tensor:
    """A rectangle of each chosen sample of uint8 (B, T, 3, H, W) replaced by noise of ImageNet's mean and spread."""
    height, width = clip.shape[-2:]
    p, area, ratio, down, across, roll_y, roll_x = uniform(keys, 7, ERASE_STREAM).unbind(1)
    area = height * width * (a.erase_scale[0] + (a.erase_scale[1] - a.erase_scale[0]) * area)
    ratio = torch.exp(math.log(0.3) * (1 - 2 * ratio))  # log-uniform in 0.3 .. 1 / 0.3
    h = (area * ratio).sqrt().round().clamp(1, height)
    w = (area / ratio).sqrt().round().clamp(1, width)
    top, left = (down * (height - h + 1)).floor(), (across * (width - w + 1)).floor()
    inside = _between(height, top, h)[:, :, None] & _between(width, left, w)[:, None, :]  # (B, H, W)
    inside &= (p < a.erase)[:, None, None]
    rows = (torch.arange(height, device=clip.device) + (roll_y * height).long()[:, None]) % height  # (B, H)
    columns = (torch.arange(width, device=clip.device) + (roll_x * width).long()[:, None]) % width  # (B, W)
    noise = _noise_tile(height, width, clip.device)[:, rows[:, :, None], columns[:, None, :]]  # (3, B, H, W)
    return torch.where(inside[:, None, None], noise.transpose(0, 1)[:, None], clip)


def _between(n: int, start: Tensor, length: Tensor) -> Tensor:
    """bool (B, n): start <= place < start + length."""
    place = torch.arange(n, device=start.device)
    return (place >= start[:, None]) & (place < (start + length)[:, None])


def _noise_tile(height: int, width: int, device: torch.device) -> Tensor:
    """One fixed uint8 tile (3, H, W) of normal noise, which each sample reads from a place of its own."""
    counter = torch.arange(3 * height * width, device=device)
    u = uniform(mix(counter), 2, ERASE_STREAM)
    normal = torch.sqrt(-2 * torch.log(1 - u[:, 0])) * torch.cos(2 * math.pi * u[:, 1])  # Box-Muller
    mean = torch.tensor(_IMAGENET_MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(_IMAGENET_STD, device=device).view(3, 1, 1)
    return ((mean + std * normal.view(3, height, width)).clamp(0, 1) * 255 + 0.5).to(torch.uint8)
