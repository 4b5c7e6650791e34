"""Filter bank features against torchaudio's, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from torchaudio.compliance import kaldi

from mmssl.errors import MmsslError
from mmssl.tokenizers.fbank import FLOOR, SILENCE, LogMel, LogMelConfig, kaldi_fbank, mel_bank, mel_edges
from mmssl.tokenizers.resample import Resample


def reference(waveforms, rate=16000, mel_bins=128, **settings):
    given = {
        "htk_compat": True,
        "sample_frequency": rate,
        "use_energy": False,
        "window_type": "hanning",
        "num_mel_bins": mel_bins,
        "dither": 0.0,
        "frame_shift": 10,
        **settings,
    }
    return torch.stack([kaldi.fbank(row[None], **given) for row in waveforms])


def clips(name, seconds=1.0, n=2):
    torch.manual_seed(0)
    time = torch.arange(int(16000 * seconds)) / 16000
    waves = {
        "noise": lambda: 0.1 * torch.randn(n, len(time)),
        "quiet": lambda: 1e-4 * torch.randn(n, len(time)),
        "silent": lambda: torch.zeros(n, len(time)),
        "offset": lambda: 0.5 + 0.01 * torch.randn(n, len(time)),
        "tones": lambda: torch.stack([0.5 * torch.sin(2 * math.pi * f * time) for f in (440.0, 3100.0)]),
        "glides": lambda: torch.stack([0.8 * torch.sin(2 * math.pi * (f + 900 * time) * time) for f in (90, 800)]),
    }
    return waves[name]()


@pytest.mark.parametrize("name", ["noise", "quiet", "silent", "offset", "tones", "glides"])
def test_kaldi_fbank_equals_torchaudio(name):
    x = clips(name)
    ours = kaldi_fbank(x)
    assert ours.shape == (2, 98, 128) and ours.dtype == torch.float32
    torch.testing.assert_close(ours, reference(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("samples", "n"), [(400, 1), (559, 3), (560, 1), (16000 * 12, 2), (16000 * 3 + 77, 7)]
)  # one frame, two, more than a piece of the CPU's, pieces of several rows
def test_any_length_and_number_of_rows(samples, n):
    x = torch.randn(n, samples)
    ours = kaldi_fbank(x)
    assert ours.shape[1] == 1 + (samples - 400) // 160 == LogMelConfig().frames(samples)
    torch.testing.assert_close(ours, reference(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"mel_bins": 40}, {"mel_bins": 40}),
        ({"sample_rate": 8000, "mel_bins": 64}, {"rate": 8000, "mel_bins": 64}),
        ({"sample_rate": 44100}, {"rate": 44100}),
        ({"window_ms": 32.0, "hop_ms": 12.5}, {"frame_length": 32.0, "frame_shift": 12.5}),
        ({"low_freq": 60.0, "high_freq": 7600.0, "mel_bins": 80}, {"low_freq": 60, "high_freq": 7600, "mel_bins": 80}),
        ({"high_freq": -400.0}, {"high_freq": -400}),
    ],
)
def test_settings_mean_what_they_mean_in_torchaudio(settings, theirs):
    x = 0.1 * torch.randn(2, 9000)
    torch.testing.assert_close(kaldi_fbank(x, **settings), reference(x, **theirs), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("rate", "mel_bins"), [(16000, 64), (32000, 128)])
def test_plain_mel_equals_torchaudio(rate, mel_bins):
    x, config = 0.1 * torch.randn(2, 9000), LogMelConfig("mel", rate, mel_bins)
    spare = config.fft - config.window
    power = torchaudio.transforms.MelSpectrogram(
        rate, config.fft, config.window, config.hop, f_min=20.0, n_mels=mel_bins, center=False
    )(F.pad(x, (spare // 2, spare - spare // 2)))  # it looks for its window in the middle of the transform
    torch.testing.assert_close(LogMel(config)(x), power.mT.clamp(min=FLOOR).log(), atol=1e-4, rtol=0)
    assert LogMel(config)(torch.zeros(1, 2000)).unique().tolist() == pytest.approx([SILENCE])


def test_filters_are_where_their_edges_say():
    config = LogMelConfig(mel_bins=40)
    edges, hertz = mel_edges(config), torch.arange(257) * 16000 / 512
    assert edges[0].item() == pytest.approx(20) and edges[-1].item() == pytest.approx(8000)
    for j, weights in enumerate(mel_bank(config).T):
        inside = (hertz > edges[j]) & (hertz < edges[j + 2])
        assert torch.equal(weights > 0, inside)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_always_in_float32(dtype):
    x, plain = clips("glides"), LogMel(LogMelConfig())
    cast = LogMel(LogMelConfig()).to(dtype)
    assert cast.window.dtype == torch.float32 and not cast.state_dict()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast(x), plain(x))
    torch.testing.assert_close(cast(x.double()), plain(x), atol=1e-4, rtol=0)


def test_products_with_fewer_digits_are_not_taken():
    module, power = LogMel(LogMelConfig()), torch.rand(1, 98, 514)
    exact = (power.double() @ module.bank.double()).float()
    assert not torch.equal(module._filter(power), exact)
    torch.set_float32_matmul_precision("high")
    try:
        assert torch.equal(module._filter(power), exact)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_gradient_reaches_the_waveform():
    x = clips("noise", 0.1, 1).double().requires_grad_()
    kaldi_fbank(x)[0, 3].sum().backward()
    assert x.grad[0, 480:880].abs().sum() > 0 and x.grad[0, :480].abs().max() == 0 == x.grad[0, 881:].abs().max()


@pytest.mark.parametrize(("old", "new"), [(44100, 16000), (8000, 16000), (48000, 16000), (22050, 32000)])
def test_resampling_equals_torchaudio(old, new):
    x = torch.randn(2, 3001)
    wanted = torchaudio.functional.resample(x, old, new)
    module = Resample(old, new).double()
    assert wanted.shape[1] == module.samples(3001) and not module.state_dict()
    torch.testing.assert_close(module(x), wanted, atol=1e-4, rtol=0)
    assert Resample(old, old)(x) is x


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sample_rate": 0}, "sample_rate must be 1 or more.*got 0"),
        ({"window_ms": 0.05}, "0 and 160 samples at 16000"),
        ({"hop_ms": 0.0}, "400 and 0 samples"),
        ({"high_freq": 9000.0}, "from 20 to 9000 Hz do not lie between 0 and half the sample rate, 8000 Hz"),
        ({"low_freq": 8000.0}, "from 8000 to 8000 Hz"),
        ({"mel_bins": 0}, "1 or more, got 0"),
        ({"mel_bins": 300}, "300 is more than the transform carries: its 257 frequencies.*leave 41 filters empty"),
        ({"mel_bins": 256, "window_ms": 10.0}, "take fewer mel_bins, or a window_ms above 10"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(MmsslError, match=words):
        LogMelConfig(**settings)


@pytest.mark.parametrize("shape", [(2, 399), (400,), (1, 1, 400)])
def test_too_short_or_of_other_dimensions(shape):
    with pytest.raises(MmsslError, match="400 samples or more"):
        kaldi_fbank(torch.zeros(shape))
