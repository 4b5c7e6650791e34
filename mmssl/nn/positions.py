"""Sine-cosine position tables and their interpolation.

Every fixed table is [sin block, cos block] for each axis, in integer coordinates from 0, with
omega_k = 10000 ** (-k / blocks). MAE puts the column first (its own variable names say the opposite), MoCo v3 and
MultiMAE the row.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.errors import MmsslError


def sincos_1d(dim: int, coordinates: Tensor | int) -> Tensor:
    """Table of one axis: float32 (N, dim) for `coordinates` (N,), or for 0..N-1 where an int is given.

    Raises an `MmsslError` where `dim` is odd.
    """
    if dim % 2:
        raise MmsslError(f"a sine-cosine table needs an even width per axis, got {dim}; choose another dim.")
    if isinstance(coordinates, int):
        coordinates = torch.arange(coordinates)
    omega = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angle = coordinates.to(torch.float64)[:, None] * omega[None, :]  # (N, dim/2)
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def sincos_2d(dim: int, grid: tuple[int, int], order: Literal["column_first", "row_first"] = "column_first") -> Tensor:
    """Table of a (rows, columns) lattice in raster order: float32 (rows * columns, dim).

    `column_first` (MAE) encodes the column in the first half of the channels, `row_first` (MultiMAE, MoCo v3) the row.
    Raises an `MmsslError` where `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise MmsslError(f"a 2-D sine-cosine table needs dim to be a multiple of 4, got {dim}; choose another dim.")
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    axes = (column, row) if order == "column_first" else (row, column)
    return torch.cat([sincos_1d(dim // 2, axis.reshape(-1)) for axis in axes], dim=1)


def sincos_3d(dim: int, grid: tuple[int, int, int], time_dim: int | None = None) -> Tensor:
    """Table of a (times, rows, columns) lattice, time slowest: float32 (T * H * W, dim).

    The first `time_dim` channels (default: what is left after two axes of the same even width, so about a third)
    encode the time, the others the place as `sincos_2d` column first.
    """
    if time_dim is None:
        time_dim = dim - 4 * (dim // 6)
    times, rows, columns = grid
    time = sincos_1d(time_dim, times)[:, None, :].expand(-1, rows * columns, -1)  # (T, HW, time_dim)
    place = sincos_2d(dim - time_dim, (rows, columns))[None].expand(times, -1, -1)  # (T, HW, dim - time_dim)
    return torch.cat([time, place], dim=-1).reshape(times * rows * columns, dim)


def interpolate_positions(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Bicubic interpolation of a 2-D position table (1, N, D) from one lattice to another -> (1, N', D).

    Raises an `MmsslError` where the table does not belong to `old_grid`.
    """
    if table.shape[1] != old_grid[0] * old_grid[1]:
        raise MmsslError(f"a position table of {table.shape[1]} tokens does not belong to a lattice of {old_grid}.")
    if tuple(old_grid) == tuple(new_grid):
        return table
    square = table.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    square = F.interpolate(square, size=tuple(new_grid), mode="bicubic", align_corners=False)
    return square.flatten(2).transpose(1, 2).to(table.dtype)  # (1, N', D)
