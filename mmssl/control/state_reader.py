"""How an algorithm looks through an encoder of states by itself, so that it can train it, or show it actions too.

A frozen encoder in front of the world (`mmssl.envs.encode`) is cheaper: each state is encoded once.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.encoder import Encoder
from mmssl.envs.encode import Pooling
from mmssl.envs.encode_states import read_vectors
from mmssl.errors import MmsslError


class StateReader(nn.Module):
    """Vectors of one step -> features, by an encoder that reads them as a trajectory of length one. Dropout is off.

    Args:
        encoder: of states and more; it is copied.
        vectors: name -> width of what a world shows, in the order in which they are joined.
        pooling: of the encoder's tokens, one for each vector that it reads.
        keep: whether what the world shows stands behind the features, in raw units.

    Attributes:
        width: F, numbers of the features.
        action_low, action_high: float32 (A,), buffers: what actions of -1 and 1 are in the units of the encoder's data.

    Raises:
        MmsslError: nothing that the encoder reads, or of another width.
    """

    action_low: Tensor
    action_high: Tensor

    def __init__(
        self, encoder: Encoder, vectors: dict[str, int], pooling: Pooling = "mean", keep: bool = False,
        low: np.ndarray | None = None, high: np.ndarray | None = None,
    ):  # fmt: skip
        super().__init__()
        self.names, self.widths = read_vectors(encoder, vectors), dict(vectors)
        self.encoder, self.pooling, self.keep = copy.deepcopy(encoder).eval(), pooling, keep
        self.register_buffer("action_low", torch.as_tensor(-1.0 if low is None else low, dtype=torch.float32))
        self.register_buffer("action_high", torch.as_tensor(1.0 if high is None else high, dtype=torch.float32))
        with torch.no_grad():
            self.width = self(torch.zeros(1, sum(vectors.values()), device=self.device)).shape[1]

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return next(self.encoder.parameters()).device

    def train(self, mode: bool = True) -> "StateReader":
        """As ever, but for the encoder, which stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, obs: Tensor) -> Tensor:
        """All vectors side by side (B, D) -> features (B, F)."""
        features = self.encoder(self._batch(obs))
        x = features.tokens.flatten(1) if self.pooling == "flat" else features.pooled(self.pooling)
        return torch.cat([x, obs], -1) if self.keep else x

    def with_action(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of state and action, each (B, dim), that see one another; actions (B, A) in [-1, 1].

        Gradients go through to the actions.
        """
        if "action" not in self.encoder.modalities:
            raise MmsslError(
                f"this encoder reads {', '.join(self.encoder.modalities)} and no action; set state_action to false."
            )
        own = self.action_low + (action + 1) / 2 * (self.action_high - self.action_low)
        features = self.encoder({**self._batch(obs), "action": own[:, None]})
        states = [features.of(name)[0] for name in self.names]  # (B, 1, dim) each
        return torch.cat(states, 1).mean(1), features.of("action")[0][:, 0]

    def _batch(self, obs: Tensor) -> dict[str, Tensor]:
        parts = dict(zip(self.widths, obs.split(list(self.widths.values()), -1), strict=True))
        return {name: parts[name][:, None] for name in self.names}  # (B, 1, D)

    def used(self) -> list[nn.Parameter]:
        """The encoder's weights that features depend on: not those of what is not read."""
        weights = [p for p in self.encoder.parameters() if p.requires_grad]
        probe = self(torch.zeros(1, sum(self.widths.values()), device=self.device)).sum()
        slopes = torch.autograd.grad(probe, weights, allow_unused=True)
        return [p for p, slope in zip(weights, slopes, strict=True) if slope is not None]
