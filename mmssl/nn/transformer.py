"""The transformer block that every encoder and decoder here is made of.

Parameter names are timm's (norm1, attn.qkv, attn.proj, ls1.gamma, norm2, mlp.fc1, mlp.fc2, ls2.gamma), so that weights
move in and out without a table. Dosovitskiy et al. 2021 (arXiv 2010.11929); BEiT's bias on q and v only; CaiT's layer
scale; stochastic depth (Huang et al. 2016).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.nn.linear import MULTIPLIES_BF16, Linear, linear


@dataclass(frozen=True)
class BlockConfig:
    """Shape and options of one block."""

    dim: int
    """Width of a token."""
    heads: int
    """Attention heads; must divide `dim`."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `dim`."""
    qkv_bias: Literal["full", "qv", "none"] = "full"
    """Bias of the q, k, v projection: on all three, on q and v only (BEiT, VideoMAE), or on none."""
    norm_eps: float = 1e-6
    """LayerNorm epsilon."""
    gelu: Literal["exact", "tanh", "quick"] = "exact"
    """Kind of GELU; quick (CLIP) is x * sigmoid(1.702 x)."""
    norm: Literal["pre", "post"] = "pre"
    """LayerNorm before each branch, or after its residual sum (BERT, Vaswani et al. 2017)."""
    layer_scale: float | None = None
    """Initial value of a learned scale on each branch; None leaves it out."""
    drop_path: float = 0.0
    """Probability that a sample skips a branch in training."""
    drop: float = 0.0
    """Dropout after the attention projection and in the MLP."""
    attn_drop: float = 0.0
    """Dropout of the attention weights."""
    causal: bool = False
    """Each token attends to itself and to those before it alone."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.heads < 1 or self.dim % self.heads:
            raise MmsslError(f"dim {self.dim} must be a positive multiple of heads {self.heads}; change one of them.")
        if self.mlp_ratio <= 0:
            raise MmsslError(f"mlp_ratio must be above 0, got {self.mlp_ratio}.")
        for name in ("drop_path", "drop", "attn_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise MmsslError(f"{name} must be in [0, 1), got {getattr(self, name)}.")


class Attention(nn.Module):
    """Multi-head self-attention with one fused q, k, v projection."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.qkv = Linear(dim, 3 * dim, bias=config.qkv_bias == "full")
        if config.qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)
        self.drop = nn.Dropout(config.drop)
        self.attn_drop, self.causal = config.attn_drop, config.causal

    def _qkv_bias(self) -> Tensor | None:
        if not hasattr(self, "q_bias"):
            return self.qkv.bias
        return torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])

    def forward(self, x: Tensor, key_mask: Tensor | None = None, last: int | None = None) -> Tensor:
        """x (B, N, D); key_mask bool (B, N), True = a real token. Returns (B, N, D), or with `last` (B, last, D)."""
        if key_mask is not None:
            # A row without any real token attends to all of them: its output is ignored, but must not be NaN.
            key_mask = (key_mask | ~key_mask.any(1, keepdim=True))[:, None, None, :]  # (B, 1, 1, N)
        if self.causal:
            before = _no_later(x.shape[1], last or x.shape[1], x.device)
            key_mask = before if key_mask is None else before & key_mask
        attn_drop = self.attn_drop if self.training else 0.0
        return self.drop(self.proj(attend(*self._heads_of(x, last), key_mask, attn_drop)))

    def _heads_of(self, x: Tensor, last: int | None) -> tuple[Tensor, ...]:
        """q (B, N or last, heads, d), k and v (B, N, heads, d)."""
        dim, weight, bias = x.shape[-1], self.qkv.weight, self._qkv_bias()
        if last is None:
            return linear(x, weight, bias).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q_bias, kv_bias = (None, None) if bias is None else (bias[:dim], bias[dim:])
        q = linear(x[:, x.shape[1] - last :], weight[:dim], q_bias).unflatten(-1, (self.heads, -1))
        return q, *linear(x, weight[dim:], kv_bias).unflatten(-1, (2, self.heads, -1)).unbind(2)


def _no_later(n: int, last: int, device: torch.device) -> Tensor:
    """bool (1, 1, last, n): which of n tokens each of the last ones may look at."""
    return torch.ones(last, n, dtype=torch.bool, device=device).tril(n - last)[None, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, drop: float = 0.0) -> Tensor:
    """Scaled dot-product attention of q (B, M, heads, d) to k, v (B, N, heads, d) -> (B, M, heads * d).

    mask: bool, broadcast to (B, heads, M, N), True = may be attended to. drop: probability that a weight is zeroed.

    On a CPU torch's flash kernel is hard to beat in float32: measured on a Zen 3 core, forward and backward, 1568
    tokens, heads of 64, 13.4 ns a weight; plain products of a few hundred rows at a time take 13.7, of all rows at once
    30. In bfloat16 it depends on the processor: one that does not multiply it natively computes in float32 here (the
    kernel in bfloat16 takes four times as long there, the products thirty times).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        if not MULTIPLIES_BF16:
            with torch.autocast("cpu", enabled=False):
                return attend(q.float(), k.float(), v.float(), mask, drop).to(q.dtype)
        if mask is None and drop == 0 and k.shape[1] <= 512:
            return _attend_by_products(q, k, v)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, heads, M or N, d)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop).transpose(1, 2).flatten(2)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same for short sequences in bfloat16 on a CPU that has it, where torch's flash kernel is three times as slow.

    (Measured forward and backward, 197 tokens, 16 heads of 32: the plain products are oneDNN's, the kernel's are not.)
    A few samples at a time, so that the weights stay in the cache and their memory is used again; compilers turn the
    many pieces into slow code and get the whole batch.
    """
    batch, m, heads, d = q.shape
    at_once = max(1, 2**21 // (heads * k.shape[1] ** 2))
    if batch > at_once and not torch.compiler.is_compiling():
        parts = zip(*(t.split(at_once) for t in (q, k, v)), strict=True)
        return torch.cat([_attend_by_products(*part) for part in parts])
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q * d**-0.5, k, v))  # (B * heads, M or N, d)
    weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)  # (B * heads, M, N)
    return torch.bmm(weights, v).view(batch, heads, m, d).transpose(1, 2).flatten(2)


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU: x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        hidden = int(config.dim * config.mlp_ratio)
        self.fc1 = Linear(config.dim, hidden)
        self.act = QuickGELU() if config.gelu == "quick" else nn.GELU("tanh" if config.gelu == "tanh" else "none")
        self.fc2 = Linear(hidden, config.dim)
        self.drop = nn.Dropout(config.drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class LayerScale(nn.Module):
    """A learned scale of each channel."""

    def __init__(self, dim: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Zero a branch for a random part of the samples in training, and scale the others up to keep its mean."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.empty(x.shape[:1] + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * keep.bernoulli_(1 - self.p).div_(1 - self.p)


class Block(nn.Module):
    """Attention and MLP, each with its LayerNorm and residual sum."""

    def __init__(self, config: BlockConfig):
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if config.layer_scale is None else LayerScale(config.dim, config.layer_scale)

        self.post_norm = config.norm == "post"
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = Mlp(config)
        self.ls2 = scale()
        self.drop_path = DropPath(config.drop_path)

    def forward(self, x: Tensor, key_mask: Tensor | None = None, last: int | None = None) -> Tensor:
        """x (B, N, D); key_mask bool (B, N), True = a real token. Returns (B, N, D).

        With `last` only the last so many tokens are computed, from all of them: (B, last, D).
        """
        rest = x if last is None else x[:, x.shape[1] - last :]
        if self.post_norm:
            x = self.norm1(rest + self.drop_path(self.ls1(self.attn(x, key_mask, last))))
            return self.norm2(x + self.drop_path(self.ls2(self.mlp(x))))
        x = rest + self.drop_path(self.ls1(self.attn(self.norm1(x), key_mask, last)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


def init_weights(module: nn.Module) -> None:
    """MAE's start: xavier-uniform linear weights (the fused qkv as one matrix), zero biases. Use with `.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
