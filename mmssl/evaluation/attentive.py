"""Attentive probe: a learned query attends to the frozen patch tokens, a linear layer reads the result.

Masked models keep what they know in the patch tokens, and no fixed pooling brings all of it out (Chen et al. 2022,
arXiv 2202.03026; Bardes et al. 2024, arXiv 2404.08471).
"""

import dataclasses

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.evaluation.features import EvaluatorConfig, FeatureSet, Splits, device_of, extract, over_draws
from mmssl.evaluation.fitting import fit_head
from mmssl.evaluation.views import score_part
from mmssl.nn.heads import AttentiveHead
from mmssl.registry import register_evaluator
from mmssl.training.optim import Schedule


@dataclasses.dataclass(frozen=True)
class AttentiveConfig(EvaluatorConfig):
    """Settings of the attentive probe. `pooling` is not used: the probe learns its own."""

    steps: int = 1000  # optimizer steps
    train_batch: int = 256  # samples in a step, cut to the training samples
    lr: float = 1e-3  # AdamW's peak learning rate: a twentieth of the steps to warm up, then a cosine to 0
    weight_decay: float = 0.05
    heads: int = 8  # attention heads at most; lowered to a divisor of the token width
    queries: int = 1
    max_gb: float = 4.0  # memory for the patch tokens of a dataset

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "train_batch", "heads", "queries", "lr", "max_gb"):
            if getattr(self, name) <= 0:
                raise MmsslError(f"{name} must be above 0, got {getattr(self, name)}.")


class TokenProbe(nn.Module):
    """Tokens (B, N, D) -> (B, outputs).

    Tokens that carry no positions (raw pixels) first get a learned patch embedding and learned positions, so that the
    comparison is with a fair probe of the pixels.
    """

    def __init__(self, tokens: int, dim: int, outputs: int, config: AttentiveConfig, positions: bool):
        super().__init__()
        width = 128 if positions else dim
        self.embed = nn.Linear(dim, width) if positions else nn.Identity()
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width)) if positions else None
        heads = max(h for h in range(1, config.heads + 1) if width % h == 0)
        self.head = AttentiveHead(width, outputs, heads=heads, queries=config.queries)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.positions is not None:
            return self.head(x + self.positions)
        real = (tokens != 0).any(-1)  # a token of zeros is padding, see `extract`
        return self.head(x, None if bool(real.all()) else real | ~real.any(1, keepdim=True))


@register_evaluator("attentive")
def attentive(encoder: nn.Module, data: Splits, config: AttentiveConfig = AttentiveConfig()) -> dict[str, float]:
    """Score (accuracy, map or r2) of an attentive probe on the test part."""
    options = {"batch_size": config.batch_size, "workers": config.workers, "max_gb": config.max_gb}
    train, test = (extract(encoder, part, "tokens", **options) for part in (data.train, data.test))
    positions = getattr(encoder, "without_positions", False)

    def judge(train: FeatureSet, seed: int) -> dict[str, float]:
        predict = fit_head(
            lambda: TokenProbe(*train.features.shape[1:], data.classes, config, positions),
            lambda head: torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay),
            Schedule(config.lr, 0.0, 0.05),
            train,
            data.task,
            steps=config.steps,
            batch_size=config.train_batch,
            seed=seed,
            device=device_of(encoder),
            clip_grad=1.0,
        )
        return score_part(data.task, predict(test.features), test, logits=True)

    return over_draws(train, data.task, config, judge)
