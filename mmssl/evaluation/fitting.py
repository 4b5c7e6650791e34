"""Train a small head on features that lie ready in memory; the probes differ in head, optimizer and schedule only."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.evaluation.features import FeatureSet
from mmssl.nn.heads import BatchNormLinearHead
from mmssl.training.optim import Schedule


class TargetScaler(nn.Module):
    """The task's loss. Regression targets are scaled to zero mean and unit variance while a head is trained.

    Args:
        labels: int64 (N,) or float32 (N, K), the training labels, whose statistics are kept.
        smoothing: label smoothing of the cross-entropy.
        bce: binary cross-entropy of each class for single_label too.
    """

    def __init__(self, task: str, labels: Tensor, smoothing: float = 0.0, bce: bool = False):
        super().__init__()
        self.task, self.smoothing, self.bce = task, smoothing, bce or task == "multi_label"
        values = labels.float().reshape(len(labels), -1) if task == "regression" else torch.zeros(1, 1)
        mean, std = values.mean(0), values.std(0, unbiased=False)
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 1e-6 * (1e-3 + mean.abs()), std, torch.ones_like(std)))

    def losses(self, output: Tensor, labels: Tensor) -> Tensor:
        """Loss of each sample (B,) for outputs (B, K); class labels may be ids (B,) or soft rows (B, K)."""
        if self.bce and self.task != "regression":
            rows = F.one_hot(labels, output.shape[1]) if labels.dim() == 1 else labels
            return F.binary_cross_entropy_with_logits(output, rows.float(), reduction="none").mean(1)
        if self.task == "single_label":
            return F.cross_entropy(output, labels, reduction="none", label_smoothing=self.smoothing)
        scaled = (labels.float().reshape(len(labels), -1) - self.mean) / self.std
        return (output - scaled).square().mean(1)

    def restore(self, output: Tensor) -> Tensor:
        """Outputs (B, K) in the labels' own units."""
        return output * self.std + self.mean if self.task == "regression" else output


def linear_probe_head(dim: int, outputs: int, task: str, std: float = 0.01) -> BatchNormLinearHead:
    """MAE's linear probe, for LARS. For regression its bias stays 0, where it belongs: all is centred.

    LARS does not adapt the rate of a bias, and the recipe's rate, made for bounded gradients, would blow it up.
    """
    head = BatchNormLinearHead(dim, outputs, std=std)
    head.fc.bias.requires_grad_(task != "regression")
    return head


def fit_head(
    build: Callable[[], nn.Module],
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    schedule: Schedule,
    train: FeatureSet,
    task: str,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    clip_grad: float | None = None,
    scaler: nn.Module | None = None,
) -> Callable[[Tensor], Tensor]:
    """Train a head for some steps of shuffled batches; the same seed gives the same head.

    Args:
        build: makes the head, under the seed.
        make_optimizer: head -> optimizer, whose learning rate the schedule then sets.
        train: features (N, ...) and labels.
        scaler: gives the loss of each sample and restores predictions, as a `TargetScaler`, which is the default.

    Returns:
        A function: features (M, ...) -> predictions (M, K) on the CPU, in the labels' own units.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        head, scaler = build().to(device).train(), (scaler or TargetScaler(task, train.labels)).to(device)
        optimizer = make_optimizer(head)
        for step, rows in zip(range(steps), shuffled_rows(len(train), batch_size, seed), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(step / steps)
            loss = scaler.losses(head(train.features[rows].to(device)), train.labels[rows].to(device)).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if clip_grad is not None:
                nn.utils.clip_grad_norm_(head.parameters(), clip_grad)
            optimizer.step()
    at_once = getattr(scaler, "at_once", 512)
    return lambda features: apply_head(head.eval(), scaler, features, device, at_once)


@torch.no_grad()
def apply_head(
    head: nn.Module, scaler: nn.Module, features: Tensor, device: torch.device, at_once: int = 512
) -> Tensor:
    """Predictions (M, ...) on the CPU for features (M, ...), a piece at a time."""
    return torch.cat([scaler.restore(head(part.to(device)).float()).cpu() for part in features.split(at_once)])


def shuffled_rows(n: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless int64 batches of exactly `batch_size` rows (at most n), every row once a pass over the data."""
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, n)
    rows = torch.randperm(n, generator=generator)
    while True:
        if len(rows) < size:
            rows = torch.cat([rows, torch.randperm(n, generator=generator)])
        yield rows[:size]
        rows = rows[size:]
