"""Position tables against slow ones, and interpolation against timm's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed

from mmssl.errors import MmsslError
from mmssl.nn.positions import interpolate_positions, sincos_1d, sincos_2d, sincos_3d


def slow_2d(dim, rows, columns, column_first):
    quarter, table = dim // 4, []
    for r in range(rows):
        for c in range(columns):
            first, second = (c, r) if column_first else (r, c)
            row = []
            for place in (first, second):
                angles = [place / 10000 ** (k / quarter) for k in range(quarter)]
                row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            table.append(row)
    return torch.tensor(table)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_2d_equals_the_slow_table(quarter, rows, columns, column_first):
    order = "column_first" if column_first else "row_first"
    table = sincos_2d(4 * quarter, (rows, columns), order)
    torch.testing.assert_close(table, slow_2d(4 * quarter, rows, columns, column_first), atol=1e-6, rtol=0)


def test_orders_are_transposes_of_each_other():
    column = sincos_2d(16, (3, 5)).view(3, 5, 16)
    row = sincos_2d(16, (5, 3), "row_first").view(5, 3, 16)
    assert torch.equal(column, row.transpose(0, 1))
    assert not torch.equal(sincos_2d(16, (3, 3)), sincos_2d(16, (3, 3), "row_first"))


def test_1d_at_zero_and_at_given_places():
    table = sincos_1d(8, 5)
    assert torch.equal(table[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    assert torch.equal(sincos_1d(8, torch.tensor([3.0, 1.0])), table[[3, 1]])


def test_3d_has_time_slowest():
    table = sincos_3d(48, (2, 3, 4)).view(2, 12, 48)
    assert torch.equal(table[0, :, 16:], table[1, :, 16:])
    assert torch.equal(table[0, :, 16:], sincos_2d(32, (3, 4)))
    assert torch.equal(table[1, 0, :16], sincos_1d(16, 2)[1])


@pytest.mark.parametrize("call", [lambda: sincos_1d(7, 3), lambda: sincos_2d(10, (2, 2))])
def test_widths_that_do_not_divide(call):
    with pytest.raises(MmsslError, match="choose another dim"):
        call()


def test_interpolation_equals_timm_without_antialias():
    table = torch.randn(1, 49, 8)
    reference = resample_abs_pos_embed(table, [10, 10], num_prefix_tokens=0, antialias=False)
    torch.testing.assert_close(interpolate_positions(table, (7, 7), (10, 10)), reference, atol=1e-6, rtol=0)


def test_interpolation_of_other_shapes():
    table = sincos_2d(16, (4, 6))[None]
    assert interpolate_positions(table, (4, 6), (4, 6)) is table
    assert interpolate_positions(table, (4, 6), (8, 3)).shape == (1, 24, 16)
    constant = interpolate_positions(torch.ones(1, 6, 4), (2, 3), (5, 4))
    torch.testing.assert_close(constant, torch.ones(1, 20, 4))
    with pytest.raises(MmsslError, match="24 tokens"):
        interpolate_positions(table, (5, 5), (8, 8))
