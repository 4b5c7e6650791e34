"""Heads that say something of every pixel, from the patch tokens of a picture.

A linear one, in which each token speaks for its own patch alone, and a light convolutional one, in which neighbours
are heard. Both work at a quarter of the resolution, or a finer one where patches are smaller, and scale the result up.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # pixels to one output, at which the heads work


class PatchHead(nn.Module):
    """Linear patch probe: maps of tokens (B, h, w, D) -> (B, outputs, H, W).

    A token is standardised and gives the outputs of all cells of STRIDE x STRIDE pixels in its patch by one linear
    layer; these are scaled up bilinearly.

    Args:
        dim: width D of the tokens.
        outputs: values for each pixel.
        grid: (h, w), the lattice of the tokens.
        size: (H, W) of the picture.
    """

    def __init__(self, dim: int, outputs: int, grid: tuple[int, int], size: tuple[int, int]):
        super().__init__()
        self.size, self.outputs = size, outputs
        self.cells = tuple(max(1, round(side / n / STRIDE)) for side, n in zip(size, grid, strict=True))
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.fc = nn.Linear(dim, outputs * math.prod(self.cells))
        nn.init.trunc_normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, maps: Tensor) -> Tensor:
        batch, h, w, dim = maps.shape
        x = self.fc(self.norm(maps.reshape(-1, dim)))  # (B * h * w, outputs * p * q)
        x = x.view(batch, h, w, self.outputs, *self.cells).permute(0, 3, 1, 4, 2, 5)
        x = x.reshape(batch, self.outputs, h * self.cells[0], w * self.cells[1])
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False)


class ConvHead(nn.Module):
    """Light convolutional head: maps of tokens (B, h, w, D) -> (B, outputs, H, W).

    Tokens are standardised and narrowed to `width`; then, for each doubling of the lattice up to one cell for STRIDE
    pixels, and once at least, a convolution of 3 x 3, a group norm and a GELU.

    Args:
        dim, outputs, grid, size: as `PatchHead` has them.
        width: channels; a multiple of 8.
    """

    def __init__(self, dim: int, outputs: int, grid: tuple[int, int], size: tuple[int, int], width: int = 128):
        super().__init__()
        self.size = size
        doublings = max(0, math.ceil(math.log2(max(size[0] / grid[0], size[1] / grid[1]) / STRIDE) - 1e-6))
        self.norm = nn.BatchNorm2d(dim, affine=False)
        self.narrow = nn.Conv2d(dim, width, 1)
        self.scales = (1.0,) if doublings == 0 else (2.0,) * doublings
        self.convs = nn.ModuleList(_conv(width) for _ in self.scales)
        self.out = nn.Conv2d(width, outputs, 1)
        nn.init.trunc_normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, maps: Tensor) -> Tensor:
        x = self.narrow(self.norm(maps.permute(0, 3, 1, 2)))  # (B, width, h, w)
        for scale, conv in zip(self.scales, self.convs, strict=True):
            x = x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            x = conv(x)
        return F.interpolate(self.out(x), self.size, mode="bilinear", align_corners=False)


def _conv(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU())
