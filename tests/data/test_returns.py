"""Returns-to-go against the sums that define them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmssl.data.returns import returns_to_go

rewards = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30)


def column(values) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


@given(rewards, st.floats(0.1, 1))
def test_sums_and_discounted_sums(values, discount):
    for kind, gamma in (("sum", 1.0), ("discounted", discount)):
        slow = [sum(gamma ** (k - t) * values[k] for k in range(t, len(values))) for t in range(len(values))]
        found = returns_to_go(column(values), kind, gamma)
        assert found.dtype == np.float32 and found.shape == (len(values), 1)
        np.testing.assert_allclose(found[:, 0], slow, rtol=1e-4, atol=1e-4)


@given(rewards, st.integers(1, 40))
def test_the_average_is_over_the_steps_that_are_left_until_the_horizon(values, horizon):
    found = returns_to_go(column(values), "average", horizon=horizon)[:, 0]
    slow = [sum(values[t:]) / max(horizon - t, 1) for t in range(len(values))]
    np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-4)


def test_an_even_reward_has_the_same_average_all_along():
    """As an episode of the full length goes on its sum falls, and its average does not."""
    assert returns_to_go(column([2] * 10), "average", horizon=10)[:, 0].tolist() == [2] * 10
    assert returns_to_go(column([2] * 3), "sum")[:, 0].tolist() == [6, 4, 2]
    assert returns_to_go(column([1, 0, 4]), "discounted", 0.5)[:, 0].tolist() == pytest.approx([2, 2, 4])
