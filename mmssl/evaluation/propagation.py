"""Label propagation: the labels of a first frame are carried through a video by the likeness of frozen features.

The rule of the space-time walk (Jabri et al. 2020, arXiv 2006.14613), DINO (Caron et al. 2021, arXiv 2104.14294) and
SiamMAE (Gupta et al. 2023, arXiv 2305.14344), with the details of DINO's released code: each token of a frame takes the
mean of the soft labels of the `top_k` tokens that are most like it among all tokens near its place in the first frame
and in the last `queue` frames, weighted by exp(cosine / temperature). Nothing is trained.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.errors import MmsslError

_BUDGET = 2**25  # likenesses held at once: 128 MB of float32
_LARGEST_TILE = 16  # tokens a side


@dataclass(frozen=True)
class PropagationConfig:
    """How labels travel.

    Args:
        top_k: tokens that a token takes its labels from.
        neighbourhood: how many tokens away these may lie, in rows and in columns; 0 = anywhere.
        queue: last frames that they may come from, besides the first frame.
        temperature: of the weights exp(cosine / temperature).
    """

    top_k: int = 7
    neighbourhood: int = 30
    queue: int = 30
    temperature: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("top_k", 1), ("neighbourhood", 0), ("queue", 0)):
            if getattr(self, name) < least:
                raise MmsslError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not self.temperature > 0:
            raise MmsslError(f"temperature must be above 0, got {self.temperature}.")


@torch.no_grad()
def propagate(maps: Iterable[Tensor], first: Tensor, config: PropagationConfig) -> Iterator[Tensor]:
    """Soft labels (C, h, w) of the second frame, the third, and so on.

    Args:
        maps: features (h, w, D) of unit length, one map a frame, the first frame's first. They are taken one at a time;
            `queue` + 2 of them are held.
        first: float (C, h, w), the soft labels of the first frame, on the device of the maps.
    """
    maps = iter(maps)
    anchor = (next(maps), first.permute(1, 2, 0))  # (h, w, D), (h, w, C)
    past: deque[tuple[Tensor, Tensor]] = deque(maxlen=config.queue)
    for target in maps:
        keys, values = (torch.stack(parts) for parts in zip(anchor, *past, strict=True))  # (T, h, w, D), (T, h, w, C)
        labels = carry(target, keys, values, config)
        past.append((target, labels))
        yield labels.permute(2, 0, 1)


def carry(target: Tensor, keys: Tensor, values: Tensor, config: PropagationConfig) -> Tensor:
    """Labels (h, w, C) of one frame from those of its context.

    The frame is cut into tiles, and each tile is compared with the part of the context that is near it.

    Args:
        target: (h, w, D) features of unit length.
        keys: (T, h, w, D) features of the context.
        values: (T, h, w, C) its labels.
    """
    height, width = target.shape[:2]
    reach = config.neighbourhood or max(height, width)
    side = _tile_side(len(keys), height, width, reach)
    out = values.new_empty(height, width, values.shape[-1])
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, columns = (slice(top, min(top + side, height)), slice(left, min(left + side, width)))
            near_rows = slice(max(0, rows.start - reach), min(height, rows.stop + reach))
            near_columns = slice(max(0, columns.start - reach), min(width, columns.stop + reach))
            found = _attend(
                target[rows, columns].flatten(0, 1),
                keys[:, near_rows, near_columns].flatten(1, 2),
                values[:, near_rows, near_columns].flatten(1, 2),
                _near((rows, columns), (near_rows, near_columns), reach, target.device),
                config,
            )
            out[rows, columns] = found.view(rows.stop - rows.start, columns.stop - columns.start, -1)
    return out


def _tile_side(frames: int, height: int, width: int, reach: int) -> int:
    """Side of a tile of queries whose likenesses with their context fit the budget."""
    side = _LARGEST_TILE
    while side > 1:
        near = min(height, side + 2 * reach) * min(width, side + 2 * reach)
        if side * side * near * frames <= _BUDGET:
            break
        side //= 2
    return side


def _near(queries: tuple[slice, slice], keys: tuple[slice, slice], reach: int, device: torch.device) -> Tensor:
    """bool (Q, K): which tokens of two rectangles (rows, columns) are at most `reach` apart, by row and by column."""
    near = []
    for q, k in zip(queries, keys, strict=True):
        apart = torch.arange(q.start, q.stop, device=device)[:, None] - torch.arange(k.start, k.stop, device=device)
        near.append(apart.abs() <= reach)
    both = near[0][:, None, :, None] & near[1][None, :, None, :]  # (rows, columns, near rows, near columns)
    return both.flatten(2).flatten(0, 1)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, near: Tensor, config: PropagationConfig) -> Tensor:
    """(Q, C) from queries (Q, D), keys (T, K, D), values (T, K, C) and near bool (Q, K), over T and K jointly."""
    likeness = (queries @ keys.flatten(0, 1).T).unflatten(1, keys.shape[:2])  # (Q, T, K)
    likeness = likeness.masked_fill_(~near[:, None], -torch.inf).flatten(1)
    best, place = likeness.topk(min(config.top_k, likeness.shape[1]), dim=1)  # (Q, k)
    weights = (best / config.temperature).softmax(1)  # exp(cosine / temperature), normalised
    return (weights[..., None] * values.flatten(0, 1)[place]).sum(1)


def soft_labels(ids: Tensor, values: list[int], grid: tuple[int, int], how: Literal["nearest", "share"]) -> Tensor:
    """Label ids (H, W) -> float32 (C, h, w) at token resolution, one plane for each of `values`.

    Args:
        values: the ids that are told apart; any other id counts as the first of them.
        how: "nearest" takes the id at the centre of each token (DINO); "share" the part of the token that each covers,
            by which objects smaller than a token survive.
    """
    planes = torch.stack([ids == value for value in values]).float()  # (C, H, W)
    planes[0] += planes.sum(0) == 0
    if how == "share":
        return F.adaptive_avg_pool2d(planes, grid)
    return F.interpolate(planes[None], size=grid, mode="nearest-exact")[0]


def hard_labels(soft: Tensor, between: tuple[int, int], size: tuple[int, int], stretch: bool = True) -> Tensor:
    """Soft labels (C, h, w) -> int64 (H, W), the place in 0..C-1 of the winner at each pixel.

    Args:
        between: (height, width) of the frame as the encoder saw it; soft labels are upsampled to it bilinearly.
        size: (H, W) of the frame on disk; the winners are brought to it by the nearest neighbour.
        stretch: scale each class to [0, 1] by its own smallest and largest value in the frame before they compete, as
            DINO does, so that a small object whose labels have thinned out is not lost.
    """
    planes = F.interpolate(soft[None], size=between, mode="bilinear", align_corners=False)[0]
    if stretch:
        low, high = planes.amin((1, 2), keepdim=True), planes.amax((1, 2), keepdim=True)
        planes = torch.where(high > low, (planes - low) / (high - low).clamp_min(1e-12), planes)
    winner = planes.argmax(0)
    if winner.shape == size:
        return winner
    return F.interpolate(winner[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
