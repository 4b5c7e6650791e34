"""Passes of perceptrons on a CPU that use the same memory each time, and their gradients by formulas.

At 256 rows and 256 units an update of TD3 or SAC is mostly products of matrices, on one core or two; autograd adds a
seventh to it, by small operations and by memory that the caches do not hold.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mmssl.control.networks import Ensemble

_mask = torch.ops.aten.threshold_backward.grad_input  # 0 where a ReLU's output is 0, in place


class Memory:
    """Tensors by name and shape, made when they are first asked for; networks of an algorithm share them."""

    def __init__(self) -> None:
        self.tensors: dict[tuple, Tensor] = {}

    def __call__(self, name: Any, like: Tensor, *shape: int) -> Tensor:
        """A tensor of the dtype of `like`, with what was last written to it."""
        key = name, *shape
        if key not in self.tensors:
            self.tensors[key] = like.new_empty(shape)
        return self.tensors[key]


class ScratchNet:
    """A perceptron with ReLUs between its layers, or some members of an `Ensemble`, without autograd.

    Args:
        net: an `Ensemble`, or an `nn.Sequential` of linear layers with ReLUs between them; a tanh at its end is left to
            the caller. Its weights are seen as they are at each pass.
        memory: shared with other networks.
        members: which of an ensemble.
        learns: whether `backward` is asked for gradients of weights; it writes them to the parameters' `grad`.
    """

    def __init__(self, net: nn.Module, memory: Memory, members: slice = slice(None), learns: bool = False):
        self.memory, self.kept = memory, []
        if isinstance(net, Ensemble):
            pairs = list(zip(net.weight, net.bias, strict=True))
        else:
            pairs = [(layer.weight, layer.bias) for layer in net if isinstance(layer, nn.Linear)]
        self.weights = [_batched(w.data)[members] for w, _ in pairs]  # (K, in, out)
        self.biases = [_batched(b.data)[members] for _, b in pairs]  # (K, 1, out)
        if learns:
            for parameter in (p for pair in pairs for p in pair):
                parameter.grad = torch.zeros_like(parameter)
            self.weight_grads = [_batched(w.grad)[members] for w, _ in pairs]
            self.bias_grads = [_batched(b.grad)[members] for _, b in pairs]

    @staticmethod
    def fits(net: nn.Module) -> bool:
        """Whether the network is of that kind, on a CPU."""
        if isinstance(net, Ensemble):
            plain = net.norm is None and isinstance(net.activation, nn.ReLU)
        else:
            layers = list(net) if isinstance(net, nn.Sequential) else []
            layers = layers[:-1] if layers and isinstance(layers[-1], nn.Tanh) else layers
            plain = len(layers) % 2 == 1 and all(map(isinstance, layers, [nn.Linear, nn.ReLU] * len(layers)))
        return plain and all(p.device.type == "cpu" for p in net.parameters())

    def __call__(self, *inputs: Tensor, keep: bool = False) -> Tensor:
        """Inputs (B, ...) side by side -> (K, B, out), a new tensor; with `keep` a `backward` may follow."""
        members, name = len(self.weights[0]), self if keep else "backward"
        kept = [(inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)).expand(members, -1, -1)]
        for k, (weight, bias) in enumerate(zip(self.weights[:-1], self.biases[:-1], strict=True)):
            place = self.memory((name, k), weight, members, kept[0].shape[1], weight.shape[2])
            kept.append(torch.baddbmm(bias, kept[-1], weight, out=place).relu_())
        if keep:
            self.kept = kept
        return _last(kept[-1], self.weights[-1], self.biases[-1])

    def backward(self, grad: Tensor, weights: bool = True, inputs: bool = False) -> Tensor | None:
        """From the gradient of the last kept pass's output (K, B, out) to those of weights and of the input (B, in)."""
        for k in reversed(range(len(self.weights))):
            if weights:
                torch.sum(grad, 1, keepdim=True, out=self.bias_grads[k])
                _product(self.kept[k], grad, self.weight_grads[k])
            if k:
                place = self.memory(("backward", k - 1), grad, *self.kept[k].shape)
                grad = _back(grad, self.weights[k], place)
                _mask(grad, self.kept[k], 0, grad_input=grad)
        return torch.bmm(grad, self.weights[0].mT).sum(0) if inputs else None


def _batched(p: Tensor) -> Tensor:
    """A view (K, in, out) of weights and (K, 1, out) of biases; linear layers hold theirs as (out, in) and (out,)."""
    return p if p.ndim == 3 else p.mT[None] if p.ndim == 2 else p[None, None]


def _last(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The last layer (K, B, out). A matrix with one column as a vector: products of matrices are slow with it."""
    if weight.shape[2] > 1:
        return torch.baddbmm(bias, x, weight)
    out = x.new_empty(*x.shape[:2], 1)
    for k in range(len(x)):
        torch.addmv(bias[k, 0], x[k], weight[k, :, 0], out=out[k, :, 0])
    return out


def _product(x: Tensor, grad: Tensor, out: Tensor) -> None:
    """Gradient of weights (K, in, out), from an input (K, B, in) and the gradient of the output (K, B, out)."""
    if grad.shape[2] > 1:
        torch.bmm(x.mT, grad, out=out)
        return
    for k in range(len(x)):
        torch.mv(x[k].t(), grad[k, :, 0], out=out[k, :, 0])


def _back(grad: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """Gradient of a layer's input (K, B, in), from that of its output (K, B, out)."""
    return torch.bmm(grad, weight.mT, out=out) if grad.shape[2] > 1 else torch.mul(grad, weight.mT, out=out)
