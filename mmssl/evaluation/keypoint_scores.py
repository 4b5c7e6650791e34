"""Joints as label maps, back to coordinates, and the share of them that are found (PCK).

The JHMDB protocol of UVC (Li et al. 2019) and the space-time walk (Jabri et al. 2020), as their released code has it.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

THRESHOLDS = (0.1, 0.2)
SIGMA = 0.5  # tokens


def joint_maps(joints: np.ndarray, size: tuple[int, int], grid: tuple[int, int], sigma: float = SIGMA) -> Tensor:
    """float32 (1 + K, h, w): the background, 1 where no joint is, and a spot for each joint.

    A spot is a Gaussian of 4 x 4 tokens with the value 1 at the whole token position nearest to the joint (positions
    are counted from the corner: pixel p lies at p / patch). A joint far outside of the frame has an empty map.

    Args:
        joints: (K, 2) x and y in pixels of the frame on disk.
        size: (H, W) of that frame.
        sigma: of the Gaussian, in tokens.
    """
    scale = np.array([grid[1] / size[1], grid[0] / size[0]])
    maps = np.zeros((len(joints), *grid), np.float32)
    for spot, (x, y) in zip(maps, joints * scale, strict=True):
        _draw(spot, x, y, sigma)
    background = (maps.sum(0, keepdims=True) == 0).astype(np.float32)
    return torch.from_numpy(np.concatenate([background, maps]))


def _draw(spot: np.ndarray, x: float, y: float, sigma: float) -> None:
    """Draw one Gaussian into (h, w), cut at the borders."""
    if not np.isfinite([x, y]).all():
        return
    length = int(6 * sigma + 1)  # tokens a side; the centre is number length // 2
    wave = np.exp(-((np.arange(length) - length // 2) ** 2) / (2 * sigma**2))
    left, top = (
        int(x - 3 * sigma),
        int(y - 3 * sigma),
    )  # cut towards 0, so a spot within 1.5 tokens of a border is shifted
    rows = [i for i in range(length) if 0 <= top + i < spot.shape[0]]
    columns = [i for i in range(length) if 0 <= left + i < spot.shape[1]]
    if rows and columns:
        spot[np.ix_([top + i for i in rows], [left + i for i in columns])] = np.outer(wave[rows], wave[columns])


def joint_places(maps: Tensor, size: tuple[int, int], responses: int = 3) -> np.ndarray:
    """Joints float64 (K, 2), x and y in pixels, from soft labels (1 + K, h, w) with the background first.

    The place is the mean of the strongest `responses` tokens, weighted by their values; NaN where the map is empty.
    """
    height, width = maps.shape[1:]
    values, place = maps[1:].flatten(1).double().topk(min(responses, height * width), dim=1)  # (K, n)
    total = values.sum(1, keepdim=True)
    weights = torch.where(total > 0, values / total, torch.nan)
    x, y = (weights * (place % width)).sum(1), (weights * (place // width)).sum(1)
    return torch.stack([x / width * size[1], y / height * size[0]], 1).cpu().numpy()


class JointTally:
    """PCK: a joint is found where its distance from the truth is at most a share of the person's size.

    The size is 0.6 times the diagonal of the box around the true joints of that frame. The given first frame is not
    judged. Joints whose map is empty are not judged and not in the box either, as in the released evaluation; "lost" is
    the share of those in the first frame that are lost so. The score is the mean over the joints' own shares.
    """

    headline = "PCK@.1"

    def __init__(self) -> None:
        self.distances: list[np.ndarray] = []  # (frames, K) in sizes of the person, NaN = not judged
        self.shown: list[np.ndarray] = []  # bool (frames, K): the first frame shows it

    def add(self, truths: Sequence[np.ndarray | None], guesses: Iterable[np.ndarray]) -> dict[str, float]:
        """Scores of one sequence, from joints (K, 2) of each frame; truth is None where it is not known."""
        guesses = list(guesses)
        pairs = [(t, g) for t, g in zip(truths[1:], guesses[1:], strict=True) if t is not None]
        distances = np.array([_distances(truth, guess) for truth, guess in pairs])
        shown = np.broadcast_to(np.isfinite(guesses[0]).all(1), distances.shape)
        self.distances.append(distances)
        self.shown.append(shown)
        return _pck(distances, shown)

    def total(self) -> dict[str, float]:
        """Scores of all sequences so far."""
        return _pck(np.concatenate(self.distances), np.concatenate(self.shown))


def _distances(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """(K,) distances in sizes of the person; NaN where a joint has no place."""
    there = np.isfinite(guess).all(1)
    if not there.any():
        return np.full(len(truth), np.nan)
    box = truth[there].max(0) - truth[there].min(0)
    size = 0.6 * np.linalg.norm(box)
    with np.errstate(divide="ignore", invalid="ignore"):  # a single joint has a box of no size
        return np.linalg.norm(guess - truth, axis=1) / size


def _pck(distances: np.ndarray, shown: np.ndarray) -> dict[str, float]:
    judged = ~np.isnan(distances)
    used = judged.any(0)
    result = {}
    for threshold in THRESHOLDS:
        right = (distances <= threshold).sum(0)[used] / judged.sum(0)[used]  # NaN compares as False
        result[f"PCK@{threshold:g}".replace("@0", "@")] = float(right.mean()) if used.any() else 0.0
    result["lost"] = float((shown & ~judged).sum() / max(1, shown.sum()))
    return result
