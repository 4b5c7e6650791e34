"""Draws from a symmetric beta distribution, through a table of its inverse distribution function."""

import functools

import torch
from scipy.stats import beta
from torch import Tensor

_TABLE = 4097  # points of the inverse distribution function


def beta_draw(u: Tensor, alpha: float) -> Tensor:
    """Beta(alpha, alpha) from uniform draws (B,); 1 everywhere for alpha 0."""
    if alpha == 0:
        return torch.ones_like(u)
    table = _inverse_beta(alpha).to(u.device)
    place = u * (_TABLE - 1)
    low = place.long().clamp(max=_TABLE - 2)
    return torch.lerp(table[low], table[low + 1], place - low)


@functools.lru_cache(maxsize=8)
def _inverse_beta(alpha: float) -> Tensor:
    return torch.tensor(beta.ppf(torch.linspace(0, 1, _TABLE, dtype=torch.float64).numpy(), alpha, alpha)).float()
