"""Scores of predictions against labels; pure functions of tensors, all of them better when higher."""

import math

import torch
from scipy.special import ndtri
from torch import Tensor

from mmssl.errors import MmsslError

TASKS = ("single_label", "multi_label", "regression")
METRIC = {"single_label": "accuracy", "multi_label": "map", "regression": "r2"}


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of rows of `scores` (N, C) whose largest entry is the class in `labels` (N,)."""
    return (scores.argmax(1) == labels.to(scores.device)).float().mean().item()


def varying(values: Tensor) -> Tensor:
    """bool (K,): the columns of `values` (N, K) that are not constant; a constant has no variance to explain."""
    values = values.double()
    return values.std(0, unbiased=False) > 1e-6 * (1e-3 + values.abs().amax(0))


def r2_per_dim(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - (squared error / variance of the target) of every column of (N, K); NaN where the target is constant."""
    prediction, target = prediction.double().to(target.device), target.double()
    error = (prediction - target).square().mean(0)
    variance = target.var(0, unbiased=False)
    return torch.where(varying(target), 1 - error / variance.clamp_min(1e-300), torch.nan)


def r2(prediction: Tensor, target: Tensor) -> float:
    """Mean of `r2_per_dim` over the columns that vary in `target` (N, K)."""
    scores = r2_per_dim(prediction, target)
    kept = scores[~scores.isnan()]
    if len(kept) == 0:
        raise MmsslError(
            "every label dimension is constant in the test split, so R2 says nothing: choose another target."
        )
    return kept.mean().item()


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Area under the precision-recall steps for one class: scores (N,), positive bool (N,). Ties count as one step."""
    values, order = scores.double().sort(descending=True, stable=True)
    hits = positive[order].double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1, device=hits.device, dtype=torch.float64)
    last_of_tie = torch.cat([values[1:] != values[:-1], values.new_ones(1, dtype=torch.bool)])
    hits, precision = hits[last_of_tie], precision[last_of_tie]
    gained = hits.diff(prepend=hits.new_zeros(1))
    return (gained * precision).sum().div(hits[-1]).item()


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Mean average precision over the classes of (N, C) that have a positive row."""
    labels = labels.to(scores.device) > 0.5
    found = [average_precision(scores[:, c], labels[:, c]) for c in range(labels.shape[1]) if labels[:, c].any()]
    if not found:
        raise MmsslError("no class has a positive sample in the test split, so average precision says nothing.")
    return sum(found) / len(found)


def roc_auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve for one class: the share of its (positive, negative) pairs that are in order.

    A tie is half a pair, as in Mann and Whitney's U.

    Args:
        scores: (N,).
        positive: bool (N,), with at least one True and one False.
    """
    negatives, hits = scores[~positive].double().sort().values, scores[positive].double()
    less = torch.searchsorted(negatives, hits, right=False)  # negatives below each positive
    at_most = torch.searchsorted(negatives, hits, right=True)
    return (less + at_most).sum().item() / 2 / (len(hits) * len(negatives))


def mean_auc(scores: Tensor, labels: Tensor) -> float:
    """Mean area under the ROC curve (mAUC) over the classes of (N, C) that have a positive and a negative row."""
    labels = labels.to(scores.device) > 0.5
    mixed = (labels.any(0) & ~labels.all(0)).nonzero()[:, 0].tolist()
    if not mixed:
        raise MmsslError("no class has a positive and a negative sample in the test split, so the AUC says nothing.")
    return sum(roc_auc(scores[:, c], labels[:, c]) for c in mixed) / len(mixed)


def d_prime(auc: float) -> float:
    """Distance of two normal distributions of unit variance with this AUC: sqrt(2) times its normal quantile.

    AudioSet's third score (Hershey et al. 2017, arXiv 1609.09430): 0 by chance; infinite for an AUC of 0 or 1.
    """
    return math.sqrt(2) * float(ndtri(auc))


def label_scores(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """AudioSet's three scores of (N, C) against (N, C): "map", "auc" (mAUC) and "dprime" (d' of mAUC).

    For d' an mAUC of exactly 1 or 0 counts as half a pair less or more, so that the number stays finite (Macmillan and
    Kaplan 1985). "auc" and "dprime" are left out where no class has both a positive and a negative row.
    """
    found = {"map": mean_average_precision(scores, labels)}
    positives = (labels > 0.5).sum(0)
    pairs = (positives * (len(labels) - positives)).sum().item()
    if pairs == 0:
        return found
    auc, half = mean_auc(scores, labels), 0.5 / pairs
    return {**found, "auc": auc, "dprime": d_prime(min(max(auc, half), 1 - half))}


def score(task: str, prediction: Tensor, labels: Tensor) -> dict[str, float]:
    """All scores of a task, its main one (`METRIC`) first.

    single_label: accuracy; multi_label: map, auc and dprime (see `label_scores`); regression: r2.
    """
    if task == "multi_label":
        return label_scores(prediction, labels)
    return {METRIC[task]: main_score(task, prediction, labels)}


def main_score(task: str, prediction: Tensor, labels: Tensor) -> float:
    """The task's main score alone: accuracy (single_label), map (multi_label) or r2 (regression)."""
    metric = {"single_label": accuracy, "multi_label": mean_average_precision, "regression": r2}[task]
    return metric(prediction, labels)


def targets(task: str, labels: Tensor, classes: int) -> Tensor:
    """float (N, K) to regress on: one-hot rows, 0/1 rows, or the values themselves."""
    if task == "single_label":
        return torch.nn.functional.one_hot(labels.long(), classes).float()
    return labels.float().reshape(len(labels), -1)
