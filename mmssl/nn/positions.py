"""Position tables, their interpolation, and the modules that own one.

Fixed tables are [sin block, cos block] for each axis, in integer coordinates from 0, with
omega_k = 10000 ** (-k / blocks). MAE puts the column first (its own variable names say the opposite), MoCo v3 and
MultiMAE the row. VideoMAE knows no axes: one wave over the flat place, sine and cosine in turn.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def sinusoid(dim: int, n: int) -> Tensor:
    """VideoMAE's table of the flat places 0..n-1: float32 (n, dim).

    Channel j is the sine (j even) or cosine (j odd) of place / 10000 ** (2 * (j // 2) / dim): Vaswani et al. 2017.
    """
    channel = torch.arange(dim)
    omega = 10000.0 ** (-2 * (channel // 2).to(torch.float64) / dim)
    angle = torch.arange(n, dtype=torch.float64)[:, None] * omega[None, :]  # (n, dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def separable(spatial: Tensor, temporal: Tensor) -> Tensor:
    """ST-MAE's table: (1, h * w, D) of places plus (1, t, D) of times -> (1, t * h * w, D), time slowest."""
    return (temporal[:, :, None] + spatial[:, None]).flatten(1, 2)


def interpolate_positions(
    table: Tensor, old_grid: tuple[int, ...], new_grid: tuple[int, ...], mode: str = "bicubic"
) -> Tensor:
    """Interpolation of a position table (1, N, D) from one lattice to another -> (1, N', D).

    `mode` ("bicubic" or "bilinear") over (rows, columns), linear over the times of a lattice (times,) or (times, rows,
    columns).
    Raises an `MmsslError` where the table does not belong to `old_grid`.
    """
    if table.shape[1] != math.prod(old_grid):
        raise MmsslError(f"a position table of {table.shape[1]} tokens does not belong to a lattice of {old_grid}.")
    if tuple(old_grid) == tuple(new_grid):
        return table
    if len(old_grid) == 1:
        return interpolate_positions(table, (*old_grid, 1, 1), (*new_grid, 1, 1), mode)
    place = table.float().reshape(-1, *old_grid[-2:], table.shape[-1]).permute(0, 3, 1, 2)  # (1 or t, D, h, w)
    place = F.interpolate(place, size=tuple(new_grid[-2:]), mode=mode, align_corners=False)
    if len(old_grid) == 3:
        time = place.flatten(1).t()[None]  # (1, D * h' * w', t)
        time = F.interpolate(time, size=new_grid[0], mode="linear", align_corners=False)
        place = time[0].t().unflatten(1, place.shape[1:])  # (t', D, h', w')
    return place.permute(0, 2, 3, 1).reshape(1, -1, table.shape[-1]).to(table.dtype)  # (1, N', D)


def sincos_swapped(dim: int, n: int, columns: int) -> Tensor:
    """First n places of a lattice of so many columns in raster order, column first: float32 (n, dim).

    Audio-MAE's table of n = T' * M' tokens, T' times of M' pitches, has T' columns: the sides exchanged.
    """
    return sincos_2d(dim, (-(-n // columns), columns))[:n]


def recut_positions(table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], scheme: str) -> Tensor:
    """A position table (1, N, D) of a (times, pitches) lattice for another one -> (1, N', D).

    Fewer times: the first rows. More times: a table that is still the formula of its scheme is continued by it
    (`sincos_swapped` with the columns that it has), any other is interpolated. Other pitches: interpolated.
    """
    n = math.prod(new_grid)
    if new_grid[1] != old_grid[1]:
        return interpolate_positions(table, old_grid, new_grid)
    if n <= table.shape[1]:
        return table[:, :n]
    for longer in _formulas(table, new_grid, scheme):
        if torch.allclose(longer[: table.shape[1]], table[0].float().cpu(), atol=1e-2):
            return torch.cat([table, longer[None, table.shape[1] :].to(table)], dim=1)
    return interpolate_positions(table, old_grid, new_grid)


def _formulas(table: Tensor, grid: tuple[int, int], scheme: str) -> list[Tensor]:
    """What the table (1, N, D) may be the beginning of: (N', D)."""
    dim, n = table.shape[-1], math.prod(grid)
    if scheme == "sincos_swapped":
        row = table[0, :, dim // 2 :]
        later = ((row - row[0]).abs().amax(1) > 1e-2).nonzero()  # the places after the first row of the lattice
        return [sincos_swapped(dim, n, int(later[0]) if len(later) else len(row))]
    if scheme in ("sincos", "sincos_row"):
        return [sincos_2d(dim, grid, "row_first" if scheme == "sincos_row" else "column_first")]
    return [sinusoid(dim, n)] if scheme == "sinusoid" else []


class Positioned(nn.Module):
    """A module with the positions of a lattice.

    They are `pos_embed` (1, N, D), or ST-MAE's `pos_embed_spatial` (1, h * w, D) and `pos_embed_temporal` (1, t, D).
    """

    def set_positions(self, table: Tensor | tuple[Tensor, Tensor], trained: bool) -> None:
        """Own a table (1, N, D), or the pair (spatial, temporal), as parameters."""
        names = ("pos_embed_spatial", "pos_embed_temporal") if isinstance(table, tuple) else ("pos_embed",)
        for name, values in zip(names, table if isinstance(table, tuple) else (table,), strict=True):
            setattr(self, name, nn.Parameter(values.clone(), trained))

    @property
    def positions(self) -> Tensor:
        """The position table of the whole lattice (1, N, D)."""
        if hasattr(self, "pos_embed"):
            return self.pos_embed
        return separable(self.pos_embed_spatial, self.pos_embed_temporal)

    def resize_positions(self, old_grid: tuple[int, ...], new_grid: tuple[int, ...], mode: str = "bicubic") -> None:
        """Interpolate the tables from one lattice to another, in place."""
        grids = {
            "pos_embed": (old_grid, new_grid),
            "pos_embed_spatial": (old_grid[-2:], new_grid[-2:]),
            "pos_embed_temporal": (old_grid[:1], new_grid[:1]),
        }
        for name, (before, after) in grids.items():
            if hasattr(self, name):
                old = getattr(self, name)
                table = interpolate_positions(old.data, before, after, mode)
                setattr(self, name, nn.Parameter(table, old.requires_grad))
