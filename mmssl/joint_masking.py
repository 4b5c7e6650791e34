"""Mask samplers that see several modalities at once. True = masked, as in `mmssl.masking`."""

import math
from typing import Literal

import torch
from torch import Tensor

from mmssl.errors import MmsslError, unknown_name
from mmssl.keys import random_bits, uniform
from mmssl.masking import Grids, MaskSampler

_PROPOSALS = 16  # of a gamma draw: each is taken with probability .95 or more


class JointMask(MaskSampler):
    """Base of the samplers here: how many tokens of a modality are visible may differ from row to row."""

    def __init__(self) -> None:  # there is no one ratio
        pass

    def budget(self, grids: Grids) -> int | None:
        """Number of visible tokens over all modalities, the same in every row that lacks none; None: it differs."""
        return None

    def hidden(self, grids: Grids) -> dict[str, int]:
        """Number of masked tokens of each modality, the largest of any row."""
        return {name: math.prod(grid) for name, grid in grids.items()}


class IndependentMask(JointMask):
    """Tokens of each modality masked by themselves, uniformly (M3AE, Geng et al. 2022, arXiv 2205.14204).

    Args:
        ratios: fraction of the tokens to mask, modality -> number in [0, 1), or one number for all;
            `int(N * (1 - ratio))` of N stay visible.
        scope: one permutation for each sample, or one for the whole batch (the released code).
        padding: `count`: padding counts as tokens, so that short texts keep as many of their words on average as long
            ones (the released code); `skip`: the ratio is of the real tokens of each row.
    """

    def __init__(
        self,
        ratios: dict[str, float] | float,
        scope: Literal["sample", "batch"] = "sample",
        padding: Literal["count", "skip"] = "count",
    ):
        for ratio in ratios.values() if isinstance(ratios, dict) else [ratios]:
            if not 0 <= ratio < 1:
                raise MmsslError(f"a mask ratio must lie in [0, 1), got {ratio}.")
        self.ratios, self.scope, self.padding = ratios, scope, padding

    def ratio_of(self, name: str) -> float:
        """The ratio of one modality."""
        if not isinstance(self.ratios, dict):
            return self.ratios
        if name not in self.ratios:
            raise MmsslError(f"there is no mask ratio for {name!r}; there are some for {', '.join(self.ratios)}.")
        return self.ratios[name]

    def visible(self, grids: Grids) -> dict[str, int]:
        return {name: int(math.prod(grid) * (1 - self.ratio_of(name))) for name, grid in grids.items()}

    def hidden(self, grids: Grids) -> dict[str, int]:
        if self.padding == "skip":
            return super().hidden(grids)
        return {name: math.prod(grids[name]) - n for name, n in self.visible(grids).items()}

    def __call__(self, grids: Grids, keys: Tensor, valid: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        drawn = keys[:1].expand(len(keys)) if self.scope == "batch" else keys
        if self.padding == "count":
            return super().__call__(grids, drawn)
        masks = {}
        for stream, (name, grid) in enumerate(grids.items()):
            order = self.order(grid, drawn, stream)
            real = (valid or {}).get(name, torch.ones_like(order, dtype=torch.bool))
            rank = order.masked_fill(~real, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
            kept = (real.sum(1).double() * (1 - self.ratio_of(name))).long()  # (B,)
            masks[name] = rank >= kept[:, None]
        return masks

    def order(self, grid: tuple[int, ...], keys: Tensor, stream: int) -> Tensor:
        return uniform(keys, math.prod(grid), stream)


class DirichletMask(JointMask):
    """A number of visible tokens split among the modalities by a Dirichlet draw (MultiMAE, arXiv 2204.01678).

    Of each modality `round(share * budget)` tokens chosen uniformly come first, then the others by chance, until the
    budget is reached, as in the released code. A row that lacks a modality splits the budget among those it has; where
    the modalities of a whole batch have no more tokens than the budget, half of them stay visible.

    Args:
        budget: tokens visible over all modalities; 98 of 588 in the paper.
        alpha: concentration of the draw: 1 is uniform over all shares, above it more even, below it more one-sided.
        uniform_subsets: first a uniformly drawn set of modalities, among which alone the budget is split.
    """

    def __init__(self, budget: int, alpha: float = 1.0, uniform_subsets: bool = False):
        if budget < 1:
            raise MmsslError(f"the token budget must be at least 1, got {budget}.")
        if not alpha > 0:
            raise MmsslError(f"alpha of the Dirichlet draw must be above 0, got {alpha}.")
        self.tokens, self.alpha, self.uniform_subsets = budget, alpha, uniform_subsets

    def budget(self, grids: Grids) -> int:
        total = sum(math.prod(grid) for grid in grids.values())
        return self.tokens if self.tokens < total else max(1, total // 2)

    def visible(self, grids: Grids) -> dict[str, int]:
        return {name: min(math.prod(grid), self.budget(grids)) for name, grid in grids.items()}

    def __call__(self, grids: Grids, keys: Tensor, valid: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        sizes, budget, valid = [math.prod(grid) for grid in grids.values()], self.budget(grids), valid or {}
        everything = torch.ones(len(keys), 1, dtype=torch.bool, device=keys.device)
        real = torch.cat(
            [valid.get(name, everything.expand(-1, size)) for name, size in zip(grids, sizes, strict=True)], 1
        )  # (B, sum N)
        present = torch.stack([part.any(1) for part in real.split(sizes, 1)], 1)  # (B, M)
        wanted = (self.shares(keys, present) * budget).round()  # (B, M)
        draws = uniform(keys, 2 * sum(sizes), 3)
        order, chance = draws[:, : sum(sizes)].masked_fill(~real, 2), draws[:, sum(sizes) :]
        ranks = torch.cat([part.argsort(dim=1, stable=True).argsort(dim=1) for part in order.split(sizes, 1)], 1)
        several = torch.tensor(sizes, device=keys.device)
        later = ranks >= wanted.repeat_interleave(
            several, 1, output_size=sum(sizes)
        )  # not among a modality's own share
        rank = (later + chance).masked_fill(~real, math.inf)
        kept = rank.argsort(dim=1, stable=True)[:, :budget]
        mask = torch.ones_like(real).scatter(1, kept, False) | ~real
        return dict(zip(grids, mask.split(sizes, 1), strict=True))

    def shares(self, keys: Tensor, present: Tensor) -> Tensor:
        """Share of the budget of each modality, float32 (B, M), 0 where `present` (B, M) is False."""
        if self.uniform_subsets:
            present = _subset(keys, present)
        weight = gamma(keys, present.shape[1], self.alpha).masked_fill(~present, 0)
        return (weight / weight.sum(1, keepdim=True).clamp(min=1e-30)).float()


def _subset(keys: Tensor, present: Tensor) -> Tensor:
    """A uniformly drawn non-empty subset of each row's modalities, bool (B, M)."""
    count = present.shape[1]
    number = (random_bits(keys, 1, 0)[:, 0] & (2**40 - 1)) % (2**count - 1) + 1  # 1 .. 2 ** M - 1
    chosen = (number[:, None] >> torch.arange(count, device=keys.device)) & 1 == 1
    chosen = chosen & present
    return torch.where(chosen.any(1, keepdim=True), chosen, present)


def gamma(keys: Tensor, n: int, alpha: float) -> Tensor:
    """float64 (B, n) of Gamma(alpha, 1) draws, a function of the keys (B,) alone.

    Of several proposals the first that is accepted is taken (Marsaglia and Tsang 2000): no row waits for another.
    """
    boosted = alpha + 1 if alpha < 1 else alpha
    d = boosted - 1 / 3
    c = (9 * d) ** -0.5
    draws = uniform(keys, n * (3 * _PROPOSALS + 1), 1).double().clamp(min=2.0**-25)
    parts = draws[:, : 3 * n * _PROPOSALS].unflatten(1, (n, _PROPOSALS, 3))  # (B, n, R, 3)
    normal = (-2 * parts[..., 0].log()).sqrt() * (2 * math.pi * parts[..., 1]).cos()  # Box and Muller
    v = (1 + c * normal) ** 3
    accepted = (v > 0) & (parts[..., 2].log() < 0.5 * normal**2 + d - d * v + d * v.clamp(min=1e-30).log())
    first = accepted.to(torch.uint8).argmax(-1, keepdim=True)  # (B, n, 1)
    value = d * v.gather(-1, first)[..., 0].clamp(min=1e-30)
    return value if alpha >= 1 else value * draws[:, -n:] ** (1 / alpha)


class ViewMask(JointMask):
    """Whole views hidden, and most of what is left: k views of each sample and frame.

    The multi-view masked autoencoder of Seo et al. 2023 (MV-MWM, arXiv 2302.02408): of the N tokens of all views and
    frames `int(N * (1 - ratio - (1 - ratio) * k / V))` stay visible, none of them in a hidden view; how many of them
    are of one frame is left to chance, as in the released code.

    Args:
        ratio: fraction of the tokens to mask where no view is hidden; the paper's .9 with one of two views hidden masks
            .95 of all.
        hidden_views: k, how many views are hidden wholly; fewer where a batch has no more than these.
        draw: which views: each set equally often; or `coins`, a coin for each view from the first to the last until k
            are hidden (the released code): of three views or more the first ones are hidden more often.
    """

    def __init__(self, ratio: float, hidden_views: int = 1, draw: Literal["uniform", "coins"] = "uniform"):
        if not 0 < ratio < 1:
            raise MmsslError(f"the mask ratio must lie strictly between 0 and 1, got {ratio}.")
        if hidden_views < 0:
            raise MmsslError(f"hidden_views must be 0 or more, got {hidden_views}.")
        if draw not in ("uniform", "coins"):
            raise unknown_name("draw", draw, ("uniform", "coins"))
        self.ratio, self.hidden_views, self.draw = ratio, hidden_views, draw

    def budget(self, grids: Grids) -> int:
        frames, places = _one_lattice(grids)
        k = min(self.hidden_views, len(grids) - 1)
        share = (1 - self.ratio) * (1 - k / len(grids))
        return int(round(share * len(grids) * frames * places, 6))

    def visible(self, grids: Grids) -> dict[str, int]:
        return {name: min(math.prod(grid), self.budget(grids)) for name, grid in grids.items()}

    def __call__(self, grids: Grids, keys: Tensor, valid: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        frames, places = _one_lattice(grids)
        views, valid = len(grids), valid or {}
        hidden = self.choose(keys, frames, views)  # (B, T, V)
        order = uniform(keys, frames * views * places, 1).unflatten(1, (frames, views, places))
        real = torch.ones(len(keys), 1, dtype=torch.bool, device=keys.device).expand(-1, frames * places)
        real = torch.stack([valid.get(name, real).unflatten(1, (frames, places)) for name in grids], 2)  # (B, T, V, P)
        order = (order + 2 * hidden[..., None]).masked_fill(~real, math.inf)
        kept = order.flatten(1).argsort(dim=-1, stable=True)[:, : self.budget(grids)]  # (B, n)
        mask = torch.ones_like(real).flatten(1).scatter(-1, kept, False).view(real.shape) | ~real
        return {name: mask[:, :, view].flatten(1) for view, name in enumerate(grids)}

    def choose(self, keys: Tensor, frames: int, views: int) -> Tensor:
        """Which views are hidden in each frame, bool (B, T, V): k of them."""
        k = min(self.hidden_views, views - 1)
        chance = uniform(keys, frames * views, 0).unflatten(1, (frames, views))
        if self.draw == "uniform":
            return chance.argsort(dim=-1, stable=True).argsort(dim=-1) < k
        chosen = []
        for view in range(views):
            before = torch.stack(chosen, -1).sum(-1) if chosen else torch.zeros_like(chance[..., 0], dtype=torch.int64)
            forced = k - before >= views - view  # all that are left are needed
            chosen.append((before < k) & (forced | (chance[..., view] > 0.5)))
        return torch.stack(chosen, -1)


def _one_lattice(grids: Grids) -> tuple[int, int]:
    """Frames and places of a frame, the same in all views; images are clips of one frame."""
    shapes = set(grids.values())
    if len(shapes) > 1:
        raise MmsslError(f"whole views are hidden where all have one lattice, got {grids}.")
    grid = shapes.pop()
    return (grid[0] if len(grid) == 3 else 1), math.prod(grid[-2:])
