"""Images <-> patch tokens, and what they share with clips."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.nn.gather import gather_tokens
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, TokenizerConfig
from mmssl.tokenizers.patches import PatchTokenizer, PlanePatches

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def as_pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from one number or two."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def settle_size(config: Any) -> None:
    """Make pairs of `image_size` and `patch_size`, and refuse what cannot be; for the `__post_init__` of a config."""
    size, patch = as_pair(config.image_size), as_pair(config.patch_size)
    object.__setattr__(config, "image_size", size)
    object.__setattr__(config, "patch_size", patch)
    if min(size) < 1 or min(patch) < 1:
        raise MmsslError(f"image_size {size} and patch_size {patch} must be positive.")
    if size[0] % patch[0] or size[1] % patch[1]:
        raise MmsslError(
            f"image_size {size[0]}x{size[1]} is not divisible by patch_size {patch[0]}x{patch[1]}; "
            f"the nearest sizes that are: {nearest_multiple(size[0], patch[0])}x{nearest_multiple(size[1], patch[1])}."
        )


def settle_pixels(config: Any) -> None:
    """As `settle_size`, and the same for `channels`, `mean` and `std`."""
    settle_size(config)
    if not len(config.mean) == len(config.std) == config.channels:
        raise MmsslError(
            f"mean and std need one value for each of the {config.channels} channels, "
            f"got {len(config.mean)} and {len(config.std)}."
        )
    if min(config.std) <= 0:
        raise MmsslError(f"std must be above 0, got {config.std}.")


def nearest_multiple(size: int, part: int) -> int:
    """The multiple of `part` nearest to `size`, at least one of them."""
    return max(part, round(size / part) * part)


class PixelTokenizer(PatchTokenizer):
    """Base of what reads pixels, (B, ..., C, H, W), uint8 or float in [0, 1]; channel fastest in a patch."""

    noun = "images"
    hidden_value = 0.5  # grey

    def __init__(self, config: TokenizerConfig, modality: str, embed_dim: int, positions: Positions = "sincos"):
        super().__init__(config, modality, embed_dim)
        self.register_buffer("mean", torch.tensor(config.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(-1, 1, 1))
        self.lay_out()
        self.build(positions)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.config.channels, *self.config.image_size)

    def prepare(self, x: Tensor) -> Tensor:
        """(B, ..., C, H, W), uint8 or float in [0, 1] -> float32, normalised with the mean and std."""
        self.check_shape(x)
        return self._normalise(x, self.mean, self.std)

    def target(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """As the base class says; patches are gathered as they travel (uint8), and only those are normalised."""
        if index is None:
            return super().target(x)
        self.check_shape(x)
        return self.prepare_patches(gather_tokens(self.cut(x), index).mT.flatten(2))

    def prepare_patches(self, patches: Tensor) -> Tensor:
        """Patches of raw pixels (..., P), channel fastest -> as `prepare` has them."""
        repeats = patches.shape[-1] // self.config.channels
        mean, std = (s.flatten().repeat(repeats) for s in (self.mean, self.std))  # (P,)
        return self._normalise(patches, mean, std)

    @staticmethod
    def _normalise(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        unit = 255 if x.dtype == torch.uint8 else 1
        return (x.float() - mean * unit) / (std * unit)

    def cut(self, x: Tensor) -> Tensor:
        """Pixels (B, ..., C, H, W) -> patches (B, N, C, P / C), channel slowest: what is quickest to cut out."""
        raise NotImplementedError

    def patchify(self, prepared: Tensor) -> Tensor:
        """(B, ..., C, H, W) -> (B, N, P), channel fastest."""
        return self.cut(prepared).mT.flatten(2)

    def restore(self, prepared: Tensor) -> Tensor:
        """Normalised (B, ..., C, H, W) -> pixels in [0, 1] (where the values are those of an image)."""
        return prepared * self.std + self.mean

    def picture(self, values: Tensor) -> Tensor:
        """As the base class says, in [0, 1]."""
        return super().picture(values).clamp(0, 1)

    def check_shape(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.dtype != torch.uint8 and not x.is_floating_point():
            raise MmsslError(f"{self.modality!r} must be uint8, or float in [0, 1], got {x.dtype}; convert it.")
        self.check_tensor(x, self.shape, self.noun)

    def check(self, x: Tensor) -> None:
        self.check_shape(x)
        if x.dtype == torch.uint8 or x.numel() == 0:
            return
        low, high = x.min().item(), x.max().item()
        if not (low >= 0 and high <= 1):  # also false for NaN
            raise MmsslError(
                f"{self.modality!r} holds floats from {low:.4g} to {high:.4g}, but floats must lie in [0, 1]; "
                "give uint8 pixels, or divide by 255, and leave out mean and std (the encoder applies them)."
            )


@dataclass(frozen=True)
class ImageTokenizerConfig(TokenizerConfig):
    """Images of one size, cut into patches that do not overlap."""

    name: str = "image"
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels; one number means a square."""
    patch_size: int | tuple[int, int] = 16
    """Height and width of a patch in pixels; must divide the image size."""
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, for pixels in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, for pixels in [0, 1]."""

    def __post_init__(self) -> None:
        settle_pixels(self)


@register_tokenizer("image")
class ImageTokenizer(PlanePatches, PixelTokenizer):
    """Images (B, C, H, W), uint8 or float in [0, 1], <-> patches (B, N, p * q * C).

    A patch is flattened in the order (row, column, channel), channel fastest, as MAE does.
    """

    config_class = ImageTokenizerConfig

    def lay_out(self) -> None:
        (height, width), (p, q) = self.config.image_size, self.config.patch_size
        self.grid = (height // p, width // q)
        self.patch_dim = p * q * self.config.channels
