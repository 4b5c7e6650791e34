"""Every mask sampler. True = masked (removed), everywhere.

A sampler is `sampler(grids, keys, valid=None) -> dict modality -> bool (B, N)`, vectorized over the batch; its
randomness is a function of the keys (B,) alone. `sampler.visible(grids)` says beforehand how many tokens stay visible.
"""

import math

import torch
from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.keys import uniform

Grids = dict[str, tuple[int, ...]]


def visible_index(mask: Tensor, n_visible: int) -> Tensor:
    """Places of the visible tokens in raster order, int64 (B, n_visible), from a mask (B, N); never waits for a device.

    A row with fewer visible tokens is filled up with masked ones, which come last.
    """
    return mask.to(torch.uint8).argsort(dim=1, stable=True)[:, :n_visible]


def ragged_index(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Places of the visible tokens of any mask (B, N), rows of different counts included; waits for the device.

    Returns:
        index: int64 (B, n), n the largest count; rows with fewer are filled up with masked places.
        valid: bool (B, n), False where filled up; None where all rows have the same count.
    """
    counts = (~mask).sum(1)
    n = int(counts.max()) if len(counts) else 0
    index = visible_index(mask, n)
    return index, None if bool((counts == n).all()) else ~mask.gather(1, index)


class MaskSampler:
    """Base of the samplers that mask the same number of tokens in every row, modality by modality.

    Args:
        ratio: fraction of the tokens to mask, in (0, 1); `int(N * (1 - ratio))` of N stay visible, as in MAE.
    """

    def __init__(self, ratio: float):
        if not 0 < ratio < 1:
            raise MmsslError(f"the mask ratio must lie strictly between 0 and 1, got {ratio}.")
        self.ratio = ratio

    def visible(self, grids: Grids) -> dict[str, int]:
        """Number of visible tokens of each modality."""
        return {name: int(math.prod(grid) * (1 - self.ratio)) for name, grid in grids.items()}

    def __call__(self, grids: Grids, keys: Tensor, valid: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Masks of all modalities.

        Args:
            grids: modality -> lattice shape.
            keys: int64 (B,), one a sample (`mmssl.keys.sample_keys`).
            valid: modality -> bool (B, N), False = padding, which is masked before anything else.

        Returns:
            modality -> bool (B, N), True = masked.
        """
        if keys.ndim != 1 or keys.dtype != torch.int64:
            raise MmsslError(
                f"mask keys must be int64 (batch,), got {keys.dtype} {tuple(keys.shape)}; use sample_keys."
            )
        masks = {}
        visible = self.visible(grids)
        for stream, (name, grid) in enumerate(grids.items()):
            order = self.order(grid, keys, stream)  # (B, N): the lowest stay visible
            if valid is not None and name in valid:
                order = order.masked_fill(~valid[name], math.inf)
            kept = order.argsort(dim=1, stable=True)[:, : visible[name]]
            masks[name] = torch.ones_like(order, dtype=torch.bool).scatter(1, kept, False)
        return masks

    def order(self, grid: tuple[int, ...], keys: Tensor, stream: int) -> Tensor:
        """float (B, N): the tokens with the lowest values stay visible."""
        raise NotImplementedError


class RandomMask(MaskSampler):
    """Tokens masked independently and uniformly (MAE)."""

    def order(self, grid: tuple[int, ...], keys: Tensor, stream: int) -> Tensor:
        return uniform(keys, math.prod(grid), stream)


class TubeMask(MaskSampler):
    """The same places masked at every time of a clip, so that no token can be copied from its neighbour in time.

    Tong et al. 2022 (VideoMAE). Of the h * w places `int(ratio * h * w)` are masked, so 8 * (196 - 176) of 8 x 14 x 14
    tokens stay visible at ratio .9.
    """

    def visible(self, grids: Grids) -> dict[str, int]:
        counts = {}
        for name, grid in grids.items():
            times, places = _times_and_places(grid)
            counts[name] = times * (places - int(self.ratio * places))
        return counts

    def order(self, grid: tuple[int, ...], keys: Tensor, stream: int) -> Tensor:
        times, places = _times_and_places(grid)
        # Ranks, unlike draws, are all different: a count of whole tubes never cuts one.
        rank = uniform(keys, places, stream).argsort(dim=1, stable=True).argsort(dim=1)
        return rank.float().repeat(1, times)


def _times_and_places(grid: tuple[int, ...]) -> tuple[int, int]:
    if len(grid) != 3:
        raise MmsslError(f"tube masks need a lattice of times, rows and columns, got {grid}; use the random mask.")
    return grid[0], grid[1] * grid[2]


class BlockMask(MaskSampler):
    """Rectangles masked one after the other until the count is reached, the last one in part (after BEiT's).

    Args:
        ratio: fraction of the tokens to mask, exactly.
        area: smallest and largest area of a rectangle, as fractions of the lattice.
        aspect: largest ratio of the sides of a rectangle, in tokens.
    """

    rectangles = 64  # more than any ratio below 1 needs in practice; what they leave open is masked at random

    def __init__(self, ratio: float, area: tuple[float, float] = (0.08, 0.25), aspect: float = 3.0):
        super().__init__(ratio)
        if not 0 < area[0] <= area[1] <= 1 or aspect < 1:
            raise MmsslError(f"block masks need 0 < area <= 1 and aspect >= 1, got area {area} and aspect {aspect}.")
        self.area, self.aspect = area, aspect

    def order(self, grid: tuple[int, ...], keys: Tensor, stream: int) -> Tensor:
        _need_image_lattice(grid)
        inside = self._rows(grid, keys, stream)[..., :, None] & self._columns(grid, keys, stream)[..., None, :]
        inside = inside.flatten(2)  # (B, R, N)
        # Tokens are masked in the order of the first rectangle that holds them, by chance within one.
        number = torch.arange(self.rectangles, 0, -1, device=keys.device)[None, :, None]
        rank = (inside * number).amax(1)  # (B, N): R for the first rectangle, 0 for none
        return rank + RandomMask(self.ratio).order(grid, keys, 4 * stream + 3)

    def _sides(self, keys: Tensor, stream: int, sign: float) -> Tensor:
        """One side of each rectangle as a fraction of the lattice's, (B, R)."""
        draws = uniform(keys, 2 * self.rectangles, 4 * stream)
        area = self.area[0] + (self.area[1] - self.area[0]) * draws[:, : self.rectangles]
        log_aspect = (2 * draws[:, self.rectangles :] - 1) * math.log(self.aspect)
        return area.sqrt() * torch.exp(sign * log_aspect / 2)

    def _span(self, n: int, side: Tensor, place: Tensor) -> Tensor:
        """Which of `n` lattice lines each rectangle covers, bool (B, R, n)."""
        length = (side * n).round().clamp(1, n)
        start = (place * n - length / 2).round()  # it may hang over the border, so that corners get their share
        line = torch.arange(n, device=side.device)
        return (line >= start[..., None]) & (line < (start + length)[..., None])

    def _rows(self, grid: tuple[int, ...], keys: Tensor, stream: int) -> Tensor:
        return self._span(grid[0], self._sides(keys, stream, 1), uniform(keys, self.rectangles, 4 * stream + 1))

    def _columns(self, grid: tuple[int, ...], keys: Tensor, stream: int) -> Tensor:
        return self._span(grid[1], self._sides(keys, stream, -1), uniform(keys, self.rectangles, 4 * stream + 2))


class GridMask(MaskSampler):
    """Every s-th token in both directions stays visible, s = round(1 / sqrt(1 - ratio)), from a place drawn by chance.

    At ratio .75 one of every 2 x 2 tokens is kept (the MAE paper's grid masking). Where the lattice does not divide, or
    the ratio is not 1 - 1 / s ** 2, tokens are dropped or added by chance to keep the exact count.
    """

    def order(self, grid: tuple[int, ...], keys: Tensor, stream: int) -> Tensor:
        _need_image_lattice(grid)
        stride = max(1, round((1 - self.ratio) ** -0.5))
        offset = (uniform(keys, 2, 2 * stream) * stride).long()  # (B, 2)
        rows, columns = (
            torch.arange(n, device=keys.device)[None] % stride == offset[:, i, None] for i, n in enumerate(grid)
        )
        kept = (rows[:, :, None] & columns[:, None, :]).flatten(1)  # (B, N)
        return (~kept).float() + uniform(keys, math.prod(grid), 2 * stream + 1)


def _need_image_lattice(grid: tuple[int, ...]) -> None:
    if len(grid) != 2:
        raise MmsslError(f"block and grid masks need a lattice of rows and columns, got {grid}; use the random mask.")


class TimeFrequencyMask(MaskSampler):
    """Whole times and whole frequencies of a spectrogram masked: what is left is an intersection of rows and columns.

    Huang et al. 2022 (Audio-MAE): `int(T * (1 - time)) * int(F * (1 - frequency))` of T x F tokens stay visible, so
    19 x 5 of 64 x 8 at .7 and .3, and 51 x 6 at .2 and .2, the part that fine-tuning keeps.

    Args:
        time: fraction of the times to mask, in [0, 1).
        frequency: fraction of the frequencies to mask, in [0, 1); None: as many as of the times.
    """

    def __init__(self, time: float, frequency: float | None = None):
        self.time, self.frequency = time, time if frequency is None else frequency
        if not (0 <= self.time < 1 and 0 <= self.frequency < 1 and self.time + self.frequency > 0):
            raise MmsslError(
                f"the ratios of a time and frequency mask must lie between 0 and 1, below 1 and not both 0, "
                f"got time {self.time} and frequency {self.frequency}."
            )

    def visible(self, grids: Grids) -> dict[str, int]:
        return {name: math.prod(self._lines(grid)) for name, grid in grids.items()}

    def order(self, grid: tuple[int, ...], keys: Tensor, stream: int) -> Tensor:
        kept = [
            uniform(keys, n, 2 * stream + axis).argsort(dim=1, stable=True).argsort(dim=1) < count
            for axis, (n, count) in enumerate(zip(grid, self._lines(grid), strict=True))
        ]
        return (~(kept[0][:, :, None] & kept[1][:, None, :])).flatten(1).float()  # (B, N)

    def _lines(self, grid: tuple[int, ...]) -> tuple[int, int]:
        """How many times and how many frequencies stay visible."""
        if len(grid) != 2:
            raise MmsslError(
                f"time and frequency masks need a lattice of times and frequencies, got {grid}; use the random mask."
            )
        return int(grid[0] * (1 - self.time)), int(grid[1] * (1 - self.frequency))


class TimeMask(TimeFrequencyMask):
    """Whole times masked, of all frequencies."""

    def __init__(self, ratio: float):
        super().__init__(ratio, 0.0)


class FrequencyMask(TimeFrequencyMask):
    """Whole frequencies masked, at all times."""

    def __init__(self, ratio: float):
        super().__init__(0.0, ratio)


MASKS: dict[str, type[MaskSampler]] = {
    "random": RandomMask,
    "tube": TubeMask,
    "block": BlockMask,
    "grid": GridMask,
    "time": TimeMask,
    "frequency": FrequencyMask,
    "time_frequency": TimeFrequencyMask,
}
"""Samplers by the names that recipes use."""
