"""The loss of PPO on a minibatch and its gradient, by autograd or by formulas written out; tests compare the two."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.control.fused_mlp import FlatParameters, TwinMlp
from mmssl.control.policies import HALF_LOG, CategoricalPolicy, GaussianPolicy


class Minibatch(NamedTuple):
    """Transitions to learn from, as tensors or as arrays."""

    obs: Any
    """float32 (B, D), normalised."""
    drawn: Any
    """float32 (B, A) before any clipping or tanh, or int64 (B,)."""
    log_prob: Any
    """float32 (B,), of the policy that drew."""
    advantage: Any
    """float32 (B,)."""
    target: Any
    """float32 (B,), what the value should be."""
    value: Any
    """float32 (B,), what it was when the rollout ended."""


@dataclass(frozen=True)
class Losses:
    """The parts of the loss, and their weights; see `PPOConfig`."""

    clip: float
    value_clip: float | None
    value_coef: float
    entropy_coef: float

    def policy(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """The clipped surrogate, to be made small."""
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        return -torch.min(advantage * ratio, advantage * clipped).mean()

    def value(self, value: Tensor, target: Tensor, old: Tensor) -> Tensor:
        """Mean squared error, of the clipped value where that is larger."""
        error = (value - target).square()
        if self.value_clip is not None:
            clipped = old + (value - old).clamp(-self.value_clip, self.value_clip)
            error = torch.max(error, (clipped - target).square())
        return error.mean()

    def policy_slope(self, log_ratio: np.ndarray, advantage: np.ndarray) -> np.ndarray:
        """d policy / d log_ratio (B,): 0 where the clipped part is the smaller one."""
        ratio = np.exp(log_ratio)
        free = advantage * ratio
        np.maximum(ratio, np.float32(1 - self.clip), out=ratio)
        np.minimum(ratio, np.float32(1 + self.clip), out=ratio)
        ratio *= advantage
        free *= free <= ratio
        free *= np.float32(-1 / len(free))
        return free

    def value_slope(self, value: np.ndarray, target: np.ndarray, old: np.ndarray) -> np.ndarray:
        """value_coef * d value / d value (B,): 0 where the clipped part is the larger one."""
        error = value - target
        slope = error * np.float32(2 * self.value_coef / len(error))
        if self.value_clip is not None:
            clipped = old + np.clip(value - old, -self.value_clip, self.value_clip)
            slope *= error**2 >= (clipped - target) ** 2
        return slope


class Autograd:
    """Gradients as torch finds them, for any networks on any device.

    Attributes:
        flat: where they go.
        threads: what an epoch runs in.
    """

    threads = nullcontext

    def __init__(self, actor: GaussianPolicy | CategoricalPolicy, critic: nn.Module, losses: Losses):
        self.actor, self.critic, self.losses = actor, critic, losses
        self.flat = FlatParameters(list(dict.fromkeys([*actor.parameters(), *critic.parameters()])))

    def parts(self, rows: Minibatch, sizes: Sequence[int]) -> Iterator[Minibatch]:
        """Tensors (N, ...) cut into minibatches, as `__call__` takes them."""
        return (Minibatch(*part) for part in zip(*(x.split(sizes) for x in rows), strict=True))

    def __call__(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        """Log-ratios and values (B,) as they are before a step; the gradient of the loss goes into `flat`."""
        loss, log_ratio, value = self.loss(batch)
        self.flat.vector.grad.zero_()
        loss.backward()
        return log_ratio.detach(), value.detach()

    def loss(self, batch: Minibatch) -> tuple[Tensor, Tensor, Tensor]:
        """The whole loss, and log-ratios and values (B,)."""
        log_prob, entropy = self.actor.log_prob(self.actor.net(batch.obs), batch.drawn)
        log_ratio, value = log_prob - batch.log_prob, self.critic(batch.obs)[:, 0]
        losses = self.losses
        loss = losses.policy(log_ratio, batch.advantage) - losses.entropy_coef * entropy.mean()
        loss = loss + losses.value_coef * losses.value(value, batch.target, batch.value)
        return loss, log_ratio, value

    def clip(self, largest: float) -> None:
        """Shorten the gradient to this norm if it is longer."""
        grad = self.flat.vector.grad
        grad.mul_((largest / (grad.norm() + 1e-6)).clamp_(max=1.0))


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: at a few thousand numbers another one gains nothing, and waits where others work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class WrittenOut:
    """The same by formulas, for plain perceptrons on a CPU: several times faster where they are small."""

    threads = staticmethod(one_thread)

    def __init__(self, actor: GaussianPolicy | CategoricalPolicy, critic: nn.Module, losses: Losses):
        self.actor, self.losses, self.nets = actor, losses, TwinMlp(actor.net, critic)
        discrete = isinstance(actor, CategoricalPolicy)
        self.flat = FlatParameters([*self.nets.parameters, *([] if discrete else [actor.log_std])])
        self.nets.bind()
        self.grad = self.flat.vector.grad.numpy()
        self.slope = self._categorical if discrete else self._gaussian
        if not discrete:
            self.log_std, self.log_std_grad = actor.log_std.detach().numpy(), actor.log_std.grad.numpy()

    @staticmethod
    def fits(actor: GaussianPolicy | CategoricalPolicy, critic: nn.Module) -> bool:
        """Whether the networks are such."""
        on_cpu = next(critic.parameters()).device.type == "cpu"
        return on_cpu and TwinMlp.fits(actor.net, critic)

    def parts(self, rows: Minibatch, sizes: Sequence[int]) -> Iterator[Minibatch]:
        """Tensors (N, ...) cut into minibatches, as `__call__` takes them."""
        ends = np.cumsum(sizes)[:-1]
        return (Minibatch(*part) for part in zip(*(np.split(x.numpy(), ends) for x in rows), strict=True))

    def __call__(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        """Log-ratios and values (B,) as they are before a step; the gradient of the loss goes into `flat`."""
        output, value = self.nets.forward(batch.obs)
        log_ratio, slope = self.slope(output, batch)
        value = value[:, 0]
        self.nets.backward(slope, self.losses.value_slope(value, batch.target, batch.value)[:, None])
        return torch.from_numpy(log_ratio), torch.from_numpy(value)

    def clip(self, largest: float) -> None:
        """Shorten the gradient to this norm if it is longer."""
        norm = float(np.sqrt(np.dot(self.grad, self.grad)))
        if norm + 1e-6 > largest:
            self.grad *= np.float32(largest / (norm + 1e-6))

    def _gaussian(self, mean: np.ndarray, batch: Minibatch) -> tuple[np.ndarray, np.ndarray]:
        """Log-ratios, and the loss's gradient with respect to the means; that of log_std goes where it belongs."""
        inverse = np.exp(-self.log_std)
        error = batch.drawn - mean
        error *= inverse
        square = error * error
        log_ratio = np.add.reduce(square, 1)
        log_ratio *= np.float32(-0.5)
        log_ratio -= np.add.reduce(self.log_std) + np.float32(HALF_LOG * len(self.log_std))
        log_ratio -= batch.log_prob
        slope = self.losses.policy_slope(log_ratio, batch.advantage)
        square -= 1  # d log_prob / d log_std = error ** 2 - 1, d entropy / d log_std = 1
        np.matmul(slope, square, out=self.log_std_grad)
        if self.losses.entropy_coef:
            self.log_std_grad -= np.float32(self.losses.entropy_coef)
        error *= inverse
        error *= slope[:, None]
        return log_ratio, error

    def _categorical(self, logits: np.ndarray, batch: Minibatch) -> tuple[np.ndarray, np.ndarray]:
        """Log-ratios, and the loss's gradient with respect to the logits."""
        rows, drawn = np.arange(len(logits)), batch.drawn
        logs = logits - np.maximum.reduce(logits, 1)[:, None]
        logs -= np.log(np.add.reduce(np.exp(logs), 1))[:, None]
        chances = np.exp(logs)
        log_ratio = logs[rows, drawn] - batch.log_prob
        slope = self.losses.policy_slope(log_ratio, batch.advantage)
        grad = chances * -slope[:, None]
        grad[rows, drawn] += slope
        if self.losses.entropy_coef:  # d entropy / d logits = -p (log p + entropy)
            entropy = -np.add.reduce(chances * logs, 1)
            grad += chances * (logs + entropy[:, None]) * np.float32(self.losses.entropy_coef / len(logits))
        return log_ratio, grad
