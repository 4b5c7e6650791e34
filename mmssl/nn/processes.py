"""Rows of all processes of a run, with the gradient that they would have in one process."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def place_among(rows: int) -> tuple[int, int]:
    """Where this process' `rows` begin among those of all processes, which have as many each, and how many there are.

    (0, rows) without fellows.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 0, rows
    return dist.get_rank() * rows, dist.get_world_size() * rows


def gather_rows(x: Tensor) -> Tensor:
    """x (B, ...) of every process -> (processes * B, ...) in each, by rank; x itself where there is one process.

    Each process must have as many rows. The gradient of what all processes make of the rows comes back to their owner:
    `torch.distributed.all_gather` alone would lose it, and every row would only learn from its own process.
    """
    if place_among(len(x)) == (0, len(x)):
        return x
    return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        first, _ = place_among(ctx.rows)
        return grad[first : first + ctx.rows]
