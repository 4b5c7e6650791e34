"""A linear layer that takes the fastest way to its product on a CPU. Everywhere else it is `nn.Linear`.

float32: torch computes with MKL, which on AMD processors leaves half of the AVX-512 units idle: measured on a Zen 5
core, 96 GFLOP/s against oneDNN's 210, for all three products of a training step. On a Zen 3 core (AVX2) the two are
equal, but for the gradient of the weights, where oneDNN copies both operands into another order first: 48 against 74.

bfloat16 (autocast, or weights of that type): torch reaches oneDNN where the processor multiplies bfloat16, and falls
back to loops where it does not: measured on Zen 3, 1.5 to 15 GFLOP/s. There the product is computed in float32 and only
its result is rounded, which is never less exact and 5 to 50 times as fast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
MULTIPLIES_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether this CPU multiplies bfloat16 natively."""
_SMALLEST = 2**22  # multiply-adds from which on the better product outweighs the cost of calling it


class Linear(nn.Linear):
    """`nn.Linear`, with the same parameters and the same result up to the order of sums."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    if x.device.type == "cpu" and not MULTIPLIES_BF16 and _in_bfloat16(x, weight):
        with torch.autocast("cpu", enabled=False):
            return linear(*(None if t is None else t.float() for t in (x, weight, bias))).to(torch.bfloat16)
    if not _takes_onednn(x, weight):
        return F.linear(x, weight, bias)
    return _OneDnnLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel() > 0
    large = x.numel() * weight.shape[0] >= _SMALLEST
    return _HAS_ONEDNN and plain and large and not torch.is_autocast_enabled("cpu")


def _in_bfloat16(x: Tensor, weight: Tensor) -> bool:
    """Whether torch would compute this product in bfloat16."""
    kinds = {x.dtype, weight.dtype}
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16 and kinds <= {torch.float32, torch.bfloat16}
    return kinds == {torch.bfloat16}


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (M, K) times b (N, K) transposed, plus bias (N,)."""
    # The operator of our own takes a tenth of a millisecond a call, which only compilers need to pay.
    return _whole_product(a, b, bias) if torch.compiler.is_compiling() else _onednn(a, b, bias)


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


@torch.library.custom_op("mmssl::product", mutates_args=(), device_types="cpu")
def _whole_product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same as an operator of its own, so that compilers leave it whole."""
    return _onednn(a, b, bias)


@_whole_product.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0])


def _across(grad: Tensor, x: Tensor) -> Tensor:
    """grad (M, out) transposed times x (M, in): oneDNN copies both into the other order first, which only pays where
    its product is far better than MKL's."""
    return _product(grad.t(), x.t()) if _HAS_AVX512 else grad.t() @ x


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if needs_x else None,  # (M, in)
            _across(grad, x) if needs_weight else None,  # (out, in)
            grad.sum(0) if needs_bias else None,
        )
