"""What pixel-based control draws anew whenever it looks: CURL's and RAD's random crops, DrQ's random shifts.

Each sample has its own place; all frames of a stack and all cameras of a sample move together. Places are drawn on the
CPU, so that no device waits, and the same seed gives the same ones everywhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.nn.crop import check_fits, cut, places


def random_crop(x: Tensor, size: tuple[int, int], generator: torch.Generator, authors_offsets: bool = False) -> Tensor:
    """A crop of (height, width) pixels of each sample.

    Args:
        x: (B, C, H, W) of any dtype.
        generator: of the CPU.
        authors_offsets: as the code of CURL and RAD draws: the last place of each axis is never taken.

    Raises:
        MmsslError: the crop is larger than the picture.
    """
    check_fits(x.shape[2:], size)
    counts = [places(whole, part, authors_offsets) for whole, part in zip(x.shape[2:], size, strict=True)]
    top, left = (torch.randint(count, (len(x),), generator=generator) for count in counts)
    return cut(x, top, left, size)


def draw_shifts(count: int, pad: int, generator: torch.Generator) -> Tensor:
    """int64 (count, 2): rows and columns, uniform in 0..2 * pad; `pad` leaves the picture where it is."""
    return torch.randint(2 * pad + 1, (count, 2), generator=generator)


def shift(x: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """(B, C, H, W) of any dtype, seen through a window that is moved over it by `shifts` - pad pixels.

    The border is continued by its outermost pixels. Equal to `bilinear_shift` up to float error, without its floats.

    Args:
        shifts: int64 (B, 2), rows and columns, 0..2 * pad, on the CPU.
    """
    padded = x
    for axis in (2, 3):
        reach = torch.arange(-pad, x.shape[axis] + pad, device=x.device).clamp(0, x.shape[axis] - 1)
        padded = padded.index_select(axis, reach)
    return cut(padded, shifts[:, 0], shifts[:, 1], tuple(x.shape[2:]))


def bilinear_shift(x: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """The same as DrQ-v2's code does it, by bilinear interpolation on a moved lattice: float32 (B, C, H, W).

    Args:
        shifts: (B, 2), rows and columns in pixels, fractions too.
    """
    padded = F.pad(x.float(), (pad,) * 4, "replicate")
    axes = []
    for k, side in enumerate(x.shape[2:]):
        whole = side + 2 * pad
        middles = (torch.arange(side, device=x.device) * 2 + 1) / whole - 1  # of pixels, the outer borders at -1 and 1
        axes.append(middles + shifts[:, k, None].to(x.device) * (2 / whole))  # (B, side)
    rows, columns = axes
    lattice = torch.stack(  # (B, H, W, 2): column, row
        [columns[:, None, :].expand(-1, rows.shape[1], -1), rows[:, :, None].expand(-1, -1, columns.shape[1])], -1
    )
    return F.grid_sample(padded, lattice, padding_mode="zeros", align_corners=False)
