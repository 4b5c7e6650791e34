"""Region and boundary accuracy of masks (J and F), and mean intersection over union of part labels.

J and F as the DAVIS benchmarks define them (Perazzi et al. 2016; Pont-Tuset et al., arXiv 1704.00675) and the authors'
davis2017-evaluation computes them; mIoU as the VIP evaluation of TimeCycle, UVC and the space-time walk.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.spatial import cKDTree

from mmssl.data.labelled_videos import IGNORE

BOUND = 0.008  # tolerance of a boundary, as a share of the frame's diagonal


def region_j(truth: np.ndarray, guess: np.ndarray, void: np.ndarray | None = None) -> float:
    """Intersection over union of two masks, bool (H, W); 1 where both are empty.

    Args:
        void: bool (H, W), pixels that do not count.
    """
    truth, guess = _valid(truth, void), _valid(guess, void)
    union = np.count_nonzero(truth | guess)
    return np.count_nonzero(truth & guess) / union if union else 1.0


def boundary_f(truth: np.ndarray, guess: np.ndarray, void: np.ndarray | None = None, bound: float = BOUND) -> float:
    """F-measure of the boundaries of two masks, bool (H, W): 1 where both are empty, 0 where one is.

    A boundary pixel is right where the other boundary has a pixel within ceil(bound * diagonal) pixels of it.
    """
    radius = math.ceil(bound * math.hypot(*truth.shape))
    ours, theirs = (np.argwhere(boundary(_valid(mask, void))) for mask in (guess, truth))  # (n, 2)
    if not len(ours) or not len(theirs):
        return float(len(ours) == len(theirs))
    precision, recall = _within(ours, theirs, radius), _within(theirs, ours, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _valid(mask: np.ndarray, void: np.ndarray | None) -> np.ndarray:
    return mask.astype(bool) if void is None else mask.astype(bool) & ~void


def boundary(mask: np.ndarray) -> np.ndarray:
    """bool (H, W): pixels that differ from the one to the right, below, or below to the right (Martin's seg2bmap)."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, both = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ both)


def _within(points: np.ndarray, others: np.ndarray, radius: int) -> float:
    """Share of `points` (n, 2) that have one of `others` (m, 2) at most `radius` away."""
    distance, _ = cKDTree(others).query(points, distance_upper_bound=radius + 1e-6)
    return np.count_nonzero(np.isfinite(distance)) / len(points)


def over_time(values: np.ndarray) -> dict[str, float]:
    """Mean; recall, the share of frames above one half; and decay, the mean of the first quarter minus the last's."""
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1  # quarters share their border frame
    first, last = (values[edges[i] : edges[i + 1] + 1].mean() for i in (0, 3))
    return {"mean": float(values.mean()), "recall": float((values > 0.5).mean()), "decay": float(first - last)}


class MaskTally:
    """J and F of every object of every sequence.

    The given first frame and the last one are not judged, and neither are frames without annotation. A score of several
    sequences is the mean over all their objects, as in davis2017-evaluation.
    """

    headline = "J&F"

    def __init__(self) -> None:
        self.objects: list[dict[str, float]] = []

    def add(self, truths: Sequence[np.ndarray | None], guesses: Iterable[np.ndarray]) -> dict[str, float]:
        """Scores of one sequence, from ids (H, W) of each frame; truth is None where it is not known."""
        pairs = list(zip(truths, guesses, strict=True))
        judged = pairs[1:-1] or pairs[1:]
        judged = [(truth, guess) for truth, guess in judged if truth is not None]
        ids = [k for k in np.unique(truths[0]).tolist() if k not in (0, IGNORE)]
        found = [_judge_object([(t == k, g == k, t == IGNORE) for t, g in judged]) for k in ids]
        self.objects += found
        return _mean(found)

    def total(self) -> dict[str, float]:
        """Scores of all sequences so far."""
        return _mean(self.objects)


def _judge_object(masks: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, float]:
    """J and F over the frames (truth, guess, void) of one object."""
    scores = {"J": [], "F": []}
    for truth, guess, void in masks:
        scores["J"].append(region_j(truth, guess, void))
        scores["F"].append(boundary_f(truth, guess, void))
    j, f = (over_time(np.array(values)) for values in scores.values())
    result = {"J&F": (j["mean"] + f["mean"]) / 2, "J": j["mean"], "F": f["mean"]}
    return {**result, **{f"{n} {s}": found[s] for n, found in (("J", j), ("F", f)) for s in ("recall", "decay")}}


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


class PartTally:
    """Mean intersection over union of classes, from one confusion matrix over all pixels of all sequences.

    The first frame counts too, as in the released evaluations of VIP. A class that neither the truth nor the guess
    holds is left out of the mean; pixels whose true id is no class do not count.
    """

    headline = "mIoU"

    def __init__(self, classes: int):
        self.confusion = np.zeros((classes, classes), np.int64)  # row: truth, column: guess

    def add(self, truths: Sequence[np.ndarray | None], guesses: Iterable[np.ndarray]) -> dict[str, float]:
        """Scores of one sequence, from class ids (H, W) of each frame; truth is None where it is not known."""
        here = np.zeros_like(self.confusion)
        classes = len(here)
        for truth, guess in zip(truths, guesses, strict=True):
            if truth is not None:
                counts = truth < classes
                flat = classes * truth[counts].astype(np.int64) + guess[counts]
                here += np.bincount(flat, minlength=classes**2).reshape(classes, classes)
        self.confusion += here
        return _iou(here)

    def total(self) -> dict[str, float]:
        """Scores of all sequences so far."""
        return _iou(self.confusion)


def _iou(confusion: np.ndarray) -> dict[str, float]:
    right = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - right
    return {
        "mIoU": float(np.mean(right[union > 0] / union[union > 0])),
        "pixel accuracy": float(right.sum() / confusion.sum()),
    }
