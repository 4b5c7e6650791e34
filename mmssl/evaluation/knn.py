"""Weighted nearest neighbours on frozen features: Wu et al. 2018 (arXiv 1805.01978), as DINO has it (arXiv 2104.14294).

Features are scaled to unit length; each of the k nearest training samples votes with weight exp(cosine / temperature).
For regression and multi-label targets the prediction is the weighted mean of the neighbours' labels.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.evaluation.features import EvaluatorConfig, FeatureSet, Splits, device_of, over_draws
from mmssl.evaluation.metrics import targets
from mmssl.evaluation.views import score_part
from mmssl.registry import register_evaluator


@dataclasses.dataclass(frozen=True)
class KnnConfig(EvaluatorConfig):
    """kNN's settings, DINO's by default."""

    k: tuple[int, ...] = (10, 20, 100, 200)  # numbers of neighbours, each scored; cut to the number of training samples
    temperature: float = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k or min(self.k) < 1:
            raise MmsslError(f"k must hold numbers of at least 1, got {self.k}.")
        if self.temperature <= 0:
            raise MmsslError(f"the temperature must be positive, got {self.temperature}.")


@register_evaluator("knn")
def knn(encoder: nn.Module, data: Splits, config: KnnConfig = KnnConfig()) -> dict[str, float]:
    """Scores `<metric>@<k>` of kNN on the test part, for every k."""
    train, test = data.features(encoder, config)

    def judge(train: FeatureSet, seed: int) -> dict[str, float]:
        return _judge(train, test, data, config, device_of(encoder))

    return over_draws(train, data.task, config, judge)


def _judge(
    train: FeatureSet, test: FeatureSet, data: Splits, config: KnnConfig, device: torch.device
) -> dict[str, float]:
    values = targets(data.task, train.labels, data.classes)
    sizes = sorted({min(k, len(train)) for k in config.k})
    predictions = predict(
        train.features.to(device), values.to(device), test.features.to(device), sizes, config.temperature
    )
    result = {}
    for k, prediction in predictions.items():
        for name, value in score_part(data.task, prediction.cpu(), test, logits=False).items():
            result[f"{name}@{k}"] = value
    return result


def predict(train: Tensor, values: Tensor, test: Tensor, sizes: list[int], temperature: float) -> dict[int, Tensor]:
    """Weighted mean of the k nearest training values, for each k.

    Args:
        train: float (N, D); values: float (N, C), one-hot classes or what to regress; test: float (M, D).

    Returns:
        k -> (M, C).
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    found: dict[int, list[Tensor]] = {k: [] for k in sizes}
    for rows in test.split(1024):  # so that (rows, N) stays small
        cosine, neighbour = (rows @ train.T).topk(max(sizes), dim=1)  # (m, k)
        weight = ((cosine - cosine[:, :1]) / temperature).exp()  # relative to the nearest: the same shares, no overflow
        for k in sizes:
            share = weight[:, :k] / weight[:, :k].sum(1, keepdim=True)
            found[k].append(torch.einsum("mk,mkc->mc", share, values[neighbour[:, :k]]))
    return {k: torch.cat(parts) for k, parts in found.items()}
