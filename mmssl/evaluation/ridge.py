"""Ridge regression on frozen features in closed form, every penalty at once.

The fast linear probe: one eigendecomposition of the smaller Gram matrix gives the solution for all penalties; the
penalty is chosen on held-out groups (episodes) of the training part, then the fit is repeated on all of it. A
classification target is regressed on as one-hot rows (least-squares classification).
"""

import dataclasses

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.evaluation.features import EvaluatorConfig, FeatureSet, Splits, device_of, over_draws
from mmssl.evaluation.metrics import main_score, r2_per_dim, targets
from mmssl.evaluation.selection import folds
from mmssl.evaluation.views import score_part
from mmssl.registry import register_evaluator


@dataclasses.dataclass(frozen=True)
class RidgeConfig(EvaluatorConfig):
    """Settings of the closed-form probe."""

    alphas: tuple[float, ...] = tuple(
        10.0 ** (e / 2) for e in range(-12, 9)
    )  # penalty a sample, on unit-variance features
    folds: int | None = None  # held-out parts that choose alpha; None: 1, and 5 below 1,000 training samples
    standardize: bool = True  # scale every feature to zero mean and unit variance over the training part

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alphas or min(self.alphas) <= 0:
            raise MmsslError(f"alphas must be positive numbers, got {self.alphas}.")
        if self.folds is not None and self.folds < 1:
            raise MmsslError(f"folds must be at least 1, got {self.folds}.")

    def parts(self, samples: int) -> int:
        """Number of held-out parts for a number of training samples."""
        return self.folds if self.folds is not None else (1 if samples >= 1000 else 5)


@register_evaluator("ridge")
def ridge(encoder: nn.Module, data: Splits, config: RidgeConfig = RidgeConfig()) -> dict[str, float]:
    """Score (r2, accuracy or map) of a ridge probe on the test part."""
    train, test = data.features(encoder, config)

    def judge(train: FeatureSet, seed: int) -> dict[str, float]:
        prediction = fit_predict(train, test.features, data, config, seed, device_of(encoder))
        return score_part(data.task, prediction.cpu(), test, logits=False)

    return over_draws(train, data.task, config, judge)


def fit_predict(
    train: FeatureSet, test: Tensor, data: Splits, config: RidgeConfig, seed: int, device: torch.device
) -> Tensor:
    """Prediction (M, K) for the features `test` (M, D), with penalties chosen inside the training part."""
    device = torch.device("cpu") if device.type == "mps" else device  # which has no double precision
    values = targets(data.task, train.labels, data.classes).to(device)
    x, test = train.features.to(device), test.to(device)
    chosen = choose_alpha(train, x, values, data.task, config, seed)
    solutions = solve(x, values, test, config.alphas, config.standardize)  # (A, M, K)
    return solutions[chosen, :, torch.arange(values.shape[1], device=device)].T  # (M, K)


def choose_alpha(train: FeatureSet, x: Tensor, values: Tensor, task: str, config: RidgeConfig, seed: int) -> Tensor:
    """int64 (K,) place in `alphas` of the best held-out score: one a dimension for regression, one for all else."""
    classes = train.labels if task == "single_label" else None
    pairs = folds(len(train), train.groups, classes, config.parts(len(train)), seed)
    total = 0.0
    for fit, held in pairs:
        fit, held = fit.to(x.device), held.to(x.device)
        predicted = solve(x[fit], values[fit], x[held], config.alphas, config.standardize)  # (A, M, K)
        if task == "regression":
            gained = torch.stack([r2_per_dim(p, values[held]) for p in predicted]).nan_to_num(0.0)  # (A, K)
        else:
            labels = train.labels[held.cpu()]
            gained = torch.tensor([[main_score(task, p.cpu(), labels)] for p in predicted], device=x.device)
            gained = gained.expand(-1, values.shape[1])
        total = total + gained
    best = total.flip(0).argmax(0)  # of equal scores, the largest penalty
    return len(config.alphas) - 1 - best


def solve(x: Tensor, y: Tensor, test: Tensor, alphas: tuple[float, ...], standardize: bool = True) -> Tensor:
    """Ridge predictions for every penalty at once.

    Minimises |y - x w - b|^2 + alpha n |w|^2 with the intercept b free, through the eigenvectors of the smaller of
    x'x (D, D) and xx' (n, n), in double precision.

    Args:
        x: (n, D); y: (n, K); test: (M, D); alphas: penalties a sample (scikit-learn's alpha is `alpha * n`).

    Returns:
        float32 (len(alphas), M, K).
    """
    n = len(x)
    x, y, test = x.double(), y.double(), test.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    scale = x.std(0, unbiased=False) if standardize else torch.ones_like(x_mean)
    scale = torch.where(scale > 1e-9 * (1e-6 + x_mean.abs()), scale, torch.inf)  # a constant feature counts for nothing
    x, test, y = (x - x_mean) / scale, (test - x_mean) / scale, y - y_mean
    if x.shape[1] <= n:
        values, vectors = torch.linalg.eigh(x.T @ x)  # x'x = V diag V'
        left, right = test @ vectors, vectors.T @ (x.T @ y)
    else:
        values, vectors = torch.linalg.eigh(x @ x.T)  # w = x' (xx' + alpha n)^-1 y
        left, right = (test @ x.T) @ vectors, vectors.T @ y
    values = values.clamp_min(0)
    return torch.stack([(left / (values + a * n)) @ right + y_mean for a in alphas]).float()
