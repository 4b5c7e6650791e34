"""Windows over a two-dimensional lattice: which tokens lie in which window, and which of those may see one another."""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmssl.errors import MmsslError

Pair = tuple[int, int]
_APART = -100.0  # added to a logit, as Swin does it


def fit(grid: Pair, window: Pair, shift: Pair) -> tuple[Pair, Pair]:
    """The window and shift that a lattice gets: along an axis that one window covers whole, nothing is shifted.

    Raises an `MmsslError` where `grid` is no (rows, columns), a window has no extent, or a shift reaches a window's.
    """
    if len(grid) != 2:
        raise MmsslError(
            f"windows need a lattice of (rows, columns), got {tuple(grid)}; use a global decoder for others."
        )
    if len(window) != 2 or min(window) < 1:
        raise MmsslError(f"a window must be (rows, columns) of at least 1 each, got {tuple(window)}.")
    if len(shift) != 2 or not all(0 <= s < w for s, w in zip(shift, window, strict=True)):
        raise MmsslError(f"a shift must be at least 0 and below the window {tuple(window)} on both axes, got {shift}.")
    whole = [n <= w for n, w in zip(grid, window, strict=True)]
    window = tuple(min(n, w) for n, w in zip(grid, window, strict=True))
    return window, tuple(0 if all_of_it else s for all_of_it, s in zip(whole, shift, strict=True))


def padded(grid: Pair, window: Pair) -> Pair:
    """The smallest lattice that holds `grid` and is divided by the window."""
    return tuple(math.ceil(n / w) * w for n, w in zip(grid, window, strict=True))


def partition(lattice: Tensor, window: Pair, shift: Pair) -> Tensor:
    """Values (H, W) on a lattice -> (windows, L): rolled back by `shift`, then cut, all in raster order."""
    rolled = torch.roll(lattice, [-s for s in shift], dims=(0, 1))
    rows, columns = (n // w for n, w in zip(lattice.shape, window, strict=True))
    return rolled.reshape(rows, window[0], columns, window[1]).transpose(1, 2).reshape(rows * columns, -1)


def window_places(grid: Pair, window: Pair, shift: Pair) -> Tensor:
    """Place in the padded lattice of each token of each window, int64 (windows, L): a permutation."""
    size = padded(grid, window)
    return partition(torch.arange(math.prod(size)).view(size), window, shift)


def raster_places(grid: Pair, window: Pair) -> Tensor:
    """Place in `grid` of each token of the padded lattice, int64 (padded tokens,): its last row and column repeated."""
    rows, columns = (torch.arange(size).clamp(max=n - 1) for size, n in zip(padded(grid, window), grid, strict=True))
    return (rows[:, None] * grid[1] + columns[None]).flatten()


def padded_places(grid: Pair, window: Pair) -> Tensor:
    """Place in the padded lattice of each token of `grid`, int64 (tokens,)."""
    rows, columns = grid
    return (torch.arange(rows)[:, None] * padded(grid, window)[1] + torch.arange(columns)[None]).flatten()


def shift_mask(grid: Pair, window: Pair, shift: Pair) -> Tensor:
    """What is added to the logits, float32 (windows, L, L): -100 between tokens that only the roll made neighbours."""
    size = padded(grid, window)
    wrapped = [torch.arange(n) < s for n, s in zip(size, shift, strict=True)]
    side = partition(2 * wrapped[0][:, None].int() + wrapped[1][None].int(), window, shift)  # (windows, L)
    return torch.where(side[:, :, None] == side[:, None, :], 0.0, _APART)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(1, order)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(1, inverse), None, None


def permute_tokens(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Tokens x (B, N, D) in another order (N,); its inverse makes the gradient a plain copy, where torch would add."""
    return _Permute.apply(x, order, inverse)
