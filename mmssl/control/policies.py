"""What acts: observations in, actions in [-1, 1] out, with the normalisation that it was trained with."""

import math

import numpy as np
import torch
from torch import Tensor, nn

HALF_LOG = 0.5 * math.log(2 * math.pi)


def side_by_side(obs: dict[str, np.ndarray]) -> np.ndarray:
    """float32 (n, D), a new array: all vectors of an observation in their order; pictures are left out."""
    parts = [value for value in obs.values() if value.ndim == 2]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def join_vectors(obs: dict[str, np.ndarray]) -> Tensor:
    """`side_by_side` as a tensor."""
    return torch.from_numpy(side_by_side(obs))


class Policy(nn.Module):
    """Base of policies. A subclass writes `forward`: normalised (B, D) -> actions in [-1, 1], the best ones.

    Attributes:
        normal: what is done to observations first, saved with the policy; nothing unless it is replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normal: nn.Module = nn.Identity()

    def act(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        """The best actions, float32 (n, A) or int64 (n,)."""
        with torch.inference_mode():
            device = next(self.parameters()).device
            return self(self.normal(join_vectors(obs).to(device))).cpu().numpy()


class DeterministicPolicy(Policy):
    """A network whose output is the action."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs)


class GaussianPolicy(Policy):
    """A Gaussian over actions, whose deviation is learned and the same everywhere; the best action is its mean.

    Args:
        net: (B, D) -> means (B, A).
        log_std: start of the logarithm of the deviation.
        squash: actions are tanh of the Gaussian; else it is cut at -1 and 1 where actions are taken.
    """

    def __init__(self, net: nn.Module, actions: int, log_std: float = 0.0, squash: bool = False):
        super().__init__()
        self.net, self.squash = net, squash
        self.log_std = nn.Parameter(torch.full((actions,), log_std))

    def forward(self, obs: Tensor) -> Tensor:
        mean = self.net(obs)
        return mean.tanh() if self.squash else mean.clamp(-1, 1)

    def draw(self, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Actions drawn around their means, float32 (n, A), before any clipping or tanh."""
        noise = rng.standard_normal(mean.shape, np.float32)
        return mean + np.exp(self.log_std.detach().cpu().numpy()) * noise

    def bound(self, drawn: np.ndarray) -> np.ndarray:
        """What was drawn as an action in [-1, 1]."""
        return np.tanh(drawn) if self.squash else np.minimum(np.maximum(drawn, np.float32(-1)), np.float32(1))

    def log_prob(self, mean: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density (B,) of what was drawn, (B, A), given the net's output, and the entropy (B,) of the Gaussian.

        The density of a squashed action differs by the slope of tanh, which no ratio of densities sees.
        """
        error = (drawn - mean) * torch.exp(-self.log_std)
        log_prob = (-0.5 * error.square() - self.log_std - HALF_LOG).sum(-1)
        return log_prob, (self.log_std + 0.5 + HALF_LOG).sum().expand(len(mean))


class SquashedPolicy(Policy):
    """A Gaussian under a tanh whose deviation is learned for each observation; the best action is the tanh of its mean.

    Args:
        net: (B, D) -> means and logarithms of deviations, side by side (B, 2 A).
        log_std: range of that logarithm.
        tanh: fill the range by a tanh, in place of cutting the logarithm to it.
    """

    def __init__(self, net: nn.Module, log_std: tuple[float, float] = (-20.0, 2.0), tanh: bool = False):
        super().__init__()
        self.net, self.log_std, self.tanh = net, log_std, tanh

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs).chunk(2, -1)[0].tanh()

    def draw(self, outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Actions drawn, float32 (n, A), given the net's outputs."""
        mean, log_std = np.split(outputs, 2, -1)
        low, high = self.log_std
        log_std = low + 0.5 * (high - low) * (np.tanh(log_std) + 1) if self.tanh else log_std.clip(low, high)
        return np.tanh(mean + np.exp(log_std) * rng.standard_normal(mean.shape, np.float32)).astype(np.float32)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, A) and their log-density (B,), from standard noise (B, A)."""
        return self.squash(self.net(obs), noise)

    def squash(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """`sample` from the net's outputs (B, 2 A).

        The slope of tanh, 1 - a^2, has 1e-6 added before its logarithm, as all published implementations do.
        """
        mean, log_std = outputs.chunk(2, -1)
        low, high = self.log_std
        log_std = low + 0.5 * (high - low) * (log_std.tanh() + 1) if self.tanh else log_std.clamp(low, high)
        action = torch.addcmul(mean, noise, log_std.exp()).tanh()
        slope = (1 - action.square()) + 1e-6  # in this order, which keeps what 1 + 1e-6 would round away
        return action, (-0.5 * noise.square() - log_std - slope.log()).sum(-1) - HALF_LOG * noise.shape[-1]

    def squash_backward(
        self, outputs: Tensor, noise: Tensor, action: Tensor, by_action: Tensor, by_density: Tensor
    ) -> Tensor:
        """Gradient of the outputs (B, 2 A) from those of the actions (B, A) and of the log-densities, a number."""
        raw, (low, high) = outputs.chunk(2, -1)[1], self.log_std
        filled = raw.tanh() if self.tanh else raw.clamp(low, high)
        log_std = low + 0.5 * (high - low) * (filled + 1) if self.tanh else filled
        slope = 1 - action.square()
        by_mean = slope * (by_action + 2 * by_density * action / (slope + 1e-6))
        by_log_std = torch.addcmul(-by_density, by_mean * noise, log_std.exp())
        by_raw = 0.5 * (high - low) * (1 - filled.square()) if self.tanh else raw == filled
        return torch.cat([by_mean, by_log_std * by_raw], -1)


class CategoricalPolicy(Policy):
    """A softmax over discrete actions; the best one is the most probable."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, obs: Tensor) -> Tensor:
        """(B, D) -> int64 (B,)."""
        return self.net(obs).argmax(-1)

    def draw(self, logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Actions drawn, int64 (n,): the largest logit after Gumbel noise."""
        return (logits + rng.gumbel(size=logits.shape)).argmax(-1)

    def bound(self, drawn: np.ndarray) -> np.ndarray:
        return drawn

    def log_prob(self, logits: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability (B,) of the actions drawn, int64 (B,), given the net's output, and the entropy (B,)."""
        logs = logits.log_softmax(-1)
        return logs.gather(-1, drawn[:, None])[:, 0], -(logs.exp() * logs).sum(-1)
