"""SpecAugment against torchaudio's masking of one spectrogram at a time."""

import pytest
import torch
from torchaudio.functional import mask_along_axis

from mmssl.data import spec_augment as module
from mmssl.data.spec_augment import SpecAugment
from mmssl.errors import MmsslError


def spectrograms(count: int, frames: int = 50, bins: int = 30) -> torch.Tensor:
    return torch.randn(count, 1, frames, bins, generator=torch.Generator().manual_seed(0)) - 5


def test_as_torchaudio_with_the_same_draws(monkeypatch):
    x, keys = spectrograms(40), torch.arange(40)
    out = SpecAugment(freq=12, time=20)(x, keys)
    draws = module.uniform(keys, 4, module.SPEC_STREAM)
    for row, masked, (f_width, f_place, t_width, t_place) in zip(x, out, draws, strict=True):
        expected = row.mT  # (1, M, T), as the authors turn it
        for axis, widest, pair in ((1, 12, (f_width, f_place)), (2, 20, (t_width, t_place))):
            given = iter(pair)
            monkeypatch.setattr(torch, "rand", lambda *_, given=given, **__: next(given))
            expected = mask_along_axis(expected, widest, 0.0, axis)
        assert torch.equal(masked, expected.mT)


def test_each_sample_has_its_own_band_and_input_is_kept():
    x = spectrograms(1).repeat(100, 1, 1, 1)
    before = x.clone()
    out = SpecAugment(freq=12, time=20)(x, torch.arange(100))
    assert torch.equal(x, before)
    hidden = (out == 0)[:, 0]
    assert len({tuple(row.flatten().tolist()) for row in hidden}) > 95
    assert hidden.all(1).sum(1).max() <= 11 and hidden.all(2).sum(1).max() <= 19
    assert torch.equal(out, SpecAugment(freq=12, time=20)(x, torch.arange(100)))


def test_one_of_the_two_and_another_value():
    x = spectrograms(20)
    only_time = SpecAugment(freq=0, time=20, value=-1.0)(x, torch.arange(20))
    hidden = (only_time == -1.0)[:, 0]
    assert torch.equal(hidden.any(2), hidden.all(2)) and hidden.any()
    assert torch.equal(SpecAugment(0, 0)(x, torch.arange(20)), x)


def test_a_mask_wider_than_the_spectrogram_stays_inside():
    out = SpecAugment(freq=48, time=192)(spectrograms(50), torch.arange(50))
    assert out.isfinite().all() and out.shape == (50, 1, 50, 30)


def test_refuses_what_cannot_be():
    with pytest.raises(MmsslError, match="freq and time of SpecAugment must be 0 or more, got -1 and 3"):
        SpecAugment(-1, 3)
    with pytest.raises(MmsslError, match=r"takes spectrograms \(batch, 1, frames, mel bins\), got \(2, 1, 99\)"):
        SpecAugment()(torch.zeros(2, 1, 99), torch.arange(2))
