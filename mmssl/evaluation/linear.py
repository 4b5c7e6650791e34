"""MAE's linear probe (He et al. 2022, appendix A.1): batch norm without affine, a linear layer, LARS.

The published recipe is 90 epochs of batch 16384 with learning rate .1 * batch / 256, ten of them to warm up, no weight
decay. LARS moves a weight by at most a thousandth of its own length times the rate in a step, so a small dataset, with
few steps an epoch, would stay where it started: below 100,000 training samples 2,000 steps at the recipe's rate of 6.4
are used instead, unless the fields say otherwise. Features are extracted once, without augmentation; the recipe with
random crops is a fine-tuning recipe with `head.freeze` (`configs/mae/linear_*`).
"""

import dataclasses

from torch import nn

from mmssl.errors import MmsslError
from mmssl.evaluation.features import EvaluatorConfig, FeatureSet, Splits, device_of, over_draws
from mmssl.evaluation.fitting import fit_head, linear_probe_head
from mmssl.evaluation.views import score_part
from mmssl.registry import register_evaluator
from mmssl.training.lars import LARS
from mmssl.training.optim import Schedule


@dataclasses.dataclass(frozen=True)
class LinearConfig(EvaluatorConfig):
    """Settings of the LARS probe; None means the recipe's value, or the small budget's below 100,000 samples."""

    epochs: float | None = None  # passes over the training part; the recipe's 90
    steps: int | None = None  # optimizer steps, in place of epochs
    train_batch: int | None = None  # samples in a step; the recipe's 16384, the small budget's 512
    lr: float | None = None  # peak learning rate; the recipe's .1 * batch / 256
    warmup: float = 1 / 9  # share of the steps to warm up
    momentum: float = 0.9
    trust: float = 0.001  # LARS's trust coefficient

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.steps is not None:
            raise MmsslError("give the linear probe epochs or steps, not both.")
        for name in ("epochs", "steps", "train_batch", "lr"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise MmsslError(f"{name} must be above 0, got {value}.")
        if not 0 <= self.warmup < 1:
            raise MmsslError(f"warmup is a share of the steps in [0, 1), got {self.warmup}.")

    def budget(self, samples: int) -> tuple[int, int, float]:
        """(steps, batch, peak learning rate) for a number of training samples."""
        small = samples < 100_000
        batch = min(self.train_batch or (512 if small else 16384), samples)
        if self.steps is not None:
            steps = self.steps
        elif self.epochs is None and small:
            steps = 2000
        else:
            steps = max(1, round((self.epochs or 90) * samples / batch))
        return steps, batch, self.lr or (6.4 if small else 0.1 * batch / 256)


@register_evaluator("linear")
def linear(encoder: nn.Module, data: Splits, config: LinearConfig = LinearConfig()) -> dict[str, float]:
    """Score (accuracy, map or r2) of the LARS linear probe on the test part."""
    train, test = data.features(encoder, config)

    def judge(train: FeatureSet, seed: int) -> dict[str, float]:
        steps, batch, lr = config.budget(len(train))
        predict = fit_head(
            lambda: linear_probe_head(train.features.shape[1], data.classes, data.task),
            lambda head: LARS(head.parameters(), lr=lr, momentum=config.momentum, trust=config.trust),
            Schedule(lr, 0.0, config.warmup),
            train,
            data.task,
            steps=steps,
            batch_size=batch,
            seed=seed,
            device=device_of(encoder),
        )
        return score_part(data.task, predict(test.features), test, logits=True)

    return over_draws(train, data.task, config, judge)
