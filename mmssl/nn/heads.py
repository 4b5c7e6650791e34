"""Heads on top of an encoder's features: what probes and fine-tuning train."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearHead(nn.Module):
    """(B, D) -> (B, outputs), weight truncated normal with `std`, bias 0.

    With `norm` a LayerNorm stands in front (MAE's `fc_norm` for fine-tuning; weight std 2e-5 there); `dropout` comes
    between the two (VideoMAE's fine-tuning on small sets).
    """

    def __init__(self, dim: int, outputs: int, std: float = 0.01, norm: bool = False, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(dim, outputs)
        nn.init.trunc_normal_(self.fc.weight, std=std)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.norm(x)))


class BatchNormLinearHead(nn.Module):
    """MAE's linear probe: batch norm without affine (eps 1e-6), then a linear layer. (B, D) -> (B, outputs)."""

    def __init__(self, dim: int, outputs: int, std: float = 0.01):
        super().__init__()
        self.bn = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.fc = nn.Linear(dim, outputs)
        nn.init.trunc_normal_(self.fc.weight, std=std)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(x))


class AttentiveHead(nn.Module):
    """Attentive probe: learned queries attend to the patch tokens, a linear layer reads them.

    Only the queries, the key and value projections and the last layer are trained, on frozen tokens (V-JEPA, Bardes et
    al. 2024, without its MLP).

    Args:
        dim: width D of the tokens.
        outputs: number of classes or targets.
        heads: attention heads; must divide `dim`.
        queries: number of learned queries, averaged before the last layer.
    """

    def __init__(self, dim: int, outputs: int, heads: int = 8, queries: int = 1):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(queries, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.kv = nn.Linear(dim, 2 * dim)
        self.fc = nn.Linear(dim, outputs)
        nn.init.trunc_normal_(self.query, std=0.02)
        nn.init.trunc_normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """tokens (B, N, D), valid bool (B, N), True = real. Returns (B, outputs)."""
        batch, n, dim = tokens.shape
        kv = self.kv(self.norm(tokens)).view(batch, n, 2, self.heads, dim // self.heads)
        k, v = kv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D/heads)
        q = self.query.view(1, -1, self.heads, dim // self.heads).transpose(1, 2).expand(batch, -1, -1, -1)
        mask = None if valid is None else valid[:, None, None, :]  # (B, 1, 1, N)
        x = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask)  # (B, heads, queries, D/heads)
        return self.fc(x.transpose(1, 2).flatten(2).mean(1))
