"""Images whose tokens are the places of a ResNet's last map: an encoder without a trunk (`EncoderConfig.of_resnet`)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmssl.errors import MmsslError, unknown_name
from mmssl.nn.resnets import RESNETS, ResNet, ResNetName, resnet_dim, resnet_grid
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, TokenizerConfig
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD, PixelTokenizer, settle_pixels


@dataclass(frozen=True)
class ResNetTokenizerConfig(TokenizerConfig):
    """Images of one size, seen by a ResNet; the encoder is as wide as the ResNet's last map."""

    patch_size: ClassVar[int] = 1  # a place of the map is no patch: no setting

    name: str = "resnet"
    network: ResNetName = "resnet50"
    width: int = 64
    """Channels of the first stage; 64 as published."""
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels; one number means a square."""
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, for pixels in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, for pixels in [0, 1]."""

    def __post_init__(self) -> None:
        if self.network not in RESNETS:
            raise unknown_name("network", self.network, RESNETS)
        if self.width < 1:
            raise MmsslError(f"the width of a ResNet must be at least 1, got {self.width}.")
        settle_pixels(self)


@register_tokenizer("resnet")
class ResNetTokenizer(PixelTokenizer):
    """Images (B, C, H, W), uint8 or float in [0, 1] -> tokens (B, h * w, D), the last map of a ResNet.

    The mean of the tokens is what torchvision's network gives before its classifier. There are no patches: nothing can
    be masked, and nothing is predicted. In evaluation mode its batch norms use what they have learned.
    """

    config_class = ResNetTokenizerConfig

    def lay_out(self) -> None:
        self.grid, self.patch_dim = resnet_grid(self.config.image_size), 0

    def build(self, positions: Positions) -> None:
        config = self.config
        if (dim := resnet_dim(config.network, config.width)) != self.embed_dim or positions != "none":
            raise MmsslError(
                f"an encoder of a {config.network} of width {config.width} has dim {dim} and no positions, got dim "
                f"{self.embed_dim} and positions {positions!r}; make it with EncoderConfig.of_resnet."
            )
        self.net = ResNet(config.network, config.channels, config.width)
        self.scheme = positions
        self.set_positions(self.position_table(self.embed_dim, positions), False)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """As the base class says. Floats are looked at here too: R3M's own code takes 0..255, and ours [0, 1]."""
        if index is not None:
            raise MmsslError(f"{self.modality!r} is seen by convolutions, whose tokens cannot be masked; give no mask.")
        if x.is_floating_point() and x.device.type == "cpu" and not torch.compiler.is_compiling():
            self.check(x)
        x = self.prepare(x).to(self.net.conv1.weight.dtype)
        return self.net(x).flatten(2).mT  # (B, h * w, D)

    def patchify(self, prepared: Tensor) -> Tensor:
        raise MmsslError(f"{self.modality!r} is seen by convolutions that overlap: it has no patches.")

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        raise MmsslError(f"{self.modality!r} is seen by convolutions that overlap, which cannot be inverted.")
