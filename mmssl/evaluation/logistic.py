"""Logistic regression on frozen features by L-BFGS, the penalty chosen on held-out groups of the training part.

Softmax for single_label targets, one sigmoid a class for multi_label ones.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.evaluation.features import EvaluatorConfig, FeatureSet, Splits, device_of, over_draws
from mmssl.evaluation.metrics import main_score
from mmssl.evaluation.selection import folds
from mmssl.evaluation.views import score_part
from mmssl.registry import register_evaluator


@dataclasses.dataclass(frozen=True)
class LogisticConfig(EvaluatorConfig):
    """Settings of the logistic probe."""

    l2: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # penalty l2 / 2 |w|^2 beside the mean loss a sample
    folds: int | None = None  # held-out parts that choose l2; None: 1, and 5 below 1,000 training samples
    max_steps: int = 200  # L-BFGS iterations a fit

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.l2 or min(self.l2) <= 0:
            raise MmsslError(f"l2 must hold positive numbers, got {self.l2}.")
        if self.max_steps < 1 or (self.folds is not None and self.folds < 1):
            raise MmsslError("max_steps and folds must be at least 1.")

    def parts(self, samples: int) -> int:
        """Number of held-out parts for a number of training samples."""
        return self.folds if self.folds is not None else (1 if samples >= 1000 else 5)


@register_evaluator("logistic")
def logistic(encoder: nn.Module, data: Splits, config: LogisticConfig = LogisticConfig()) -> dict[str, float]:
    """Score (accuracy or map) of a logistic probe on the test part."""
    if data.task == "regression":
        raise MmsslError("the logistic probe needs a classification target, and this one is regression: use ridge.")
    train, test = data.features(encoder, config)

    def judge(train: FeatureSet, seed: int) -> dict[str, float]:
        return _judge(train, test, data, config, seed, device_of(encoder))

    return over_draws(train, data.task, config, judge)


def _judge(
    train: FeatureSet, test: FeatureSet, data: Splits, config: LogisticConfig, seed: int, device: torch.device
) -> dict[str, float]:
    x, labels = train.features.to(device), train.labels.to(device)
    classes = train.labels if data.task == "single_label" else None
    held_out = [0.0] * len(config.l2)
    for fit_rows, held in folds(len(train), train.groups, classes, config.parts(len(train)), seed):
        fits = path(x[fit_rows], labels[fit_rows], data.task, data.classes, config.l2, config.max_steps)
        for i, model in enumerate(fits):
            held_out[i] += main_score(data.task, model(x[held]).cpu(), train.labels[held])
    best = max(range(len(config.l2)), key=lambda i: (held_out[i], config.l2[i]))
    model = path(x, labels, data.task, data.classes, (config.l2[best],), config.max_steps)[0]
    return score_part(data.task, model(test.features.to(device)).cpu(), test, logits=True)


@dataclasses.dataclass
class LinearModel:
    """Scores (N, C) from features (N, D): standardise, then multiply."""

    mean: Tensor
    scale: Tensor
    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale @ self.weight + self.bias


def path(
    x: Tensor, labels: Tensor, task: str, classes: int, penalties: tuple[float, ...], max_steps: int = 200
) -> list[LinearModel]:
    """One fit a penalty, in the order given; each starts where the next stronger one ended.

    Args:
        x: float (N, D); labels: int64 (N,) or float (N, C).
    """
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    scale = torch.where(scale > 1e-6 * (1e-6 + mean.abs()), scale, torch.inf)
    weight, bias = x.new_zeros(x.shape[1], classes), x.new_zeros(classes)
    fits = {}
    for penalty in sorted(set(penalties), reverse=True):
        weight, bias = _minimise((x - mean) / scale, labels, task, penalty, weight, bias, max_steps)
        fits[penalty] = LinearModel(mean, scale, weight, bias)
    return [fits[p] for p in penalties]


@torch.enable_grad()
def _minimise(
    x: Tensor, labels: Tensor, task: str, penalty: float, weight: Tensor, bias: Tensor, max_steps: int
) -> tuple[Tensor, Tensor]:
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_steps, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = x @ weight + bias
        if task == "single_label":
            loss = F.cross_entropy(logits, labels)
        else:
            loss = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").sum(1).mean()
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
