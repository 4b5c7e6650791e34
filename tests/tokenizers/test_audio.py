"""Waveforms to patches and back, padding, rates, overlap, positions, other lengths, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.compliance import kaldi

from mmssl.config import from_dict, to_dict
from mmssl.errors import MmsslError
from mmssl.nn.positions import interpolate_positions, sincos_2d, sinusoid
from mmssl.registry import TOKENIZERS
from mmssl.tokenizers.audio import AudioTokenizer, AudioTokenizerConfig
from mmssl.tokenizers.base import TokenizerConfig
from mmssl.tokenizers.fbank import SILENCE, kaldi_fbank
from mmssl.tokenizers.image import ImageTokenizer, ImageTokenizerConfig


def tokenizer(frames=96, mel_bins=32, patch_size=16, dim=16, positions="sincos_swapped", **options):
    torch.manual_seed(0)
    config = AudioTokenizerConfig("audio", frames, mel_bins, patch_size, **options)
    return AudioTokenizer(config, "audio", dim, positions)


def waves(n=2, samples=16000):
    return 0.1 * torch.randn(n, 1, samples)


def authors_input(wave, frames=1024, mean=-4.2677393, std=4.5689974):
    """What Audio-MAE's loader makes of one clip (1, S)."""
    wave = wave - wave.mean()
    fbank = kaldi.fbank(
        wave, htk_compat=True, use_energy=False, window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10
    )
    fbank = F.pad(fbank, (0, 0, 0, max(0, frames - len(fbank))))[:frames]
    return ((fbank - mean) / (2 * std))[None]


@pytest.mark.parametrize("samples", [16000, 170000])
def test_prepared_as_the_authors_prepare(samples):
    tok, x = tokenizer(1024, 128), waves(2, samples)
    assert tok.grid == (64, 8) and tok.patch_dim == 256
    wanted = torch.stack([authors_input(row) for row in x])
    torch.testing.assert_close(tok.prepare(x), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(tok.restore(tok.prepare(x)), tok.spectrogram(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sounds", [16000, 15999, 4000, 560, 559, 400, 130, 1])
def test_zeros_at_the_end_are_padding(sounds):
    tok, x = tokenizer(), waves(3)
    x[1, :, sounds:] = 0
    frames = max(1, 1 + (sounds - 400) // 160)
    spectrogram = tok.spectrogram(x)
    wanted = kaldi_fbank(x[:, 0], mel_bins=32)[:, :96]
    torch.testing.assert_close(spectrogram[::2, 0], wanted[::2], atol=1e-6, rtol=0)
    torch.testing.assert_close(spectrogram[1, 0, :frames], wanted[1, :frames], atol=1e-6, rtol=0)
    assert (spectrogram[1, 0, frames:] == 0).all()
    silent = tokenizer(pad="silence").spectrogram(x)
    assert torch.equal(silent[1, 0, :frames], spectrogram[1, 0, :frames])
    assert (silent[1, 0, frames:] == SILENCE).all()


def test_zeros_within_are_sound_and_silence_is_silent():
    tok, x = tokenizer(), waves(2)
    x[0, :, :15000] = 0
    x[1] = 0
    spectrogram = tok.spectrogram(x)[:, 0]
    torch.testing.assert_close(spectrogram, kaldi_fbank(x[:, 0], mel_bins=32)[:, :96], atol=1e-6, rtol=0)
    assert spectrogram[1].unique().tolist() == pytest.approx([SILENCE])


@pytest.mark.parametrize("samples", [1, 127, 128, 399, 400, 401, 15680, 200000])
def test_any_number_of_samples(samples):
    tok, x = tokenizer(), waves(2, samples)
    spectrogram = tok.spectrogram(x)
    assert spectrogram.shape == (2, 1, 96, 32) and spectrogram.isfinite().all()
    assert tok(x).shape == (2, 12, 16)
    frames = min(96, max(1, 1 + (samples - 400) // 160))
    padded = F.pad(x[:, 0], (0, max(0, 400 - samples)))
    wanted = kaldi_fbank(padded, mel_bins=32)[:, :frames]
    torch.testing.assert_close(spectrogram[:, 0, :frames], wanted, atol=1e-6, rtol=0)
    assert (spectrogram[:, 0, frames:] == 0).all()


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_other_rates_are_resampled_on_the_way(rate):
    tok, x = tokenizer(input_rate=rate), waves(2, int(rate * 0.8))
    x[1, :, rate // 2 :] = 0
    spectrogram = tok.spectrogram(x)[:, 0]
    wanted = kaldi_fbank(torchaudio.functional.resample(x[:, 0], rate, 16000), mel_bins=32)
    torch.testing.assert_close(spectrogram[0, :78], wanted[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(spectrogram[1, :48], wanted[1, :48], atol=1e-3, rtol=0)
    assert (spectrogram[0, 78:] == 0).all() and (spectrogram[1, 48:] == 0).all()


def test_spectrograms_are_taken_as_they_are():
    tok, x = tokenizer(), waves()
    spectrogram = tok.spectrogram(x)
    assert torch.equal(tok.prepare(spectrogram), tok.prepare(x)) and torch.equal(tok(spectrogram), tok(x))
    assert torch.equal(tok.spectrogram(spectrogram), spectrogram)
    plain = tokenizer(kind="mel").spectrogram(x)
    assert plain.shape == spectrogram.shape and not torch.allclose(plain, spectrogram, atol=0.1)


@settings(max_examples=30, deadline=None)
@given(*(st.integers(1, 4) for _ in range(4)))
def test_unpatchify_is_the_exact_inverse(times, pitches, p, q):
    tok = tokenizer(times * p, pitches * q, (p, q))
    x = torch.randn(2, 1, times * p, pitches * q)
    patches = tok.patchify(x)
    assert tok.grid == (times, pitches) and patches.shape == (2, times * pitches, p * q)
    assert torch.equal(tok.unpatchify(patches), x)
    for n in range(times * pitches):
        row, column = n // pitches, n % pitches
        assert torch.equal(patches[0, n], x[0, 0, row * p : row * p + p, column * q : column * q + q].flatten())


@pytest.mark.parametrize(
    ("size", "patch", "stride", "grid"),
    [
        ((1024, 128), 16, None, (64, 8)),
        ((1024, 128), 16, 10, (101, 12)),
        ((1024, 128), 16, (10, 16), (101, 8)),
        ((50, 20), (8, 4), (3, 4), (15, 5)),
    ],
)
def test_embedding_is_the_convolution(size, patch, stride, grid):
    tok = tokenizer(*size, patch, stride=stride, positions="sincos")
    x = torch.randn(2, 1, *size)
    p, q = tok.config.patch_size
    weight = tok.proj.weight.view(16, 1, p, q)
    convolved = F.conv2d(tok.prepare(x), weight, tok.proj.bias, stride=tok.config.steps)
    assert tok.grid == grid == tuple(convolved.shape[2:]) and tok.num_tokens == math.prod(grid)
    wanted = convolved.flatten(2).mT + sincos_2d(16, grid)
    torch.testing.assert_close(tok(x), wanted, atol=1e-4, rtol=1e-5)
    index, rows = torch.tensor([[3, 0], [1, 2]]), torch.arange(2)[:, None]
    torch.testing.assert_close(tok(x, index), wanted[rows, index], atol=1e-4, rtol=1e-5)


def test_overlapping_patches_cannot_be_put_together():
    tok = tokenizer(stride=10)
    with pytest.raises(MmsslError, match=r"stride \(10, 10\) overlap"):
        tok.unpatchify(torch.zeros(1, tok.num_tokens, 256))
    assert tokenizer(stride=16).config == tokenizer().config


def test_swapped_positions_equal_a_slow_formula():
    table = tokenizer(96, 32).pos_embed[0]  # 6 times of 2 pitches
    for i in range(12):
        time, pitch = i // 2, i % 2
        column, row = (2 * time + pitch) % 6, (2 * time + pitch) // 6
        angles = [[place / 10000 ** (k / 4) for k in range(4)] for place in (column, row)]
        wanted = [f(a) for side in angles for f in (math.sin, math.cos) for a in side]
        torch.testing.assert_close(table[i], torch.tensor(wanted), atol=1e-6, rtol=0)
    assert not tokenizer().pos_embed.requires_grad


def test_positions_by_name():
    assert torch.equal(tokenizer(positions="sincos").pos_embed[0], sincos_2d(16, (6, 2)))
    assert torch.equal(tokenizer(positions="sincos_row").pos_embed[0], sincos_2d(16, (6, 2), "row_first"))
    assert torch.equal(tokenizer(positions="sinusoid").pos_embed[0], sinusoid(16, 12))
    assert tokenizer(positions="learned").pos_embed.requires_grad
    assert tokenizer(positions="none").pos_embed.abs().max() == 0
    with pytest.raises(MmsslError, match="'audio' has no positions 'separable'"):
        tokenizer(positions="separable")
    with pytest.raises(MmsslError, match="'image' has no positions 'sincos_swapped'"):
        ImageTokenizer(ImageTokenizerConfig(image_size=32), "image", 16, "sincos_swapped")


def resized(tok, **changes):
    tok.resize(AudioTokenizerConfig(**{**to_dict(tok.config), **changes}))
    return tok


@pytest.mark.parametrize("positions", ["sincos_swapped", "sincos", "sincos_row", "sinusoid", "learned", "none"])
def test_fewer_frames_keep_the_first_rows(positions):
    tok = tokenizer(positions=positions)
    before = tok.pos_embed.detach().clone()
    assert torch.equal(resized(tok, frames=48).pos_embed, before[:, :6])
    assert tok.grid == (3, 2) and tok(waves()).shape == (2, 6, 16)
    assert tok.pos_embed.requires_grad == (positions == "learned")


def test_more_frames_continue_the_formula():
    tok = tokenizer()
    resized(tok, frames=160)
    wanted = [sincos_2d(16, (4, 6))[i] for i in range(20)]  # column i mod 6, row i // 6, as the 6 times began
    assert torch.equal(tok.pos_embed[0], torch.stack(wanted))
    assert torch.equal(resized(tok, frames=192).pos_embed[0], sincos_2d(16, (4, 6)))  # 24 tokens
    for name, formula in (("sincos", sincos_2d(16, (10, 2))), ("sinusoid", sinusoid(16, 20))):
        assert torch.equal(resized(tokenizer(positions=name), frames=160).pos_embed[0], formula)
    assert tok(waves()).shape == (2, 24, 16)


@pytest.mark.parametrize("positions", ["sincos_swapped", "learned"])
def test_other_tables_are_interpolated(positions):
    tok = tokenizer(positions=positions)
    tok.pos_embed.data += torch.randn(1, 12, 16)  # as fine-tuning may have trained it
    wanted = interpolate_positions(tok.pos_embed.data, (6, 2), (10, 2))
    assert torch.equal(resized(tok, frames=160).pos_embed.data, wanted)
    wanted = interpolate_positions(tok.pos_embed.data, (10, 2), (10, 4))
    assert torch.equal(resized(tok, mel_bins=64).pos_embed.data, wanted)
    assert tok(waves()).shape == (2, 40, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_spectrograms_are_float32_whatever_the_model_is(dtype):
    plain, x = tokenizer(input_rate=8000).spectrogram(waves()), waves()
    torch.manual_seed(0)
    cast = tokenizer(input_rate=8000).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast.spectrogram(x), tokenizer(input_rate=8000).spectrogram(x))
        assert cast.prepare(x).dtype == torch.float32
    assert plain.dtype == torch.float32 and cast(x).dtype == dtype
    torch.testing.assert_close(cast.spectrogram(x.double()), cast.spectrogram(x))


def test_a_graph_without_breaks():
    tok, x = tokenizer(), waves()
    x[1, :, 9000:] = 0
    compiled = torch.compile(tok, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), tok(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frames": 100}, "100 frames of 128 mel_bins are not divisible by patch_size 16x16; .* 96 frames of 128"),
        ({"mel_bins": 40}, "not divisible by patch_size 16x16; the nearest that are: 1024 frames of 32 mel_bins"),
        ({"frames": 0}, "must be positive"),
        ({"stride": 17}, r"stride \(17, 17\) must not be above patch_size \(16, 16\)"),
        ({"patch_size": (16, 256)}, "nor that above frames and mel_bins"),
        ({"std": 0.0}, "std must be above 0"),
        ({"sample_rate": 0}, "sample_rate must be 1 or more"),
        ({"input_rate": 0}, "input_rate must be 1 or more.*got 0"),
        ({"mel_bins": 256}, "256 is more than the transform carries"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(MmsslError, match=words):
        AudioTokenizerConfig(**settings)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([1.0], "torch tensor, got list"),
        (torch.zeros(2, 1, 800, dtype=torch.int16), "float waveform .*int16; divide 16-bit samples by 32768"),
        (torch.zeros(2, 2, 800), r"\(batch, 1, samples\).*got \(2, 2, 800\); mix channels into one"),
        (torch.zeros(2, 800), r"got \(2, 800\)"),
        (torch.zeros(2, 1, 0), "leave out what is empty"),
        (torch.zeros(2, 1, 64, 32), r"\(batch, 1, 96, 32\), got .*encoder.resize\(frames=64\)"),
        (torch.full((2, 1, 800), float("nan")), "NaN or infinite"),
        (torch.full((2, 1, 96, 32), float("-inf")), "NaN or infinite"),
        (torch.full((2, 1, 800), 20000.0), "samples up to 2e.04.*divide 16-bit"),
    ],
)
def test_wrong_input_is_named(x, words):
    with pytest.raises(MmsslError, match=words):
        tokenizer().check(x)


def test_good_input_passes_and_the_registry_knows_it():
    tokenizer().check(waves())
    tokenizer().check(torch.zeros(2, 1, 800))
    tokenizer().check(torch.full((2, 1, 96, 32), -15.0))
    assert TOKENIZERS.get("audio") is AudioTokenizer
    config = AudioTokenizerConfig(frames=512, stride=10, kind="mel")
    assert from_dict(TokenizerConfig, to_dict(config)) == config
