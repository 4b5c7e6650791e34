"""The small networks of control: multilayer perceptrons, twin critics as one batched network, and action heads."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.control.base import Spaces
from mmssl.control.fused_mlp import RowMlp
from mmssl.errors import MmsslError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
}


def vector_layout(spaces: Spaces, name: str) -> tuple[int, int]:
    """Width of what is seen and number of actions, for algorithms that learn continuous actions from vectors.

    Raises:
        MmsslError: discrete actions, or pictures; `name` is the algorithm's.
    """
    if spaces.discrete:
        raise MmsslError(f"{name} needs continuous actions and this task has {spaces.action_dim} discrete; take ppo.")
    if spaces.pictures or not spaces.vector_width:
        raise MmsslError(
            f"{name} learns from vectors and this world shows {', '.join(spaces.observations)}; observe the state, put "
            "a frozen encoder in front of the pictures, or take curl or drqv2."
        )
    return spaces.vector_width, spaces.action_dim


def mlp(sizes: Sequence[int], activation: str = "relu", last: nn.Module | None = None) -> nn.Sequential:
    """Linear layers of widths `sizes`, an activation between them, `last` at the end: (..., in) -> (..., out)."""
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), _activation(activation)]
    return nn.Sequential(*layers[:-1], *([] if last is None else [last]))


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise MmsslError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}.")
    return nn.ReLU(inplace=True) if name == "relu" else ACTIVATIONS[name]()  # its gradient needs the output alone


def orthogonal(module: nn.Module, gain: float = 1.0, last: float | None = None) -> nn.Module:
    """Orthogonal weights and zero biases in every linear layer; `last`: another gain in the last one."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain if last is None or layer is not layers[-1] else last)
        nn.init.zeros_(layer.bias)
    return module


def outputs_of(net: nn.Module, device: str) -> Callable[[np.ndarray], np.ndarray]:
    """What a net says of a few rows, float32 (n, D) -> (n, O), as it stands at each call; on a CPU the quick way."""
    if torch.device(device).type == "cpu" and RowMlp.fits(net):
        return RowMlp(net)

    def outputs(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net(torch.from_numpy(x).to(device)).cpu().numpy()

    return outputs


def cut_open(action: Tensor) -> Tensor:
    """Actions cut to the open range (-1, 1); the gradient goes through as if nothing was cut (DrQ-v2)."""
    return action + (action.clamp(-1 + 1e-6, 1 - 1e-6) - action).detach()


class Ensemble(nn.Module):
    """Several critics of one shape as one network: each layer is one product of a batch of matrices.

    Weights are `weight.<layer>` (K, in, out) and `bias.<layer>` (K, 1, out), drawn as torch draws those of `nn.Linear`.
    The last layer, of one unit, is a sum of products: as a product of matrices with one column it takes five times as
    long on a CPU.

    Args:
        sizes: widths, input first; the last is 1.
        members: K, how many critics.
        normed: LayerNorm and tanh after the first layer in place of the activation; their weights are `norm.0` and
            `norm.1` (K, 1, out).
    """

    def __init__(self, sizes: Sequence[int], members: int = 2, activation: str = "relu", normed: bool = False):
        super().__init__()
        if sizes[-1] != 1:
            raise MmsslError(f"the last width of an ensemble must be 1, got {sizes[-1]}.")
        self.members, self.activation = members, _activation(activation)
        weights, biases = [], []
        for i, o in pairwise(sizes):
            bound = 1 / math.sqrt(i)
            weights.append(nn.Parameter(torch.empty(members, i, o).uniform_(-bound, bound)))
            biases.append(nn.Parameter(torch.empty(members, 1, o).uniform_(-bound, bound)))
        self.weight, self.bias, self.norm = nn.ParameterList(weights), nn.ParameterList(biases), None
        if normed:
            shape = (members, 1, sizes[1])
            self.norm = nn.ParameterList([nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))])

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs (B, ...) side by side -> (K, B) values."""
        x = torch.cat(inputs, -1).expand(self.members, -1, -1)  # (K, B, in)
        *hidden, (last, offset) = zip(self.weight, self.bias, strict=True)
        for layer, (weight, bias) in enumerate(hidden):
            x = torch.baddbmm(bias, x, weight)
            x = self._normed(x) if layer == 0 and self.norm is not None else self.activation(x)
        return (x * last.mT).sum(-1) + offset[..., 0]

    def _normed(self, x: Tensor, k: slice | int = slice(None)) -> Tensor:
        gain, shift = self.norm
        return torch.tanh(torch.addcmul(shift[k], F.layer_norm(x, x.shape[-1:]), gain[k]))

    def member(self, k: int, *inputs: Tensor) -> Tensor:
        """The values (B,) of one critic alone."""
        x = torch.cat(inputs, -1)
        *hidden, (last, offset) = zip(self.weight, self.bias, strict=True)
        for layer, (weight, bias) in enumerate(hidden):
            x = torch.addmm(bias[k], x, weight[k])
            x = self._normed(x, k) if layer == 0 and self.norm is not None else self.activation(x)
        return torch.addmv(offset[k, 0], x, last[k, :, 0])


def orthogonal_members(ensemble: Ensemble) -> Ensemble:
    """Orthogonal weights and zero biases in every member."""
    for weight, bias in zip(ensemble.weight, ensemble.bias, strict=True):
        for member in weight:
            nn.init.orthogonal_(member.data.T)
        nn.init.zeros_(bias)
    return ensemble


class Average:
    """A network that follows another one slowly: `target <- target + tau * (online - target)`.

    Args:
        online, target: modules of one structure; the target starts as a copy and has no gradients.
    """

    def __init__(self, online: nn.Module, target: nn.Module):
        target.load_state_dict(online.state_dict())
        target.requires_grad_(False)
        self.online, self.target = list(online.parameters()), list(target.parameters())

    @torch.no_grad()
    def step(self, tau: float) -> None:
        """Go a part `tau` of the way."""
        torch._foreach_lerp_(self.target, self.online, tau)


class Adam:
    """`torch.optim.Adam`'s fused operation without what surrounds it, which takes as long again on small networks.

    Attributes:
        param_groups: one group, as torch's optimizers have it; its `lr` may be changed between steps.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, eps: float, betas: tuple[float, float]):
        self.parameters, self.eps, self.betas = list(parameters), eps, betas
        self.param_groups: list[dict[str, Any]] = [{"params": self.parameters, "lr": lr}]
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.count = torch.zeros((), device=self.parameters[0].device)

    @torch.no_grad()
    def step(self) -> None:
        """One step down the parameters' `grad`."""
        self.count += 1
        torch._fused_adam_(
            self.parameters, [p.grad for p in self.parameters], self.means, self.squares, [],
            [self.count] * len(self.parameters), lr=self.param_groups[0]["lr"], beta1=self.betas[0],
            beta2=self.betas[1], weight_decay=0.0, eps=self.eps, amsgrad=False, maximize=False,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"means": self.means, "squares": self.squares, "count": self.count, "lr": self.param_groups[0]["lr"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for own, saved in zip((*self.means, *self.squares), (*state["means"], *state["squares"]), strict=True):
            own.copy_(saved)
        self.count.copy_(state["count"])
        self.param_groups[0]["lr"] = float(state["lr"])


def adam(
    parameters: Iterable[nn.Parameter], lr: float, eps: float = 1e-8, betas: tuple[float, float] = (0.9, 0.999)
) -> Adam:
    """Adam (Kingma and Ba 2015) as one fused update of all parameters."""
    return Adam(parameters, lr, eps, betas)


def set_gradients(optimizer: Adam, loss: Tensor) -> Tensor:
    """Write the gradient of the loss by the optimizer's parameters to their `grad`, and by no others; the loss."""
    gradients = torch.autograd.grad(loss, optimizer.parameters)
    for parameter, gradient in zip(optimizer.parameters, gradients, strict=True):
        if gradient.stride() != parameter.stride():  # of a convolution; the fused step reads memory as it lies
            gradient = torch.empty_like(parameter).copy_(gradient)
        parameter.grad = gradient
    return loss.detach()


def step(optimizer: Adam, loss: Tensor) -> None:
    """One step down the gradient of the loss by the optimizer's parameters, which alone move."""
    set_gradients(optimizer, loss)
    optimizer.step()


def compiled(loss: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    """A loss compiled at its first call, for one shape of its inputs; on a GPU replayed as CUDA graphs."""
    mode = "reduce-overhead" if torch.device(device).type == "cuda" else "default"
    return torch.compile(loss, mode=mode, dynamic=False, fullgraph=True)
