"""Running statistics of observations and returns, and the normalisation that a policy takes with it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

EPSILON = 1e-8


class RunningMoments:
    """Mean and variance of everything seen so far, joined batch by batch (Chan et al. 1979); float64 (D,).

    `normal(x)` is x less the mean over the deviation, float32, cut at `limit`.
    """

    def __init__(self, width: int, limit: float = 10.0):
        self.mean, self.var, self.count, self.limit = np.zeros(width), np.ones(width), 1e-4, limit

    def update(self, x: np.ndarray) -> None:
        """Join a batch (n, D); an empty one changes nothing."""
        n = len(x)
        if n == 0:
            return
        x = x.astype(np.float64)
        mean = np.add.reduce(x, 0) / n  # x.mean and x.var take three times as long
        x -= mean
        total = self.count + n
        away = mean - self.mean
        self.mean = self.mean + away * (n / total)
        squares = np.einsum("nd,nd->d", x, x)
        self.var = (self.var * self.count + squares + away**2 * (self.count * n / total)) / total
        self.count = total

    def normal(self, x: np.ndarray) -> np.ndarray:
        """(n, D) -> float32 (n, D)."""
        scaled = (x - self.mean) / np.sqrt(self.var + EPSILON)
        return np.minimum(np.maximum(scaled, -self.limit), self.limit).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "var": self.var, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.var = np.array(state["mean"], np.float64), np.array(state["var"], np.float64)
        self.count = float(state["count"])


class ReturnScale:
    """Rewards over the running deviation of the discounted return of each environment, cut at `limit`."""

    def __init__(self, n_envs: int, discount: float, limit: float = 10.0):
        self.returns, self.discount, self.limit = np.zeros(n_envs), discount, limit
        self.moments = RunningMoments(1)

    def __call__(self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Scaled rewards float32 (n,); `ended` (n,) begins the return anew, rows that are not `valid` do not count."""
        self.returns = np.where(valid, self.returns * self.discount + reward, self.returns)
        self.moments.update(self.returns[valid, None])
        self.returns = np.where(ended, 0.0, self.returns)
        scaled = reward / np.sqrt(self.moments.var[0] + EPSILON)
        return np.minimum(np.maximum(scaled, -self.limit), self.limit).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"returns": self.returns, "moments": self.moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returns = np.array(state["returns"], np.float64)
        self.moments.load_state_dict(state["moments"])


class Standardize(nn.Module):
    """What `RunningMoments.normal` does, as a part of a policy; the statistics are buffers, float64 (D,)."""

    mean: Tensor
    var: Tensor

    def __init__(self, width: int, limit: float = 10.0):
        super().__init__()
        self.limit = limit
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("var", torch.ones(width, dtype=torch.float64))

    def take(self, moments: RunningMoments) -> None:
        """Normalise as these statistics say from now on."""
        self.mean.copy_(torch.from_numpy(moments.mean))
        self.var.copy_(torch.from_numpy(moments.var))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> float32 (B, D)."""
        return ((x - self.mean) / (self.var + EPSILON).sqrt()).clamp(-self.limit, self.limit).float()
