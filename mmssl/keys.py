"""Counter-based randomness: every draw is a function of (run seed, epoch, repeat, sample index).

The same bits come out on the CPU and on a GPU, in one process or in many, and in whatever order samples are visited, so
that the number of workers or processes never changes what is learned. The mixer is splitmix64's finalizer (Steele, Lea
and Flood 2014); integer multiplication wraps around modulo 2**64 in torch as it does in C.
"""

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """splitmix64's finalizer: a bijection of int64 values whose outputs look independent."""
    x = x + _GOLDEN
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def sample_keys(seed: int, epoch: int, repeat: int | Tensor, index: Tensor) -> Tensor:
    """One key a sample, int64 (B,), from the run's seed, the epoch, the repeat and the sample's place `index` (B,)."""
    key = mix(torch.full_like(index, seed))
    key = mix(key ^ epoch)
    key = mix(key ^ repeat)
    return mix(key ^ index)


def random_bits(keys: Tensor, n: int, stream: int = 0) -> Tensor:
    """int64 (B, n) of independent bits for each key (B,); another `stream` gives other bits."""
    counter = torch.arange(n, device=keys.device, dtype=torch.int64)
    start = mix(keys ^ mix(torch.full_like(keys, stream)))
    return mix(start[:, None] ^ mix(counter)[None, :])  # (B, n)


def uniform(keys: Tensor, n: int, stream: int = 0) -> Tensor:
    """float32 (B, n), uniform on [0, 1) in steps of 2**-24, for each key (B,)."""
    return _logical_shift(random_bits(keys, n, stream), 40).to(torch.float32) * 2.0**-24
