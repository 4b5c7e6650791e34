"""Mixup of waveforms against a slow version, gain, and the roll that rolls."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from mmssl.data.audio_augment import real_samples
from mmssl.data.audio_mixing import WaveformMix
from mmssl.data.audio_sampling import MARK
from mmssl.data.transforms import Augmentation, BatchAugment
from mmssl.errors import MmsslError


def sounds(lengths: list[int], size: int = 64, seed: int = 0) -> torch.Tensor:
    """(B, 1, S) of noise with an offset, with exact zeros behind each row's length."""
    x = torch.randn(len(lengths), 1, size, generator=torch.Generator().manual_seed(seed)) + 0.5
    for row, n in zip(x, lengths, strict=True):
        row[:, n:] = 0
    return x


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_mixes_as_a_slow_version_does(lengths, seed):
    x, keys = sounds(lengths, seed=seed), torch.arange(len(lengths)) + 1000 * seed
    label = torch.randint(0, 2, (len(lengths), 5), generator=torch.Generator().manual_seed(seed)).float()
    out = WaveformMix(5, prob=0.7)({"audio": x, "label": label}, keys)
    unit = WaveformMix(2 * len(lengths), prob=0.7)(
        {"audio": x, "label": torch.eye(len(lengths), 2 * len(lengths))}, keys
    )["label"]
    for b, n in enumerate(lengths):
        partner = len(lengths) - 1 - b
        weight = float(unit[b, b]) if partner != b else None
        if weight == 1.0:
            assert torch.equal(out["audio"][b], x[b]) and torch.equal(out["label"][b], label[b])
            continue
        first = x[b, 0, :n].double() - x[b, 0, :n].double().mean()
        other = torch.zeros(64, dtype=torch.float64)
        m = lengths[partner]
        other[:m] = x[partner, 0, :m].double() - x[partner, 0, :m].double().mean()
        if weight is None:  # with itself: any weight gives it centred, or it is left alone
            options = (x[b, 0, :n].double(), first)
            assert min(float((out["audio"][b, 0, :n] - o).abs().max()) for o in options) < 1e-5
            continue
        mixed = weight * first + (1 - weight) * other[:n]
        torch.testing.assert_close(out["audio"][b, 0, :n].double(), mixed - mixed.mean(), atol=1e-5, rtol=0)
        assert not out["audio"][b, 0, n:].any()
        torch.testing.assert_close(out["label"][b], weight * label[b] + (1 - weight) * label[partner])


def test_weights_are_of_the_beta_distribution_and_single_labels_become_shares():
    x, label = sounds([64] * 2000, 64), torch.tensor([0, 1]).repeat_interleave(1000)
    out = WaveformMix(2, prob=0.5, task="single_label")({"audio": x, "label": label}, torch.arange(2000))["label"]
    torch.testing.assert_close(out.sum(1), torch.ones(2000))
    weight = out[:1000, 0]
    mixed = weight[weight < 1]
    assert 430 < len(mixed) < 570 and kstest(mixed.numpy(), beta(10, 10).cdf).pvalue > 1e-3


def test_silence_stays_finite_and_lengths_stay():
    x = torch.zeros(2, 1, 64)
    x[0, 0, 9] = MARK
    out = WaveformMix(2, prob=1.0)({"audio": x, "label": torch.eye(2)}, torch.arange(2))["audio"]
    assert out.isfinite().all() and real_samples(out).flatten().tolist() == [10, 0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prob": 1.5}, r"prob must lie in \[0, 1\], got 1.5"),
        ({"alpha": 0.0}, "alpha > 0 and num_classes >= 2 are needed"),
        ({"task": "regression"}, "sounds are mixed where their labels are classes"),
    ],
)
def test_mix_refuses_what_cannot_be(settings, sentence):
    with pytest.raises(MmsslError, match=sentence):
        WaveformMix(3, **settings)


def test_mix_refuses_other_batches():
    label, keys = torch.eye(2, 3), torch.arange(2)
    with pytest.raises(MmsslError, match="are needed to be mixed, got only label"):
        WaveformMix(3)({"label": label}, keys)
    with pytest.raises(MmsslError, match=r"are needed to be mixed, got shape \(2, 1, 8, 8\)"):
        WaveformMix(3)({"audio": torch.ones(2, 1, 8, 8), "label": label}, keys)
    with pytest.raises(MmsslError, match=r"must be int64 \(batch,\), got torch.float32 \(2, 3\)"):
        WaveformMix(3, task="single_label")({"audio": sounds([4, 4]), "label": label}, keys)
    with pytest.raises(MmsslError, match=r"must be float32 \(batch, 4\)"):
        WaveformMix(4)({"audio": sounds([4, 4]), "label": label}, keys)


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_roll_rolls_within_each_sound(lengths, seed):
    x, keys = sounds(lengths, seed=seed), torch.arange(len(lengths)) + 100 * seed
    out = BatchAugment(Augmentation(roll=True))({"audio": x}, keys)["audio"]
    for before, after, n in zip(x[:, 0].numpy(), out[:, 0].numpy(), lengths, strict=True):
        assert any(np.array_equal(np.roll(before[:n], shift), after[:n]) for shift in range(n)) and not after[n:].any()


def test_roll_is_off_by_default_and_shifts_by_any_share():
    x, keys = sounds([64]).repeat(400, 1, 1), torch.arange(400)
    assert torch.equal(BatchAugment(Augmentation())({"audio": x}, keys)["audio"], x)
    out = BatchAugment(Augmentation(roll=True))({"audio": x}, keys)["audio"]
    place = out[:, 0].argmax(1)
    assert len(place.unique()) > 55


def test_gain_is_drawn_for_each_sound():
    x, keys = sounds([64] * 500), torch.arange(500)
    ratio = (BatchAugment(Augmentation(gain=(0.5, 2.0)))({"audio": x}, keys)["audio"] / x)[:, 0]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert kstest(ratio[:, 0].numpy(), "uniform", args=(0.5, 1.5)).pvalue > 1e-3
    ratio = (BatchAugment(Augmentation(gain_beta=10.0))({"audio": x}, keys)["audio"] / x)[:, 0, 0]
    assert kstest(ratio.numpy() - 0.5, beta(10, 10).cdf).pvalue > 1e-3


def test_gain_refuses_what_cannot_be():
    with pytest.raises(MmsslError, match="are two ways; give one"):
        Augmentation(gain=(0.5, 1.0), gain_beta=10.0)
    with pytest.raises(MmsslError, match="gain must be two increasing numbers"):
        Augmentation(gain=(1.0, 0.5))
    with pytest.raises(MmsslError, match="gain_beta must lie in"):
        Augmentation(gain_beta=-1.0)
