"""LARS, the optimizer of the linear probe (You, Gitman and Ginsburg 2017, arXiv:1708.03888)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is scaled, for each weight, by |weight| / |update|.

    As in MAE's linear probe, tensors with at most one dimension are neither adapted nor decayed.

    Args:
        params: parameters or groups of them; a group may carry its own `lr` and `weight_decay`.
        lr: learning rate.
        momentum: factor on the running update.
        trust: trust coefficient of the adaptation.
        weight_decay: L2 decay added to the gradient before the adaptation.
    """

    def __init__(
        self, params: Iterable, lr: float, momentum: float = 0.9, trust: float = 0.001, weight_decay: float = 0
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update; returns what `closure` returns, if there is one."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict) -> None:
        update = parameter.grad
        if parameter.ndim > 1:
            update = update + group["weight_decay"] * parameter
            weight, size = parameter.norm(), update.norm()
            # A weight or an update of zero length has no ratio: it takes the plain step.
            ratio = torch.where((weight > 0) & (size > 0), group["trust"] * weight / size, torch.ones_like(weight))
            update = update * ratio
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(group["momentum"]).add_(update)
        parameter.sub_(group["lr"] * state["momentum"])
