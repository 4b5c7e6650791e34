"""Masks: exact counts, no favourite, a function of the keys alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.masking import (
    MASKS,
    BlockMask,
    FrequencyMask,
    GridMask,
    RandomMask,
    TimeFrequencyMask,
    TimeMask,
    TubeMask,
    ragged_index,
    visible_index,
)

IMAGE_MASKS = ["block", "grid", "random"]


def keys(n, seed=0):
    return sample_keys(seed, 0, 0, torch.arange(n))


@pytest.mark.parametrize(
    ("n", "ratio", "visible"),
    [(196, 0.75, 49), (256, 0.75, 64), (1568, 0.9, 156), (512, 0.8, 102), (196, 0.95, 9), (196, 0.985, 2)],
)
def test_published_counts(n, ratio, visible):
    sampler = RandomMask(ratio)
    assert sampler.visible({"image": (n,)}) == {"image": visible}
    assert (~sampler({"image": (n,)}, keys(5))["image"]).sum(1).tolist() == [visible] * 5


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(IMAGE_MASKS),
    st.integers(1, 17),
    st.integers(1, 17),
    st.floats(0.01, 0.99),
    st.integers(-(2**40), 2**40),
)
def test_every_row_has_the_exact_count_and_the_same_keys_the_same_mask(name, rows, columns, ratio, seed):
    sampler, grids = MASKS[name](ratio), {"a": (rows, columns), "b": (columns, rows)}
    masks = sampler(grids, keys(4, seed))
    for modality, mask in masks.items():
        assert mask.dtype == torch.bool and mask.shape == (4, rows * columns)
        assert (~mask).sum(1).tolist() == [int(rows * columns * (1 - ratio))] * 4
        assert torch.equal(mask, sampler(grids, keys(4, seed))[modality])
    order = torch.tensor([2, 0, 3, 1])  # a sample's mask does not depend on its place in the batch
    assert torch.equal(sampler(grids, keys(4, seed)[order])["a"], masks["a"][order])


@pytest.mark.parametrize("name", IMAGE_MASKS)
def test_every_token_is_masked_about_as_often(name):
    mask = MASKS[name](0.75)({"image": (8, 8)}, keys(4000))["image"]
    rate = mask.float().mean(0)
    low, high = (0.72, 0.78) if name != "block" else (0.4, 0.95)  # rectangles reach the middle more often
    assert rate.min() > low and rate.max() < high
    assert (mask[0] != mask[1]).any()


@settings(max_examples=60, deadline=None)
@given(*(st.integers(1, 9) for _ in range(3)), st.floats(0.01, 0.99), st.integers(-(2**40), 2**40))
def test_tubes_are_the_same_places_at_every_time(times, rows, columns, ratio, seed):
    sampler, grids = TubeMask(ratio), {"a": (times, rows, columns), "b": (times, columns, rows)}
    masks = sampler(grids, keys(4, seed))
    masked = int(ratio * rows * columns)
    for modality, mask in masks.items():
        tubes = mask.view(4, times, rows * columns)
        assert mask.dtype == torch.bool and (tubes == tubes[:, :1]).all()
        assert tubes[:, 0].sum(1).tolist() == [masked] * 4
        assert sampler.visible(grids)[modality] == (rows * columns - masked) * times
        assert torch.equal(mask, sampler(grids, keys(4, seed))[modality])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(sampler(grids, keys(4, seed)[order])["a"], masks["a"][order])


def test_tubes_of_videomae():
    sampler, grids = TubeMask(0.9), {"video": (8, 14, 14)}
    assert sampler.visible(grids) == {"video": 160} and TubeMask(0.75).visible(grids) == {"video": 392}
    mask = sampler(grids, keys(3000))["video"].view(-1, 8, 196)
    rate = mask[:, 0].float().mean(0)
    assert rate.min() > 0.87 and rate.max() < 0.93
    assert (mask[0] != mask[1]).any()
    with pytest.raises(MmsslError, match=r"times, rows and columns, got \(14, 14\)"):
        sampler({"image": (14, 14)}, keys(2))


def test_equal_draws_do_not_cut_a_tube(monkeypatch):
    monkeypatch.setattr("mmssl.masking.uniform", lambda keys, n, stream: torch.zeros(len(keys), n))
    mask = TubeMask(0.5)({"video": (3, 2, 2)}, keys(2))["video"].view(2, 3, 4)
    assert (mask == mask[:, :1]).all() and mask[0, 0].sum() == 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 9), st.floats(0, 0.99), st.floats(0.01, 0.99), st.integers(-(2**40), 2**40))
def test_times_and_frequencies_that_stay_are_rows_and_columns(times, pitches, time, frequency, seed):
    sampler, grids = TimeFrequencyMask(time, frequency), {"a": (times, pitches), "b": (pitches, times)}
    masks = sampler(grids, keys(4, seed))
    for modality, (rows, columns) in grids.items():
        mask = masks[modality]
        kept = (int(rows * (1 - time)), int(columns * (1 - frequency)))
        assert mask.dtype == torch.bool and mask.shape == (4, rows * columns)
        assert sampler.visible(grids)[modality] == kept[0] * kept[1]
        for one in ~mask.view(4, rows, columns):
            assert torch.equal(one, one.any(1)[:, None] & one.any(0)[None])  # an intersection
            assert one.sum() == kept[0] * kept[1]
        assert torch.equal(mask, sampler(grids, keys(4, seed))[modality])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(sampler(grids, keys(4, seed)[order])["a"], masks["a"][order])


def test_times_and_frequencies_of_audiomae():
    grids = {"audio": (64, 8)}
    assert TimeFrequencyMask(0.2, 0.2).visible(grids) == {"audio": 306}  # fine-tuning
    sampler = TimeFrequencyMask(0.7, 0.3)
    assert sampler.visible(grids) == {"audio": 19 * 5}
    kept = ~sampler(grids, keys(3000))["audio"].view(-1, 64, 8)
    rows, columns = kept.any(2).float(), kept.any(1).float()
    assert (rows.mean(0) - 19 / 64).abs().max() < 0.04 and (columns.mean(0) - 5 / 8).abs().max() < 0.04
    assert torch.corrcoef(torch.cat([rows, columns], 1).T)[:64, 64:].abs().max() < 0.1  # two draws of their own
    assert TimeMask(0.7).visible(grids) == {"audio": 19 * 8} and FrequencyMask(0.3).visible(grids) == {"audio": 64 * 5}
    assert TimeFrequencyMask(0.5).visible(grids) == {"audio": 32 * 4}
    with pytest.raises(MmsslError, match=r"times and frequencies, got \(8, 14, 14\)"):
        sampler({"video": (8, 14, 14)}, keys(2))
    for time, frequency in ((0, 0), (0.2, 1.0), (-0.1, 0.5), (float("nan"), 0.5)):
        with pytest.raises(MmsslError, match="not both 0, got time"):
            TimeFrequencyMask(time, frequency)


def test_modalities_get_masks_of_their_own():
    masks = RandomMask(0.5)({"a": (10, 10), "b": (10, 10)}, keys(3))
    assert not torch.equal(masks["a"], masks["b"])


def test_neighbouring_tokens_are_independent():
    mask = RandomMask(0.5)({"image": (64,)}, keys(8000))["image"].float()
    assert torch.corrcoef(mask.T).fill_diagonal_(0).abs().max() < 0.08


def test_blocks_are_blocks():
    """Masked tokens have far more masked neighbours than by chance."""

    def neighbours(sampler):
        m = sampler({"image": (14, 14)}, keys(200))["image"].view(-1, 14, 14).float()
        return ((m[:, :, 1:] == m[:, :, :-1]).float().mean()).item()

    assert neighbours(BlockMask(0.5)) > 0.8 > 0.6 > neighbours(RandomMask(0.5))


def test_grid_keeps_one_of_four():
    mask = GridMask(0.75)({"image": (6, 8)}, keys(50))["image"].view(-1, 6, 8)
    for one in ~mask:
        rows, columns = one.any(1).nonzero().flatten(), one.any(0).nonzero().flatten()
        assert torch.equal(rows, rows[0] % 2 + 2 * torch.arange(3))
        assert torch.equal(columns, columns[0] % 2 + 2 * torch.arange(4))
    assert len({tuple(m.flatten().tolist()) for m in mask}) == 4


def test_padding_is_masked_first():
    valid = torch.arange(20)[None] < torch.tensor([[20], [12], [5]])
    mask = RandomMask(0.5)({"text": (20,)}, keys(3), valid={"text": valid})["text"]
    assert not (~mask & ~valid)[:2].any()
    assert (~mask & valid)[2].sum() == 5


def test_visible_index_is_in_raster_order_and_padded_with_masked_places():
    mask = torch.tensor([[True, False, True, False], [False, True, True, True]])
    assert visible_index(mask, 2).tolist() == [[1, 3], [0, 1]]
    index, valid = ragged_index(mask)
    assert index.tolist() == [[1, 3], [0, 1]] and valid.tolist() == [[True, True], [True, False]]
    assert ragged_index(mask[:1])[1] is None
    assert ragged_index(torch.ones(2, 4, dtype=torch.bool))[0].shape == (2, 0)


@pytest.mark.parametrize("ratio", [0, 1, -0.2, 1.5, float("nan")])
@pytest.mark.parametrize("name", sorted(MASKS))
def test_ratio_outside_of_the_interval(name, ratio):
    with pytest.raises(MmsslError, match="between 0 and 1"):
        MASKS[name](ratio)


def test_wrong_lattice_keys_and_area():
    with pytest.raises(MmsslError, match="rows and columns"):
        GridMask(0.5)({"text": (8,)}, keys(2))
    with pytest.raises(MmsslError, match="int64"):
        RandomMask(0.5)({"image": (8,)}, torch.rand(2))
    with pytest.raises(MmsslError, match="area"):
        BlockMask(0.5, area=(0.5, 0.1))
