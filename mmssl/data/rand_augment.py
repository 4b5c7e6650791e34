"""RandAugment (Cubuk et al. 2019) on one picture, drawn from the sample's key.

Operations and ranges are those of timm's `rand-m9-mstd0.5-inc1`, the setting of MAE's and DeiT's fine-tuning, in which
a larger magnitude is always a stronger change.
"""

import math
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from mmssl.data.transforms import Augmentation

N_DRAWS = 5  # a picked operation needs: which, whether, two for the magnitude, sign
_FILL = (124, 116, 104)  # ImageNet's mean
_BICUBIC = Image.Resampling.BICUBIC
Op = Callable[[Image.Image, float, int], Image.Image]  # (picture, magnitude in 0..1, sign) -> picture


def rand_augment(picture: Image.Image, draws: list[float], augmentation: Augmentation) -> Image.Image:
    """`augmentation.rand_augment_ops` operations, each with probability 0.5, of normally distributed magnitude."""
    for op in range(augmentation.rand_augment_ops):
        which, whether, u, v, sign = draws[N_DRAWS * op : N_DRAWS * (op + 1)]
        if whether >= 0.5:
            continue
        normal = math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * v)
        level = min(max(augmentation.rand_augment + augmentation.rand_augment_std * normal, 0.0), 10.0) / 10.0
        picture = OPERATIONS[int(which * len(OPERATIONS))](picture, level, 1 if sign < 0.5 else -1)
    return picture


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample=_BICUBIC, fillcolor=_FILL)


def _auto_contrast(picture: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageOps.equalize(picture)


def _invert(picture: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageOps.invert(picture)


def _rotate(picture: Image.Image, level: float, sign: int) -> Image.Image:
    return picture.rotate(sign * 30.0 * level, resample=_BICUBIC, fillcolor=_FILL)


def _posterize(picture: Image.Image, level: float, sign: int) -> Image.Image:
    bits = 4 - int(level * 4)
    return ImageOps.posterize(picture, bits) if bits >= 1 else Image.new("RGB", picture.size)


def _solarize(picture: Image.Image, level: float, sign: int) -> Image.Image:
    return ImageOps.solarize(picture, 256 - min(256, int(level * 256)))


def _solarize_add(picture: Image.Image, level: float, sign: int) -> Image.Image:
    add = min(128, int(level * 110))
    return picture.point([min(255, v + add) if v < 128 else v for v in range(256)] * 3)


def _enhancer(kind: type) -> Op:
    return lambda picture, level, sign: kind(picture).enhance(max(0.1, 1.0 + sign * 0.9 * level))


def _shear_x(picture: Image.Image, level: float, sign: int) -> Image.Image:
    return _affine(picture, (1, sign * 0.3 * level, 0, 0, 1, 0))


def _shear_y(picture: Image.Image, level: float, sign: int) -> Image.Image:
    return _affine(picture, (1, 0, 0, sign * 0.3 * level, 1, 0))


def _translate_x(picture: Image.Image, level: float, sign: int) -> Image.Image:
    return _affine(picture, (1, 0, sign * 0.45 * level * picture.size[0], 0, 1, 0))


def _translate_y(picture: Image.Image, level: float, sign: int) -> Image.Image:
    return _affine(picture, (1, 0, 0, 0, 1, sign * 0.45 * level * picture.size[1]))


OPERATIONS: tuple[Op, ...] = (
    _auto_contrast,
    _equalize,
    _invert,
    _rotate,
    _posterize,
    _solarize,
    _solarize_add,
    _enhancer(ImageEnhance.Color),
    _enhancer(ImageEnhance.Contrast),
    _enhancer(ImageEnhance.Brightness),
    _enhancer(ImageEnhance.Sharpness),
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
