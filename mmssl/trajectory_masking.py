"""Which steps of a trajectory are known: the mask patterns of MTM (Wu et al. 2023, arXiv 2305.02968). True = masked.

A token belongs to a modality of one of four kinds, in the order in which things happen within a step: what is observed,
the return from here on, the action, and the reward that it gave. The first axis of every lattice is the time.
"""

import math
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor

from mmssl.errors import MmsslError, unknown_name
from mmssl.joint_masking import JointMask
from mmssl.keys import uniform
from mmssl.masking import Grids

Pattern = Literal[
    "autoregressive", "random", "full_random", "future", "bc", "bc_random", "rcbc", "forward_dynamics",
    "inverse_dynamics", "goal", "waypoints",
]  # fmt: skip
OBSERVED, RETURN, ACTION, REWARD = range(4)
_KINDS = {"return": RETURN, "action": ACTION, "reward": REWARD}
_RANDOM = ("autoregressive", "random", "full_random")
STEPS = ("future", "bc", "rcbc", "forward_dynamics", "inverse_dynamics", "goal", "waypoints")
"""The patterns in which nothing is random but the present step."""
KEPT = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
"""Fractions of the tokens that stay, as the paper gives them for D4RL."""


def kind_of(name: str) -> int:
    """OBSERVED, RETURN, ACTION or REWARD, by the name of a modality."""
    return _KINDS.get(name.partition("/")[0], OBSERVED)


def known_steps(pattern: str, kind: int, length: int, now: Tensor, way: Tensor, last: Tensor) -> Tensor:
    """Steps of a modality that a pattern shows, bool (B, length).

    Args:
        pattern: one of STEPS. `bc`: what was observed up to now and done before; `rcbc`: all returns too; `future`: all
            up to now; `forward_dynamics`: what was observed up to now, and all actions; `inverse_dynamics`: all that is
            observed; `goal`: as `bc`, and the last observation; `waypoints`: the first and the last observation, and
            those on the way.
        kind: of the modality.
        now: int64 (B,), the present step; -1: nothing is past.
        way: bool (B, length), the observations on the way.
        last: int64 (B,), the last step.
    """
    time, now, last = torch.arange(length, device=now.device)[None], now[:, None], last[:, None]  # (1, T), (B, 1)
    past, never = time <= now, torch.zeros_like(time <= now)
    observed = {
        "inverse_dynamics": ~never,
        "goal": past | (time == last),
        "waypoints": (time == 0) | (time == last) | way,
    }
    done = never if pattern in ("inverse_dynamics", "waypoints") else time < now
    return {
        OBSERVED: observed.get(pattern, past),
        RETURN: ~never if pattern == "rcbc" else past if pattern == "future" else never,
        ACTION: {"future": past, "forward_dynamics": ~never}.get(pattern, done),
        REWARD: past if pattern == "future" else never,
    }[kind]


class TrajectoryMask(JointMask):
    """Masks of all modalities of a trajectory at once.

    `autoregressive` (the paper's): of each modality a random part stays, whose fraction is drawn from `kept`; then a
    step t and a kind are drawn, and at t that kind and those after it are hidden, from t + 1 on all. So what is hidden
    there has no future to be read from. `random`: the first half of this. `full_random`: the fraction is a cosine of a
    number from .15 to .9 (MaskGIT). The others are those of `known_steps`, where the present is drawn uniformly.

    Args:
        pattern: which one.
        kept: fractions that stay, in [0, 1], of which one is drawn for each modality.
        chance: of each kind to be the first that is hidden: observed, return, action; kinds that are not there have
            none.
        scope: `batch`: one draw, from the first key, for the whole batch (the released code); `sample`: one for each.

    Raises:
        MmsslError: an unknown pattern or scope, fractions or chances out of range.
    """

    def __init__(
        self,
        pattern: str = "autoregressive",
        kept: tuple[float, ...] = KEPT,
        chance: tuple[float, float, float] = (0.2, 0.1, 0.7),
        scope: Literal["batch", "sample"] = "batch",
    ):
        if pattern not in get_args(Pattern):
            raise unknown_name("mask", pattern, get_args(Pattern))
        if scope not in ("batch", "sample"):
            raise unknown_name("mask_scope", scope, ("batch", "sample"))
        if not kept or not all(0 <= part <= 1 for part in kept):
            raise MmsslError(f"kept must be fractions of the tokens that stay, in [0, 1], got {list(kept)}.")
        if len(chance) != 3 or min(chance) < 0 or sum(chance) <= 0:
            raise MmsslError(
                f"chance must be three numbers of 0 or more (observed, return, action), got {list(chance)}."
            )
        self.pattern, self.kept, self.chance, self.scope = pattern, tuple(kept), tuple(chance), scope

    def visible(self, grids: Grids) -> dict[str, int]:
        """Number of visible tokens, the largest of any row: all."""
        return {name: math.prod(grid) for name, grid in grids.items()}

    def __call__(self, grids: Grids, keys: Tensor, valid: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        if keys.ndim != 1 or keys.dtype != torch.int64:
            raise MmsslError(
                f"mask keys must be int64 (batch,), got {keys.dtype} {tuple(keys.shape)}; use sample_keys."
            )
        drawn = keys[:1] if self.scope == "batch" else keys
        length, draws = _length(grids), uniform(drawn, 2)  # (B, 2)
        now, first = (draws[:, 0] * length).long(), self._first_hidden(grids, draws[:, 1])  # (B,), now < length
        masks = {}
        for stream, (name, grid) in enumerate(grids.items()):
            if self.pattern not in _RANDOM:
                mask = ~over_tokens(self._shown(name, length, draws, _last(grids, valid, draws)), grid)
            else:
                mask = self._random(grid, drawn, 1 + stream)
            if self.pattern == "bc_random":
                mask = mask | (uniform(drawn, mask.shape[1], 1 + stream) < 0.5)
            if self.pattern == "autoregressive":
                # At the present step that kind and those after it have no future to be read from, nor has any later.
                future = torch.arange(length, device=now.device) >= (now + (kind_of(name) < first))[:, None]
                mask = mask | over_tokens(future, grid)
            masks[name] = mask.expand(len(keys), -1)
        return masks

    def _shown(self, name: str, length: int, draws: Tensor, last: Tensor) -> Tensor:
        """Steps of a modality that a pattern of STEPS shows, with the present drawn as in the released code."""
        pattern = "bc" if self.pattern == "bc_random" else self.pattern
        steps = {"goal": last, "forward_dynamics": last}.get(pattern, last + 1).clamp(min=1)  # (B,)
        now = (draws[:, 0] * steps).long()
        way = torch.arange(length, device=now.device)[None] == now[:, None]
        return known_steps(pattern, kind_of(name), length, now - int(pattern == "forward_dynamics"), way, last)

    def _random(self, grid: tuple[int, ...], keys: Tensor, stream: int) -> Tensor:
        """Tokens of one modality that are hidden at random, bool (B, N); a fraction is drawn for each row."""
        n = grid[0] if self.pattern == "random" else math.prod(grid)
        draws = uniform(keys, n + 1, stream)  # (B, N + 1)
        counts = torch.tensor(self._counts(n), device=keys.device)
        count = counts[(draws[:, 0] * len(counts)).long()]  # (B,)
        rank = draws[:, 1:].argsort(dim=1, stable=True).argsort(dim=1)
        mask = rank >= count[:, None]
        return over_tokens(mask, grid) if self.pattern == "random" else mask

    def _counts(self, n: int) -> list[int]:
        """Numbers of tokens that may stay of n."""
        if self.pattern == "full_random":
            parts = [0.5 + 0.5 * math.cos(math.pi * (0.15 + 0.75 * i / 29)) for i in range(30)]
        else:
            parts = self.kept
        return [int(n * part) for part in parts]

    def _first_hidden(self, grids: Grids, draw: Tensor) -> Tensor:
        """The first kind that an autoregressive mask hides at the present step, int64 (B,)."""
        there = {kind_of(name) for name in grids}
        chances = [chance if kind in there else 0.0 for kind, chance in enumerate(self.chance)]
        chances = chances if sum(chances) > 0 else [1.0] * len(chances)
        first = torch.zeros(len(draw), dtype=torch.int64, device=draw.device)
        for edge in list(accumulate(chances))[:-1]:
            first = first + (draw >= edge / sum(chances))
        return first


def _length(grids: Grids) -> int:
    lengths = {grid[0] for grid in grids.values()}
    if len(lengths) > 1:
        raise MmsslError(f"all modalities of a trajectory must have the same number of steps, got {dict(grids)}.")
    return lengths.pop()


def _last(grids: Grids, valid: dict[str, Tensor] | None, draws: Tensor) -> Tensor:
    """The last step of each row, int64 (B,) or (1,): where some modality is no padding."""
    length = _length(grids)
    if not valid:
        return torch.full((1,), length - 1, device=draws.device)
    steps = [valid[name].unflatten(1, (length, -1)).any(2).sum(1) for name in grids if name in valid]
    return torch.stack(steps).amax(0).clamp(min=1) - 1


def over_tokens(steps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, T) -> (B, N): what holds of a step holds of all its tokens."""
    return steps.repeat_interleave(math.prod(grid[1:]), dim=1)
