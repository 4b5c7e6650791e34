"""Images <-> patch tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.nn.gather import gather_tokens
from mmssl.nn.positions import sincos_2d
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, Tokenizer, TokenizerConfig, learned_table

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def as_pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from one number or two."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


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
        size, patch = as_pair(self.image_size), as_pair(self.patch_size)
        object.__setattr__(self, "image_size", size)
        object.__setattr__(self, "patch_size", patch)
        if min(size) < 1 or min(patch) < 1:
            raise MmsslError(f"image_size {size} and patch_size {patch} must be positive.")
        if size[0] % patch[0] or size[1] % patch[1]:
            raise MmsslError(
                f"image_size {size[0]}x{size[1]} is not divisible by patch_size {patch[0]}x{patch[1]}; "
                f"the nearest sizes that are: {_nearest(size[0], patch[0])}x{_nearest(size[1], patch[1])}."
            )
        if not len(self.mean) == len(self.std) == self.channels:
            raise MmsslError(
                f"mean and std need one value for each of the {self.channels} channels, "
                f"got {len(self.mean)} and {len(self.std)}."
            )
        if min(self.std) <= 0:
            raise MmsslError(f"std must be above 0, got {self.std}.")


def _nearest(size: int, patch: int) -> int:
    return max(patch, round(size / patch) * patch)


@register_tokenizer("image")
class ImageTokenizer(Tokenizer):
    """Images (B, C, H, W), uint8 or float in [0, 1], <-> patches (B, N, p * q * C).

    A patch is flattened in the order (row, column, channel), channel fastest, as MAE does.
    """

    config_class = ImageTokenizerConfig

    def __init__(self, config: ImageTokenizerConfig, modality: str, embed_dim: int, positions: Positions = "sincos"):
        super().__init__(config, modality, embed_dim)
        (height, width), (p, q) = config.image_size, config.patch_size
        self.grid = (height // p, width // q)
        self.patch_dim = p * q * config.channels
        self.register_buffer("mean", torch.tensor(config.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(-1, 1, 1))
        self.build(positions)

    def prepare(self, x: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> float32, normalised with the mean and std."""
        self.check_shape(x)
        return self._normalise(x, self.mean, self.std)

    def target(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """As the base class says; patches are gathered as they travel (uint8), and only those are normalised."""
        if index is None:
            return super().target(x)
        self.check_shape(x)
        p, q = self.config.patch_size
        mean, std = (s.flatten().repeat(p * q) for s in (self.mean, self.std))  # (P,), channel fastest
        return self._normalise(gather_tokens(self.patchify(x), index), mean, std)

    @staticmethod
    def _normalise(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        unit = 255 if x.dtype == torch.uint8 else 1
        return (x.float() - mean * unit) / (std * unit)

    def restore(self, prepared: Tensor) -> Tensor:
        """Normalised (B, C, H, W) -> pixels in [0, 1] (where the values are those of an image)."""
        return prepared * self.std + self.mean

    def patchify(self, prepared: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, p * q * C)."""
        batch, channels, height, width = prepared.shape
        p, q = self.config.patch_size
        x = prepared.reshape(batch, channels, height // p, p, width // q, q)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p * q * channels)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N, p * q * C) -> (B, C, H, W), exactly what `patchify` took."""
        rows, columns = grid or self.grid
        p, q = self.config.patch_size
        x = patches.reshape(patches.shape[0], rows, columns, p, q, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, rows * p, columns * q)

    def position_table(self, dim: int, positions: Positions) -> Tensor:
        if positions == "none":
            return torch.zeros(1, self.num_tokens, dim)
        if positions == "learned":
            return learned_table(self.num_tokens, dim)
        return sincos_2d(dim, self.grid, "row_first" if positions == "sincos_row" else "column_first")[None]

    def check_shape(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise MmsslError(f"{self.modality!r} must be a torch tensor, got {type(x).__name__}.")
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise MmsslError(f"{self.modality!r} must be uint8, or float in [0, 1], got {x.dtype}; convert it.")
        wanted = (self.config.channels, *self.config.image_size)
        if x.ndim != 4 or tuple(x.shape[1:]) != wanted:
            raise MmsslError(
                f"{self.modality!r} must have the shape (batch, {', '.join(map(str, wanted))}), got {tuple(x.shape)}; "
                "resize the images, or the encoder with encoder.resize((height, width))."
            )

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
