"""Optimizers, which parameters decay, and the learning rate at every step.

The rules are MAE's (He et al. 2022, arXiv:2111.06377, appendix A): the learning rate is given for a batch of 256 and
grows with the batch, it warms up linearly from zero and falls along half a cosine, stepped at every iteration; tensors
with one dimension and biases do not decay; fine-tuning multiplies the rate of layer i by
`layer_decay ** (blocks + 1 - i)`: layer 0 is the tokens and positions, layer k + 1 is block k, the rest has scale 1.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.training.lars import LARS


@dataclass(frozen=True)
class OptimConfig:
    """How the weights are updated."""

    name: Literal["adamw", "lars", "sgd"] = "adamw"
    """the update rule"""
    base_lr: float = 1.5e-4
    """learning rate for a batch of 256; the rate used is base_lr * loop.batch_size / 256"""
    lr: float | None = None
    """the learning rate itself, whatever the batch; wins over base_lr"""
    min_lr: float = 0.0
    """learning rate at the end of the cosine"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the two moments"""
    eps: float = 1e-8
    """AdamW's epsilon"""
    momentum: float = 0.9
    """momentum of LARS and SGD"""
    trust: float = 0.001
    """LARS' trust coefficient"""
    weight_decay: float = 0.05
    """decay of weights with two or more dimensions"""
    decay_all: bool = False
    """all parameters decay: biases, norms and tokens too (MultiMAE's released code)"""
    decay_norms: bool = False
    """weights of norms decay too (M3AE's released code)"""
    warmup_steps: int | None = None
    """steps of linear warm-up from zero"""
    warmup_epochs: float | None = None
    """the same in epochs; give at most one of the two"""
    layer_decay: float | None = None
    """fine-tuning: factor between the learning rates of neighbouring blocks, the last one at full rate"""

    def __post_init__(self) -> None:
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise MmsslError("give optim.warmup_steps or optim.warmup_epochs, not both; set the other one to null.")
        for name in ("base_lr", "lr", "min_lr", "weight_decay", "warmup_steps", "warmup_epochs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise MmsslError(f"optim.{name} must be a finite number of 0 or more, got {value}.")
        if not all(0 <= value < 1 for value in (*self.betas, self.momentum)):
            raise MmsslError(f"optim.betas and momentum must lie in [0, 1), got {self.betas} and {self.momentum}.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise MmsslError(f"optim.layer_decay must lie in (0, 1], got {self.layer_decay}.")

    def schedule(self, batch_size: int, steps: int, steps_per_epoch: int) -> "Schedule":
        """The learning rate over a run of `steps` steps with `batch_size` samples each."""
        peak = self.lr if self.lr is not None else self.base_lr * batch_size / 256
        warmup = self.warmup_steps or (self.warmup_epochs or 0) * steps_per_epoch
        if warmup >= steps and warmup > 0:
            raise MmsslError(
                f"the warm-up of {warmup:g} steps is not shorter than the run of {steps} steps; "
                "lower optim.warmup_steps or optim.warmup_epochs, or train for longer."
            )
        return Schedule(peak, self.min_lr, warmup / steps)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0 to `peak` over the fraction `warmup` of the run, then half a cosine down to `min_lr`."""

    peak: float
    min_lr: float
    warmup: float

    def lr_at(self, progress: float) -> float:
        """Learning rate when the fraction `progress`, in [0, 1], of the run is done."""
        if progress < self.warmup:
            return self.peak * progress / self.warmup
        done = (progress - self.warmup) / (1 - self.warmup)
        return self.min_lr + (self.peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Optimizer over the parameters that need a gradient; each group has `names` and a factor `lr_scale`."""
    groups = parameter_groups(model, config)
    if not groups:
        raise MmsslError("the model has no parameter that needs a gradient; there is nothing to train.")
    if config.name == "lars":
        return LARS(groups, lr=0.0, momentum=config.momentum, trust=config.trust)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=fused)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Parameters with the same weight decay and the same `lr_scale`, in a fixed order."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    exempt = model.no_decay() if hasattr(model, "no_decay") else set()
    scales = layer_scales(model, config.layer_decay)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in named:
        exempted = not config.decay_all and _no_decay(name, parameter, exempt)
        if config.decay_norms and ".norm" in f".{name}" and name.endswith(".weight"):
            exempted = False
        decay = 0.0 if exempted else config.weight_decay
        scale = scales[name]
        empty = {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale}
        group = groups.setdefault((decay, scale), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _no_decay(name: str, parameter: nn.Parameter, exempt: set[str]) -> bool:
    """MAE's rule (one dimension, or a bias) and the names that the model gives, whole or after a dot."""
    named = any(name == other or name.endswith(f".{other}") for other in exempt)
    return named or parameter.ndim <= 1 or name.endswith(".bias")


def layer_scales(model: nn.Module, layer_decay: float | None) -> dict[str, float]:
    """Factor on the learning rate for each parameter name: layer_decay ** (blocks + 1 - layer)."""
    names = [name for name, _ in model.named_parameters()]
    if layer_decay is None:
        return dict.fromkeys(names, 1.0)
    layers = {name: _layer(name) for name in names}
    blocks = max((layer for layer in layers.values() if layer is not None), default=0)
    return {
        name: layer_decay ** (blocks + 1 - (blocks + 1 if layer is None else layer)) for name, layer in layers.items()
    }


def _layer(name: str) -> int | None:
    """0 for tokens and positions, k + 1 for block k of the encoder, None for what comes after the blocks."""
    inner = name.removeprefix("encoder.")
    if block := re.match(r"blocks\.(\d+)\.", inner):
        return int(block.group(1)) + 1
    return 0 if inner.startswith(("cls_token", "pos_embed", "tokenizers.")) else None


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


@torch.no_grad()
def scale_gradients(parameters: list[nn.Parameter], factor: Tensor, max_norm: float | None = None) -> Tensor:
    """Multiply the gradients by `factor`, and further so that their joint norm is at most `max_norm`.

    Returns the norm after `factor` and before clipping; nothing waits for the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients) * factor
    if max_norm is not None:
        factor = factor * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, factor)
    return norm
