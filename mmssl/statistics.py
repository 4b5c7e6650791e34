"""What scores over seeds say: interquartile mean, bootstrap intervals, probability of improvement.

Definitions are those of Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice"
(arXiv 2108.13264), and of its package rliable. Scores are the numbers of the seeds of one task, or a mapping from tasks
to the numbers of their seeds; tasks may have different numbers of seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mmssl.errors import MmsslError, unknown_name

Scores = Sequence[float] | np.ndarray | Mapping[str, Sequence[float] | np.ndarray]
Parts = list[np.ndarray]  # of each task (..., seeds, points)
LEAST = 3
"""Fewest seeds of a task that an interval is drawn from."""
_VALUES = 4_000_000  # resampled at once


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap interval.

    Attributes:
        value: of the seeds as they are.
        low, high: ends of the interval; NaN where a task has fewer than `LEAST` seeds.
        seeds: of the task that has fewest.
        confidence: how often such intervals should hold the truth.
    """

    value: float
    low: float
    high: float
    seeds: int
    confidence: float = 0.95

    @property
    def note(self) -> str:
        """What to say beside it about too few seeds, "" where there is nothing to say."""
        return too_few(self.seeds)

    def __str__(self) -> str:
        between = f"{self.confidence:.0%} interval {self.low:.4g} to {self.high:.4g}"
        return f"{self.value:.4g} ({self.note or between})"


@dataclass(frozen=True)
class Curve:
    """A statistic at each of T points, with pointwise intervals: `value`, `low` and `high` (T,), and as `Interval`."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int
    confidence: float = 0.95

    @property
    def note(self) -> str:
        """As `Interval.note`."""
        return too_few(self.seeds)


def too_few(seeds: int) -> str:
    """A sentence where so few seeds carry no interval, else ""."""
    if seeds >= LEAST:
        return ""
    many = "one seed has" if seeds == 1 else f"{seeds} seeds have"
    return f"{many} no interval: it takes at least {LEAST} seeds, and 5 or more before it means much"


def interquartile_mean(scores: Scores) -> float:
    """Mean of the middle half of all scores of all tasks together: int(N / 4) are cut off at either end.

    So of three scores it is the mean.
    """
    return float(_iqm(_parts(scores))[0])


def mean(scores: Scores) -> float:
    """Mean over tasks of the mean over seeds."""
    return float(_mean(_parts(scores))[0])


def median(scores: Scores) -> float:
    """Median over tasks of the mean over seeds; of one task it is therefore the mean."""
    return float(_median(_parts(scores))[0])


def optimality_gap(scores: Scores, target: float = 1.0) -> float:
    """How far scores fall short of `target` on the average; what lies above it makes up for nothing."""
    return float(_gap(_parts(scores), target)[0])


def probability_of_improvement(x: Scores, y: Scores) -> float:
    """How often a seed of x beats a seed of y on the same task, ties counted half; mean over tasks."""
    return float(_improvement(*_pair(x, y))[0])


def _iqm(parts: Parts) -> np.ndarray:
    pooled = np.sort(np.concatenate(parts, axis=-2), axis=-2)
    cut = pooled.shape[-2] // 4
    return pooled[..., cut : pooled.shape[-2] - cut, :].mean(-2)


def _of_tasks(parts: Parts) -> np.ndarray:
    return np.stack([part.mean(-2) for part in parts])  # (tasks, ..., points)


def _mean(parts: Parts) -> np.ndarray:
    return _of_tasks(parts).mean(0)


def _median(parts: Parts) -> np.ndarray:
    return np.median(_of_tasks(parts), axis=0)


def _gap(parts: Parts, target: float) -> np.ndarray:
    return target - np.concatenate([np.minimum(part, target) for part in parts], axis=-2).mean(-2)


def _improvement(x: Parts, y: Parts) -> np.ndarray:
    margins = [a[..., :, None, :] - b[..., None, :, :] for a, b in zip(x, y, strict=True)]  # (..., n, m, points)
    return np.mean([(np.sign(margin) + 1).mean((-3, -2)) / 2 for margin in margins], axis=0)


STATISTICS: dict[str, Callable[[Parts], np.ndarray]] = {"iqm": _iqm, "mean": _mean, "median": _median}


def bootstrap(
    scores: Scores, statistic: str = "iqm", *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0,
    target: float = 1.0,
) -> Interval:  # fmt: skip
    """A statistic of scores with its stratified bootstrap interval.

    Seeds are drawn with replacement within each task, and the interval lies between percentiles of the statistic of
    what was drawn.

    Args:
        scores: numbers of the seeds of one task, or task -> numbers.
        statistic: `iqm`, `mean`, `median` or `optimality_gap` (to `target`).
        seed: of the draws.

    Raises:
        MmsslError: no scores, scores that are not finite, an unknown statistic.
    """
    curve = _bootstrap([_parts(scores)], _statistic(statistic, target), confidence, resamples, seed)
    return Interval(float(curve.value[0]), float(curve.low[0]), float(curve.high[0]), curve.seeds, confidence)


def improvement(x: Scores, y: Scores, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """`probability_of_improvement` with its interval; an interval that holds 0.5 tells the two not apart."""
    curve = _bootstrap(list(_pair(x, y)), _improvement, confidence, resamples, seed)
    return Interval(float(curve.value[0]), float(curve.low[0]), float(curve.high[0]), curve.seeds, confidence)


def learning_curve(
    values: np.ndarray | Mapping[str, np.ndarray], statistic: str = "iqm", *, confidence: float = 0.95,
    resamples: int = 2000, seed: int = 0,
) -> Curve:  # fmt: skip
    """A statistic at each point of learning curves (seeds, T), or task -> (seeds, T), with pointwise intervals.

    A seed is drawn with its whole curve, so that the interval does not flicker from point to point.
    """
    return _bootstrap([_parts(values, ndim=2)], _statistic(statistic, 1.0), confidence, resamples, seed)


def _statistic(name: str, target: float) -> Callable[[Parts], np.ndarray]:
    known = {**STATISTICS, "optimality_gap": partial(_gap, target=target)}
    if name not in known:
        raise unknown_name("statistic", name, known)
    return known[name]


def _bootstrap(sides: list[Parts], statistic: Callable, confidence: float, resamples: int, seed: int) -> Curve:
    """The statistic of one or two sides, as they are and resampled."""
    if not 0 < confidence < 1 or resamples < 1:
        raise MmsslError(
            f"confidence must lie in (0, 1) and resamples be at least 1, got {confidence} and {resamples}."
        )
    value = statistic(*sides)
    seeds = min(part.shape[-2] for side in sides for part in side)
    low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
    if seeds >= LEAST:
        rng = np.random.default_rng(seed)
        drawn = [[rng.integers(0, len(part), (resamples, len(part))) for part in side] for side in sides]
        width = max(1, _VALUES // (resamples * sum(len(part) for side in sides for part in side)))
        for start in range(0, len(value), width):
            some = slice(start, start + width)
            again = [[p[:, some][i] for p, i in zip(*pair, strict=True)] for pair in zip(sides, drawn, strict=True)]
            ends = np.quantile(statistic(*again), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
            low[some], high[some] = ends
    return Curve(value, low, high, seeds, confidence)


def _parts(scores: Scores, ndim: int = 1) -> Parts:
    """Checked scores: of each task (seeds, points)."""
    named = scores if isinstance(scores, Mapping) else {"": scores}
    parts = []
    for task, values in named.items():
        part, of = np.asarray(values, np.float64), f" of {task}" if task else ""
        if part.ndim != ndim or part.size == 0:
            wanted = "the numbers of the seeds" if ndim == 1 else "(seeds, points)"
            raise MmsslError(f"scores{of} must be {wanted}, at least one, got an array of shape {part.shape}.")
        if not np.isfinite(part).all():
            raise MmsslError(f"scores{of} must be finite, got {part[~np.isfinite(part)][0]}; leave broken seeds out.")
        parts.append(part[:, None] if ndim == 1 else part)
    if len({part.shape[1] for part in parts}) != 1:
        raise MmsslError(f"all tasks need curves with as many points, got {[part.shape[1] for part in parts]}.")
    return parts


def _pair(x: Scores, y: Scores) -> tuple[Parts, Parts]:
    """The parts of two algorithms, task by task."""
    if isinstance(x, Mapping) != isinstance(y, Mapping) or (isinstance(x, Mapping) and set(x) != set(y)):
        names = [sorted(side) if isinstance(side, Mapping) else "one task" for side in (x, y)]
        raise MmsslError(f"two algorithms are compared on the same tasks, got {names[0]} and {names[1]}.")
    return _parts(x), _parts({task: y[task] for task in x} if isinstance(x, Mapping) else y)
