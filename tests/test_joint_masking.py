"""Samplers that see several modalities: counts, laws of their draws, rows that lack something."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mmssl.errors import MmsslError
from mmssl.joint_masking import DirichletMask, IndependentMask, ViewMask, gamma
from mmssl.keys import sample_keys

THREE = {"image": (14, 14), "depth": (14, 14), "segmentation": (14, 14)}


def keys(n, seed=0):
    return sample_keys(seed, 0, 0, torch.arange(n))


def visible(masks):
    return torch.stack([(~m).sum(1) for m in masks.values()], 1)


def test_independent_ratios_count_padding_as_tokens():
    sampler = IndependentMask({"image": 0.75, "text": 0.5})
    grids = {"image": (4, 4), "text": (9,)}
    real = {"text": torch.arange(9)[None] < torch.tensor([3, 9, 0, 5])[:, None]}
    masks = sampler(grids, keys(4), real)
    assert visible(masks).tolist() == [[4, 4]] * 4 and sampler.visible(grids) == {"image": 4, "text": 4}
    assert all(torch.equal(masks[name], sampler(grids, keys(4))[name]) for name in grids)


def test_independent_ratios_of_the_real_tokens_of_each_row():
    sampler = IndependentMask(0.5, padding="skip")
    lengths = torch.tensor([3, 9, 0, 5])
    real = torch.arange(9)[None] < lengths[:, None]
    mask = sampler({"text": (9,)}, keys(4), {"text": real})["text"]
    assert ((~mask) & real).sum(1).tolist() == [1, 4, 0, 2] == [int(n * 0.5) for n in lengths] and mask[~real].all()


def test_one_permutation_for_the_batch_or_one_for_each_sample():
    one, each = (
        IndependentMask(0.5, scope=scope)({"image": (8, 8)}, keys(6))["image"] for scope in ("batch", "sample")
    )
    assert (one == one[0]).all() and not (each == each[0]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.floats(0.2, 4), st.booleans(), st.integers(0, 2**31))
def test_the_budget_is_met_in_every_row(budget, alpha, subsets, seed):
    grids = {"a": (4, 4), "b": (5,), "c": (2, 3, 4)}
    sampler = DirichletMask(budget, alpha, subsets)
    masks = sampler(grids, keys(16, seed))
    counts = visible(masks)
    assert (counts.sum(1) == budget).all() and {n: m.shape[1] for n, m in masks.items()} == {"a": 16, "b": 5, "c": 24}
    assert all((counts[:, k] <= n).all() for k, n in enumerate(sampler.visible(grids).values()))


def test_the_split_is_that_of_a_dirichlet_draw():
    """Against numpy: rounded shares, then a cut to the budget that is uniform over what the rounding left."""
    counts = visible(DirichletMask(98)(THREE, keys(4000))).numpy()
    wanted = np.round(np.random.default_rng(0).dirichlet([1, 1, 1], 4000) * 98)
    for k in range(3):
        assert stats.ks_2samp(counts[:, k], wanted[:, k]).statistic < 0.05
    assert abs(np.corrcoef(counts[:, 0], counts[:, 1])[0, 1] + 0.5) < 0.05


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_gamma_draws_follow_their_law(alpha):
    draws = gamma(keys(3000), 2, alpha)
    assert stats.kstest(draws.flatten().numpy(), stats.gamma(alpha).cdf).pvalue > 1e-3
    assert torch.equal(draws[:5], gamma(keys(5), 2, alpha))


def test_tokens_within_a_modality_are_chosen_uniformly():
    mask = DirichletMask(98)(THREE, keys(3000))["depth"]
    share = (~mask).float().mean(0)
    assert (share - 1 / 6).abs().max() < 5 * math.sqrt(1 / 6 * 5 / 6 / 3000) + 0.02


def test_a_row_without_a_modality_spends_its_budget_on_the_others():
    there = torch.tensor([True, False, True, False])[:, None]
    valid = {"depth": there.expand(-1, 196)}
    counts = visible(DirichletMask(98)(THREE, keys(4), valid))
    assert (counts.sum(1) == 98).all() and (counts[1::2, 1] == 0).all() and (counts[::2, 1] > 0).all()


def test_uniform_subsets_are_all_drawn_equally_often():
    counts = visible(DirichletMask(98, uniform_subsets=True)(THREE, keys(4000)))
    number = ((counts > 0) * torch.tensor([1, 2, 4])).sum(1)
    often = torch.bincount(number, minlength=8)[1:].double() / 4000
    assert (often[:4].min() > 0.1) and (often - 1 / 7).abs().max() < 0.04  # a small share may round to nothing


def test_a_budget_above_what_there_is_shows_half():
    assert DirichletMask(98).budget({"image": (14, 14)}) == 98
    assert DirichletMask(98).budget({"image": (7, 7)}) == 24


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_whole_views_are_hidden_frame_by_frame(views):
    grids = {f"video/{v}": (4, 6, 6) for v in range(views)}
    sampler = ViewMask(0.9, hidden_views=1)
    masks = sampler(grids, keys(300))
    shown = torch.stack([(~m).unflatten(1, (4, 36)).sum(2) for m in masks.values()], -1)  # (B, T, V)
    total = int(round(0.1 * (1 - min(1, views - 1) / views) * views * 144, 6))
    assert (shown.sum((1, 2)) == total).all() and sampler.budget(grids) == total  # 14 of two views, as published
    if views > 1:
        assert ((shown == 0).sum(-1) >= 1).all()
        hidden = sampler.choose(keys(300), 4, views)
        assert (shown[hidden] == 0).all() and (hidden.sum(-1) == 1).all()
        assert (hidden.float().mean((0, 1)) - 1 / views).abs().max() < 0.06  # each view equally often
        assert not (hidden[:, 0] == hidden[:, 1]).all()


def test_views_drawn_by_coins_prefer_the_first_ones():
    often = ViewMask(0.9, 1, "coins").choose(keys(4000), 2, 3).float().mean((0, 1))
    torch.testing.assert_close(often, torch.tensor([1 / 2, 1 / 4, 1 / 4]), atol=0.02, rtol=0)
    assert (ViewMask(0.9, 2, "coins").choose(keys(500), 3, 4).sum(-1) == 2).all()
    of_four = ViewMask(0.9, 1, "coins").choose(keys(4000), 2, 4).float().mean((0, 1))
    torch.testing.assert_close(of_four, torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8]), atol=0.02, rtol=0)


def test_what_cannot_be():
    for make, words in (
        (lambda: IndependentMask(1.0), r"\[0, 1\), got 1.0"),
        (lambda: IndependentMask({"a": 0.5})({"b": (3,)}, keys(1)), "no mask ratio for 'b'"),
        (lambda: DirichletMask(0), "at least 1, got 0"),
        (lambda: DirichletMask(4, alpha=0), "above 0, got 0"),
        (lambda: ViewMask(1.0), "strictly between 0 and 1"),
        (lambda: ViewMask(0.5, draw="dice"), "draw 'dice'"),
        (lambda: ViewMask(0.5)({"a": (2, 2), "b": (3, 2)}, keys(1)), "all have one lattice"),
    ):
        with pytest.raises(MmsslError, match=words):
            make()
