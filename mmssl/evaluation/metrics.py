"""Scores of predictions against labels; pure functions of tensors, all of them better when higher."""

import torch
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


def score(task: str, prediction: Tensor, labels: Tensor) -> dict[str, float]:
    """The task's own metric: accuracy (single_label), map (multi_label) or r2 (regression)."""
    metric = {"single_label": accuracy, "multi_label": mean_average_precision, "regression": r2}[task]
    return {METRIC[task]: metric(prediction, labels)}


def targets(task: str, labels: Tensor, classes: int) -> Tensor:
    """float (N, K) to regress on: one-hot rows, 0/1 rows, or the values themselves."""
    if task == "single_label":
        return torch.nn.functional.one_hot(labels.long(), classes).float()
    return labels.float().reshape(len(labels), -1)
