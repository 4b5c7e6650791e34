"""Position tables against slow ones, and interpolation against timm's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed

from mmssl.errors import MmsslError
from mmssl.nn.positions import (
    Positioned,
    interpolate_positions,
    recut_positions,
    separable,
    sincos_1d,
    sincos_2d,
    sincos_3d,
    sincos_swapped,
    sinusoid,
)


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


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 33), st.integers(1, 50))
def test_sinusoid_equals_the_slow_table(dim, n):
    table = [
        [(math.cos if j % 2 else math.sin)(place / 10000 ** (2 * (j // 2) / dim)) for j in range(dim)]
        for place in range(n)
    ]
    torch.testing.assert_close(sinusoid(dim, n), torch.tensor(table), atol=1e-6, rtol=0)


def test_separable_is_time_plus_place():
    spatial, temporal = torch.randn(1, 6, 4), torch.randn(1, 3, 4)
    table = separable(spatial, temporal)
    slow = torch.stack([spatial[0, n % 6] + temporal[0, n // 6] for n in range(18)])
    assert torch.equal(table, slow[None])


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


def test_interpolation_over_time_is_linear_at_every_place():
    table = torch.randn(1, 2 * 6, 4)
    longer = interpolate_positions(table, (2, 2, 3), (4, 2, 3)).view(4, 6, 4)
    first, second = table.view(2, 6, 4)
    for frame, share in zip(longer, (0, 0.25, 0.75, 1), strict=True):  # frame i looks at (i + .5) / 2 - .5
        torch.testing.assert_close(frame, (1 - share) * first + share * second)
    larger = interpolate_positions(table, (2, 2, 3), (2, 4, 5)).view(2, 20, 4)
    for t in range(2):
        wanted = interpolate_positions(table.view(2, 6, 4)[t : t + 1], (2, 3), (4, 5))
        torch.testing.assert_close(larger[t : t + 1], wanted)
    times = interpolate_positions(torch.tensor([[[0.0], [1.0]]]), (2,), (4,))
    torch.testing.assert_close(times[0, :, 0], torch.tensor([0, 0.25, 0.75, 1]))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4))
def test_swapped_equals_the_table_of_the_exchanged_sides(quarter, times, pitches):
    table = sincos_swapped(4 * quarter, times * pitches, times)
    torch.testing.assert_close(table, slow_2d(4 * quarter, pitches, times, True), atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_recutting_a_swapped_table_keeps_the_columns_that_it_began_with(times, later, pitches):
    table = sincos_swapped(8, times * pitches, times)[None]
    wanted = sincos_swapped(8, later * pitches, times)[None]
    if pitches > 1 or later <= times:  # of one pitch the table has one row, which could be of any length
        assert torch.equal(recut_positions(table, (times, pitches), (later, pitches), "sincos_swapped"), wanted)
    once = recut_positions(table, (times, pitches), (2 * times, pitches), "sincos_swapped")
    twice = recut_positions(once, (2 * times, pitches), (3 * times, pitches), "sincos_swapped")
    straight = recut_positions(table, (times, pitches), (3 * times, pitches), "sincos_swapped")
    assert pitches == 1 or torch.equal(twice, straight)


@pytest.mark.parametrize("scheme", ["sincos", "sincos_row", "sinusoid", "sincos_swapped", "learned"])
def test_recutting(scheme):
    formulas = {
        "sincos": lambda t: sincos_2d(8, (t, 3)),
        "sincos_row": lambda t: sincos_2d(8, (t, 3), "row_first"),
        "sinusoid": lambda t: sinusoid(8, 3 * t),
        "sincos_swapped": lambda t: sincos_swapped(8, 3 * t, 5),
        "learned": lambda t: torch.randn(3 * t, 8),
    }
    table = formulas[scheme](5)[None]
    assert torch.equal(recut_positions(table, (5, 3), (2, 3), scheme), table[:, :6])
    assert torch.equal(recut_positions(table, (5, 3), (5, 3), scheme), table)
    other = interpolate_positions(table, (5, 3), (4, 6))
    assert torch.equal(recut_positions(table, (5, 3), (4, 6), scheme), other)
    longer = recut_positions(table, (5, 3), (9, 3), scheme)
    if scheme == "learned":
        assert torch.equal(longer, interpolate_positions(table, (5, 3), (9, 3)))
        return
    assert torch.equal(longer[0], formulas[scheme](9))
    trained = table + 0.1 * torch.randn(8)
    wanted = interpolate_positions(trained, (5, 3), (9, 3))
    assert torch.equal(recut_positions(trained, (5, 3), (9, 3), scheme), wanted)


def test_two_tables_are_resized_each_along_its_own_axes():
    module = Positioned()
    module.set_positions((torch.randn(1, 6, 4), torch.randn(1, 2, 4)), trained=True)
    joint = module.positions.detach()
    module.resize_positions((2, 2, 3), (4, 4, 5))
    assert module.pos_embed_spatial.shape == (1, 20, 4) and module.pos_embed_temporal.shape == (1, 4, 4)
    assert module.pos_embed_spatial.requires_grad
    wanted = interpolate_positions(joint, (2, 2, 3), (4, 4, 5))  # both kinds of interpolation are linear in the table
    torch.testing.assert_close(module.positions, wanted, atol=1e-5, rtol=0)
