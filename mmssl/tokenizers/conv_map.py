"""Images whose tokens are the places of a small convolutional network's last map: control's encoder, without a trunk.

An encoder of depth 0 with this tokenizer is a plain convolutional network (`EncoderConfig.of_convolutions`); with
blocks it is a transformer on top of one.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.nn.convnets import ControlConvs, ConvStart, conv_grid
from mmssl.nn.positions import sincos_2d
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, TokenizerConfig
from mmssl.tokenizers.image import PixelTokenizer, settle_pixels


@dataclass(frozen=True)
class ConvMapTokenizerConfig(TokenizerConfig):
    """Images of one size, seen by convolutions that overlap; as many filters as the encoder is wide."""

    patch_size: ClassVar[int] = 1  # a place of the map is no patch: no setting

    name: str = "conv_map"
    image_size: int | tuple[int, int] = 84
    """Height and width in pixels; one number means a square."""
    channels: int = 3
    """Of the picture: three for each frame of a stack."""
    layers: int = 4
    """Convolutions."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Mean of each channel, for pixels in [0, 1]; CURL only divides by 255."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Standard deviation of each channel, for pixels in [0, 1]."""
    start: ConvStart = "delta"
    """How weights begin: `delta` (CURL) or `orthogonal` (DrQ-v2)."""

    def __post_init__(self) -> None:
        settle_pixels(self)
        conv_grid(self.image_size, self.layers)


@register_tokenizer("conv_map")
class ConvMapTokenizer(PixelTokenizer):
    """Images (B, C, H, W), uint8 or float in [0, 1] -> tokens (B, h * w, D), the last map of `ControlConvs`.

    Its strides overlap, so it has no patches: nothing can be masked, and nothing is predicted.
    """

    config_class = ConvMapTokenizerConfig

    def lay_out(self) -> None:
        self.grid, self.patch_dim = conv_grid(self.config.image_size, self.config.layers), 0

    def build(self, positions: Positions) -> None:
        config = self.config
        self.convs = ControlConvs(config.channels, config.image_size, config.layers, self.embed_dim, start=config.start)
        self.scheme = positions
        self.set_positions(self.position_table(self.embed_dim, positions), positions == "learned")

    def position_table(self, dim: int, positions: Positions) -> Tensor:
        if positions in ("sincos", "sincos_row"):
            return sincos_2d(dim, self.grid, "row_first" if positions == "sincos_row" else "column_first")[None]
        return super().position_table(dim, positions)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        if index is not None:
            raise MmsslError(f"{self.modality!r} is seen by convolutions, whose tokens cannot be masked; give no mask.")
        x = self.prepare(x).to(self.convs.layers[0].weight.dtype)
        tokens = self.convs(x).flatten(2).mT  # (B, h * w, D)
        return tokens if self.scheme == "none" else tokens + self.positions

    def patchify(self, prepared: Tensor) -> Tensor:
        raise MmsslError(f"{self.modality!r} is seen by convolutions that overlap: it has no patches.")

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        raise MmsslError(f"{self.modality!r} is seen by convolutions that overlap, which cannot be inverted.")
