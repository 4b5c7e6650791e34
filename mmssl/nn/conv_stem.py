"""Convolutions in place of the patch projection (Xiao et al. 2021, arXiv 2106.14881), as MWM and MV-MWM have it."""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.errors import MmsslError


class ConvStem(nn.Module):
    """Convolutions of 4 x 4 with stride 2 and ReLU, each twice as wide as the one before: one vector for each patch.

    The released code's padding (SAME of an even size) is one pixel on each side. Starts are glorot-uniform with zero
    biases, as Keras has them. A vector sees a little of the patches around its own.

    Args:
        channels: of the picture.
        patch_size: side of a patch in pixels, a power of two: as many convolutions as it has factors.
        dim: width D of the tokens; the last convolution has D / 2 channels, the one before D / 4 and so on.

    Attributes:
        width: channels of the last convolution.
    """

    def __init__(self, channels: int, patch_size: int, dim: int):
        super().__init__()
        widths = [channels, *stem_widths(patch_size, dim)]
        self.width = widths[-1]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        for conv in self.convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels (B, C, H, W) -> (B, h * w, width), row by row."""
        x = x.to(self.convs[0].weight.dtype)
        for conv in self.convs:
            x = F.relu(conv(x))
        return x.flatten(2).mT


def stem_widths(patch_size: int, dim: int) -> list[int]:
    """Channels of the convolutions; an `MmsslError` where the patch is no power of two or the tokens are too narrow."""
    count = round(math.log2(patch_size))
    if patch_size < 2 or 2**count != patch_size:
        raise MmsslError(
            f"convolutions of stride 2 make patches of 2, 4, 8, 16 pixels and so on, not of {patch_size}; choose such "
            "a patch_size, or early_conv false."
        )
    if dim % 2**count:
        raise MmsslError(
            f"{count} convolutions, each twice as wide as the one before, need dim to be a multiple of {2**count}, "
            f"got {dim}."
        )
    return [dim // 2 ** (count - i) for i in range(count)]
