"""The small convolutional network of control: what SAC-AE, CURL and DrQ-v2 look at pixels with."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError

ConvStart = Literal["delta", "orthogonal"]


class ControlConvs(nn.Module):
    """Convolutions of 3 x 3 without padding, the first with stride 2, a ReLU after each (Yarats et al. 2019).

    Args:
        channels: of the pictures, all frames of a stack and all cameras together.
        size: (height, width) of the pictures.
        layers: how many; 84 x 84 pixels become 39 x 39 after 2, 35 x 35 after 4, 31 x 31 after 6.
        filters: channels of each layer's map.
        start: `delta`, delta-orthogonal (SAC-AE, CURL), or `orthogonal` over a whole filter (DrQ-v2); gain of a ReLU.

    Attributes:
        grid: (height, width) of the last map.

    Raises:
        MmsslError: the pictures are too small for so many layers.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], layers: int = 4, filters: int = 32, start: ConvStart = "delta"
    ):
        super().__init__()
        self.grid = conv_grid(size, layers)
        widths = [channels, *[filters] * layers]
        self.layers = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=1 if k else 2) for k, (i, o) in enumerate(pairwise(widths))
        )
        for conv in self.layers:
            start_conv(conv, start)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels (B, C, H, W) -> (B, filters, h, w)."""
        for conv in self.layers:
            x = torch.relu(conv(x))
        return x


def conv_grid(size: tuple[int, int], layers: int) -> tuple[int, int]:
    """Lattice of the last map of `ControlConvs`; an `MmsslError` where nothing is left of the picture."""
    grid = tuple((side - 3) // 2 + 1 - 2 * (layers - 1) for side in size)
    if layers < 1 or min(grid) < 1:
        raise MmsslError(
            f"{layers} convolutions leave nothing of pictures of {size[0]}x{size[1]} pixels; they need at least "
            f"{4 * max(layers, 1) - 1} a side: take larger pictures or fewer layers."
        )
    return grid


@torch.no_grad()
def start_conv(conv: nn.Conv2d, start: ConvStart) -> None:
    """Begin a convolution; `delta`: all zero but the middle of each filter (Xiao et al. 2018, arXiv 1806.05393)."""
    gain = nn.init.calculate_gain("relu")
    if start == "orthogonal":
        nn.init.orthogonal_(conv.weight, gain)
    else:
        middle = torch.empty(conv.weight.shape[:2])
        nn.init.zeros_(conv.weight)
        conv.weight[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = nn.init.orthogonal_(middle, gain)
    nn.init.zeros_(conv.bias)
