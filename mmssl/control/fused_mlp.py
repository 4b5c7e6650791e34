"""Small multilayer perceptrons without the overhead of small operations: parameters in one vector with Adam on it, and
passes for CPUs, forward for acting, forward and backward for an actor and a critic together.

At 64 rows and 64 units a training step of torch spends most of its time on calling operations, not in them. Here torch
multiplies matrices into memory that is there already, and numpy, called at a quarter of the cost, does the rest.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError

SELU_SCALE, SELU_ALPHA = np.float32(1.0507009873554805), np.float32(1.6732632423543772)


class Tanh:
    """An activation in place, and in place of the gradient of its output (given that output) the one of its input."""

    @staticmethod
    def forward(x: np.ndarray) -> None:
        np.tanh(x, out=x)

    @staticmethod
    def backward(grad: np.ndarray, out: np.ndarray) -> None:
        grad *= 1 - out * out


class Relu:
    """As `Tanh`."""

    @staticmethod
    def forward(x: np.ndarray) -> None:
        np.maximum(x, 0, out=x)

    @staticmethod
    def backward(grad: np.ndarray, out: np.ndarray) -> None:
        grad *= out > 0


class Elu:
    """As `Tanh`; above 0 the slope is 1, below it the output plus 1."""

    @staticmethod
    def forward(x: np.ndarray) -> None:
        np.maximum(x, np.expm1(np.minimum(x, 0)), out=x)

    @staticmethod
    def backward(grad: np.ndarray, out: np.ndarray) -> None:
        grad *= np.minimum(out, 0) + 1


class Selu:
    """As `Tanh`: `Elu` with a scale, and another one below 0."""

    @staticmethod
    def forward(x: np.ndarray) -> None:
        below = SELU_ALPHA * np.expm1(np.minimum(x, 0))
        np.multiply(np.where(x > 0, x, below), SELU_SCALE, out=x)

    @staticmethod
    def backward(grad: np.ndarray, out: np.ndarray) -> None:
        grad *= np.where(out > 0, SELU_SCALE, out + SELU_SCALE * SELU_ALPHA)


KNOWN = {nn.Tanh: Tanh, nn.ReLU: Relu, nn.ELU: Elu, nn.SELU: Selu}


class FlatParameters:
    """Parameters as views of one vector, and their gradients as views of another: Adam and the norm are one operation.

    Args:
        parameters: float32, on their device already; they keep their values and stay what their modules use.

    Attributes:
        vector: all of them, an `nn.Parameter` whose `grad` is there from the start; set it to 0 before a backward pass.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.vector = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
        self.vector.grad = torch.zeros_like(self.vector)
        start = 0
        for p in parameters:
            end = start + p.numel()
            p.data = self.vector.data[start:end].view(p.shape)
            p.grad = self.vector.grad[start:end].view(p.shape)
            start = end


class FlatAdam:
    """Adam on one vector with a gradient: `torch.optim.Adam`'s fused operation, without what surrounds it."""

    def __init__(self, vector: nn.Parameter, lr: float, eps: float = 1e-8, betas: tuple[float, float] = (0.9, 0.999)):
        self.vector, self.lr, self.eps, self.betas = vector, lr, eps, betas
        self.mean, self.square = torch.zeros_like(vector.data), torch.zeros_like(vector.data)
        self.count = torch.zeros((), device=vector.device)

    @torch.no_grad()
    def step(self) -> None:
        self.count += 1
        torch._fused_adam_(
            [self.vector], [self.vector.grad], [self.mean], [self.square], [], [self.count], lr=self.lr, eps=self.eps,
            beta1=self.betas[0], beta2=self.betas[1], weight_decay=0.0, amsgrad=False, maximize=False,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "square": self.square, "count": self.count, "lr": self.lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("mean", "square", "count"):
            getattr(self, name).copy_(state[name])
        self.lr = float(state["lr"])


class TwinMlp:
    """Two plain perceptrons of equal hidden layers on one input; heads may differ in width. On a CPU, in numpy.

    Args:
        first, second: `nn.Sequential`s of linear layers and one kind of activation between them; see `fits`.

    `parameters` must become a `FlatParameters`, in this order, before `bind`: then the weights of both nets lie side by
    side and every layer is one product of a pair. `backward` overwrites the gradients there.
    """

    def __init__(self, first: nn.Sequential, second: nn.Sequential):
        if not self.fits(first, second):
            raise MmsslError("a TwinMlp needs two plain perceptrons of equal hidden layers, with a known activation.")
        self.nets, self.activation = (first, second), KNOWN[type(first[1])]
        self.buffers: dict[int, list[np.ndarray]] = {}

    @staticmethod
    def fits(first: nn.Module, second: nn.Module) -> bool:
        """Whether the two can be one network."""
        nets = first, second
        if any(not isinstance(net, nn.Sequential) or len(net) < 3 or not _plain(net) for net in nets):
            return False
        sizes = [[(layer.in_features, layer.out_features) for layer in net[:-1:2]] for net in nets]
        return sizes[0] == sizes[1] and type(first[1]) is type(second[1])

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Layer by layer: both weights, then both biases."""
        pairs = list(zip(self.nets[0][::2], self.nets[1][::2], strict=True))
        return [getattr(net, name) for pair in pairs for name in ("weight", "bias") for net in pair]

    def bind(self) -> None:
        """Find the weights of both nets side by side."""
        hidden = list(zip(self.nets[0][:-1:2], self.nets[1][:-1:2], strict=True))
        self.weights, self.weight_grads = _twins(hidden, "weight")  # (2, out, in) each
        biases, bias_grads = _twins(hidden, "bias")  # (2, out)
        self.biases, self.bias_grads = [b[:, None] for b in biases], [g.numpy() for g in bias_grads]
        self.columns = [w.transpose(1, 2) for w in self.weights]
        heads = [net[-1] for net in self.nets]
        self.heads = [(h.weight.data, h.bias.data, h.weight.data.t()) for h in heads]
        self.head_grads = [(h.weight.grad, h.bias.grad.numpy()) for h in heads]

    def forward(self, x: np.ndarray) -> list[np.ndarray]:
        """float32 (B, D) -> the outputs of both nets, (B, O1) and (B, O2); `backward` is of the last call."""
        self.input, self.outputs = torch.from_numpy(x).expand(2, -1, -1), self._buffers(len(x))
        last = self.input
        for column, bias, (out, array) in zip(self.columns, self.biases, self.outputs, strict=True):
            last = torch.baddbmm(bias, last, column, out=out)
            self.activation.forward(array)
        return [torch.addmm(bias, last[k], column).numpy() for k, (_, bias, column) in enumerate(self.heads)]

    def _buffers(self, rows: int) -> list[tuple[Tensor, np.ndarray]]:
        """For the outputs of each hidden layer (2, B, out), as a tensor and as an array of the same memory."""
        if rows not in self.buffers:
            arrays = [np.empty((2, rows, w.shape[1]), np.float32) for w in self.weights]
            self.buffers[rows] = [(torch.from_numpy(a), a) for a in arrays]
        return self.buffers[rows]

    def backward(self, first: np.ndarray, second: np.ndarray) -> None:
        """Gradients of a loss from those of both outputs, (B, O1) and (B, O2), into the parameters' `grad`."""
        last = self.outputs[-1][0]
        grad = torch.empty_like(last)
        for k, given in enumerate((first, second)):
            weight_grad, bias_grad = self.head_grads[k]
            np.add.reduce(given, 0, out=bias_grad)
            slope = torch.from_numpy(given)
            torch.mm(slope.t(), last[k], out=weight_grad)
            torch.mm(slope, self.heads[k][0], out=grad[k])
        for k in reversed(range(len(self.weights))):
            array = grad.numpy()
            self.activation.backward(array, self.outputs[k][1])
            np.add.reduce(array, 1, out=self.bias_grads[k])
            torch.bmm(grad.transpose(1, 2), self.outputs[k - 1][0] if k else self.input, out=self.weight_grads[k])
            if k:
                grad = torch.bmm(grad, self.weights[k])


def _plain(net: nn.Sequential) -> bool:
    kinds = {type(layer) for layer in net[1::2]}
    linear = all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in net[::2])
    return linear and len(net) % 2 == 1 and len(kinds) == 1 and kinds <= KNOWN.keys()


def _twins(layers: list[tuple[nn.Linear, nn.Linear]], name: str) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of both members of each pair as one tensor, (2, ...), and so their gradients."""
    values, grads = [], []
    for pair in layers:
        a, b = (getattr(layer, name) for layer in pair)
        for found, (x, y) in ((values, (a.data, b.data)), (grads, (a.grad, b.grad))):
            if y.data_ptr() != x.data_ptr() + x.numel() * x.element_size():
                raise MmsslError("the parameters of a TwinMlp must be a FlatParameters, in their order, before bind.")
            found.append(x.as_strided((2, *x.shape), (x.numel(), *x.stride())))
    return values, grads


class RowMlp:
    """The forward pass of a plain perceptron for a handful of rows; the weights of a CPU's net are not copied.

    `refresh` copies them where the net is on another device.
    """

    def __init__(self, net: nn.Module):
        self.layers = [layer for layer in net.modules() if not isinstance(layer, nn.Sequential)]
        self.refresh()

    @staticmethod
    def fits(net: nn.Module) -> bool:
        """Whether the net is made of linear layers and activations that are known here, one after the other."""
        known = (nn.Linear, nn.Sequential, *KNOWN)
        return isinstance(net, nn.Sequential) and all(type(layer) in known for layer in net.modules())

    def refresh(self) -> None:
        """Take the net's weights as they are now."""
        self.steps = []
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                self.steps.append((layer.bias.data.cpu(), layer.weight.data.cpu().t()))
            else:
                self.steps.append(KNOWN[type(layer)].forward)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 (n, D) -> (n, O)."""
        for step in self.steps:
            if isinstance(step, tuple):
                x = torch.addmm(step[0], torch.from_numpy(x), step[1]).numpy()
            else:
                step(x)
        return x
