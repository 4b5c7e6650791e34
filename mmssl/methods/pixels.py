"""What the masked autoencoders of pixels have beside `mmssl.methods.masked`: a size in pixels, and colours."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmssl.methods.masked import MaskedAutoencoder, MaskedConfig
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class PixelConfig(MaskedConfig):
    """Settings of the methods that read images or clips."""

    lattice: ClassVar[tuple[str, ...]] = ("image_size", "patch_size")

    image_size: int | tuple[int, int] = 224
    """Height and width in pixels."""
    patch_size: int | tuple[int, int] = 16
    """Height and width of a patch in pixels."""
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    modality: str = "image"
    """The batch key to learn from: `image` or `video`, or one camera, `image/<camera>`."""


class PixelAutoencoder(MaskedAutoencoder):
    """Base of the methods that read images or clips: what they predict is shown as pixels in [0, 1]."""

    hidden_value = 0.5  # grey

    def picture(self, patches: Tensor) -> Tensor:
        """Patches (B, N, P) as `goal` has them -> pixels in [0, 1], (B, [T,] C, H, W)."""
        return super().picture(patches).clamp(0, 1)
