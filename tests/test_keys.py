"""Counter-based draws: the right distribution, and nothing but the key decides them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mmssl.keys import mix, random_bits, sample_keys, uniform

INT64 = st.integers(-(2**63), 2**63 - 1)


def splitmix_finalizer(x: int) -> int:
    """The published mixer in Python's unbounded integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


@given(INT64)
def test_mix_is_the_published_function(x):
    assert mix(torch.tensor([x])).item() % 2**64 == splitmix_finalizer(x % 2**64)


@given(INT64, st.integers(0, 10**6), st.integers(0, 100), st.integers(0, 2**62))
def test_keys_do_not_depend_on_the_batch(seed, epoch, repeat, index):
    alone = sample_keys(seed, epoch, repeat, torch.tensor([index]))
    together = sample_keys(seed, epoch, repeat, torch.tensor([5, index, 7]))
    assert alone[0] == together[1]
    assert torch.equal(uniform(alone, 9)[0], uniform(together, 9)[1])


def test_uniform_is_uniform_and_its_parts_are_independent():
    keys = sample_keys(0, 0, 0, torch.arange(2000))
    u = uniform(keys, 50).numpy()
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    columns = np.corrcoef(u.T) - np.eye(50)
    rows = np.corrcoef(u[:, 0], u[:, 1])[0, 1]
    assert abs(columns).max() < 0.1 and abs(rows) < 0.1
    neighbours = np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]
    assert abs(neighbours) < 0.1


def test_every_argument_matters():
    index = torch.arange(100)
    draws = [sample_keys(*args, index) for args in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)]]
    joined = torch.cat(draws)
    assert joined.unique().numel() == joined.numel()
    assert not torch.equal(random_bits(index, 4, stream=0), random_bits(index, 4, stream=1))


def test_a_tensor_of_repeats_is_the_same_as_one_at_a_time():
    index = torch.tensor([3, 3, 4])
    repeat = torch.tensor([0, 1, 1])
    assert torch.equal(
        sample_keys(2, 5, repeat, index),
        torch.cat([sample_keys(2, 5, int(r), i[None]) for r, i in zip(repeat, index, strict=True)]),
    )
