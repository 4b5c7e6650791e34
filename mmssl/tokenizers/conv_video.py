"""Clips and images whose tokens come out of a few convolutions: what is masked are their features, not the pixels.

So in masked world models (Seo et al. 2022 and 2023, arXiv 2206.14244 and 2302.02408, and the released code).
"""

from dataclasses import dataclass

from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.nn.conv_stem import ConvStem
from mmssl.nn.gather import gather_tokens
from mmssl.nn.linear import Linear
from mmssl.nn.positions import sincos_2d
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, TokenizerConfig, learned_table
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD, ImageTokenizer, ImageTokenizerConfig, settle_pixels
from mmssl.tokenizers.video import VideoTokenizer


def _settle(config: TokenizerConfig) -> None:
    """As `settle_pixels`; convolutions make square patches alone."""
    settle_pixels(config)
    if config.early_conv and config.patch_size[0] != config.patch_size[1]:
        p, q = config.patch_size
        raise MmsslError(f"convolutions make square patches, not {p}x{q}; choose another patch_size.")


@dataclass(frozen=True)
class ConvImageTokenizerConfig(ImageTokenizerConfig):
    """Images of one size, whose tokens come out of convolutions of stride 2."""

    name: str = "conv_image"
    patch_size: int | tuple[int, int] = 16
    """Side of a patch in pixels, a power of two."""
    early_conv: bool = True
    """Convolutions; False: a linear projection of each patch."""

    def __post_init__(self) -> None:
        _settle(self)


@dataclass(frozen=True)
class ConvVideoTokenizerConfig(TokenizerConfig):
    """Clips of one size, a token for each patch of each frame; shorter clips have the first times."""

    name: str = "conv_video"
    frames: int = 4
    """Frames of the longest clip."""
    image_size: int | tuple[int, int] = 96
    """Height and width in pixels; one number means a square."""
    patch_size: int | tuple[int, int] = 16
    """Side of a patch in pixels, a power of two; must divide the image size."""
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, for pixels in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, for pixels in [0, 1]."""
    early_conv: bool = True
    """Convolutions of stride 2; False: a linear projection of each patch."""

    tubelet = 1  # a token is of one frame: no setting

    def __post_init__(self) -> None:
        _settle(self)
        if self.frames < 1:
            raise MmsslError(f"frames must be 1 or more, got {self.frames}.")


class ConvTokens:
    """Mixin of the two: the convolutions, and tokens from their features.

    Weights are `stem.convs.N.*` and `proj.*`, the released code's 1 x 1 convolution.
    """

    def build(self, positions: Positions) -> None:
        config = self.config
        super().build(positions)
        self.stem = ConvStem(config.channels, config.patch_size[0], self.embed_dim) if config.early_conv else None
        if self.stem is not None:
            self.proj = Linear(self.stem.width, self.embed_dim)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """As the base class says. The convolutions see all patches, the projection those of `index` alone."""
        if self.stem is None:
            values = self.target(x, index)
        else:
            values = self.convolve(x)
            values = values if index is None else gather_tokens(values, index)
        positions = self.positions
        positions = positions[:, : values.shape[1]] if index is None else gather_tokens(positions, index)
        return self.embed(values) + positions

    def convolve(self, x: Tensor) -> Tensor:
        """Raw pixels (B, [T,] C, H, W) -> features (B, N, width)."""
        prepared = self.prepare(x)
        frames = prepared if prepared.ndim == 4 else prepared.flatten(0, 1)  # (B * T, C, H, W)
        return self.stem(frames).reshape(len(x), -1, self.stem.width)


@register_tokenizer("conv_image")
class ConvImageTokenizer(ConvTokens, ImageTokenizer):
    """Images (B, C, H, W) -> tokens; targets and pictures are those of `ImageTokenizer`."""

    config_class = ConvImageTokenizerConfig


@register_tokenizer("conv_video")
class ConvVideoTokenizer(ConvTokens, VideoTokenizer):
    """Clips (B, T, C, H, W) of up to `frames` frames -> tokens, time slowest; a target is a patch of one frame.

    Positions `sincos` are MAE's table of places (`pos_embed_spatial`, fixed) plus a learned vector of each time
    (`pos_embed_temporal`).
    """

    config_class = ConvVideoTokenizerConfig

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[1], *self.grid[1:])

    def position_table(self, dim: int, positions: Positions) -> Tensor | tuple[Tensor, Tensor]:
        if positions == "sincos":
            return sincos_2d(dim, self.grid[1:])[None], learned_table(self.grid[0], dim)
        return super().position_table(dim, positions)

    def set_positions(self, table: Tensor | tuple[Tensor, Tensor], trained: bool) -> None:
        super().set_positions(table, trained)
        if self.scheme == "sincos":
            self.pos_embed_temporal.requires_grad_(True)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int, int] | None = None) -> Tensor:
        times = patches.shape[1] // (self.grid[1] * self.grid[2])
        return super().unpatchify(patches, grid or (times, *self.grid[1:]))

    def check_shape(self, x: Tensor) -> None:
        shorter = isinstance(x, Tensor) and x.ndim == 5 and 1 <= x.shape[1] <= self.config.frames
        if not shorter:
            return super().check_shape(x)
        if x.dtype.is_floating_point or x.dtype.itemsize == 1:
            return self.check_tensor(x, (x.shape[1], *self.shape[1:]), self.noun)
        return super().check_shape(x)
