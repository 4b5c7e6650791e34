"""Picking tokens out of a sequence by their place, the one way it is done everywhere."""

import torch
from torch import Tensor


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, n) of `x` (B, N, D), or of a table (1, N, D) shared by the batch -> (B, n, D)."""
    if x.shape[0] == 1 and index.shape[0] != 1:
        return torch.nn.functional.embedding(index, x[0])
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
