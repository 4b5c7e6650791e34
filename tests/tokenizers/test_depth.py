"""Depth to patches and back: the published standardisation, unknown depth, and what is refused."""

import logging

import numpy as np
import pytest
import torch

from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.nn.positions import interpolate_positions
from mmssl.tokenizers.depth import DepthTokenizer, DepthTokenizerConfig


def tokenizer(image_size=(8, 12), patch_size=(4, 2), **options):
    return DepthTokenizer(DepthTokenizerConfig("depth", image_size, patch_size, **options), "depth", 16)


def test_standardisation_leaves_out_the_lowest_and_highest_tenth():
    tok, x = tokenizer(), 3 * torch.rand(3, 1, 8, 12)
    x[0, 0, 0, :5] = 80.0  # sky, within the highest tenth of 96 values
    for depth, prepared, mean, scale in zip(x, tok.prepare(x), *tok.statistics(x), strict=True):
        kept = sorted(depth.flatten().tolist())[int(0.1 * 96) : int(0.9 * 96)]
        expected_scale = np.sqrt(np.var(kept, ddof=1) + 1e-6)
        np.testing.assert_allclose(prepared.numpy(), (depth.numpy() - np.mean(kept)) / expected_scale, atol=1e-4)
        assert mean.item() == pytest.approx(np.mean(kept), rel=1e-5)
        assert scale.item() == pytest.approx(expected_scale, rel=1e-5) and scale < 2


def test_restore_needs_the_statistics_of_the_input():
    tok, x = tokenizer(), 3 * torch.rand(2, 1, 8, 12) + 1
    prepared = tok.prepare(x)
    torch.testing.assert_close(tok.restore(prepared, tok.statistics(x)), x)
    assert torch.equal(tok.restore(prepared), prepared)
    torch.testing.assert_close(tok.picture(tok.target(x)), prepared)
    plain = tokenizer(standardise="none")
    assert torch.equal(plain.restore(plain.prepare(x)), x) and torch.equal(plain.restore(x, plain.statistics(x)), x)


def test_a_limit_gives_the_scene_before_the_sky_its_scale():
    x = torch.rand(1, 1, 8, 12) + 1
    x[:, :, :4] = 80.0  # half of the map
    without, within = tokenizer().prepare(x)[:, :, 4:], tokenizer(farthest=3.0).prepare(x)[:, :, 4:]
    assert without.std() < 0.02 and within.std() > 0.2
    torch.testing.assert_close(tokenizer(farthest=3.0).prepare(x), tokenizer().prepare(x.clamp(max=3.0)))


def test_rows_without_depth_are_zeros_and_finite():
    x = torch.stack([torch.zeros(1, 8, 12), torch.rand(1, 8, 12), torch.full((1, 8, 12), 2.0)])
    prepared = tokenizer().prepare(x)
    assert bool(prepared.isfinite().all()) and prepared[0].abs().max() == 0 and prepared[2].abs().max() < 1e-3


def test_patches_are_flattened_row_by_row():
    tok, x = tokenizer(), torch.rand(2, 1, 8, 12)
    patches = tok.patchify(x)
    assert patches.shape == (2, 12, 8) and tok.grid == (2, 6)
    for n, (r, c) in enumerate((r, c) for r in range(2) for c in range(6)):
        assert torch.equal(patches[:, n], x[:, 0, 4 * r : 4 * r + 4, 2 * c : 2 * c + 2].flatten(1))
    assert torch.equal(tok.unpatchify(patches), x)


def test_gathered_targets_are_rows_of_the_whole():
    tok, x = tokenizer(farthest=2.0), 3 * torch.rand(2, 1, 8, 12)
    index, rows = torch.tensor([[3, 0, 11], [5, 6, 7]]), torch.arange(2)[:, None]
    torch.testing.assert_close(tok.target(x, index), tok.target(x)[rows, index])
    torch.testing.assert_close(tok(x, index), tok(x)[rows, index])


def test_positions_are_interpolated_bicubically():
    encoder = Encoder(EncoderConfig({"depth": DepthTokenizerConfig("depth", 8, 2)}, dim=8, depth=1, heads=1))
    old = encoder.tokenizers["depth"].pos_embed.clone()
    encoder.resize(12)
    assert torch.equal(encoder.tokenizers["depth"].pos_embed, interpolate_positions(old, (4, 4), (6, 6), "bicubic"))
    assert encoder({"depth": torch.rand(1, 1, 12, 12)}).tokens.shape == (1, 36, 8)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 1, 8, 12, dtype=torch.uint8), r"must be float metres, got torch.uint8"),
        (torch.zeros(2, 8, 12), r"shape \(batch, 1, 8, 12\), got \(2, 8, 12\)"),
        ([1.0], r"must be a torch tensor, got list"),
        (torch.full((1, 1, 8, 12), float("nan")), r"NaN or infinite values; give finite metres"),
        (torch.full((1, 1, 8, 12), float("inf")), r"NaN or infinite values"),
    ],
)
def test_wrong_depth(x, words):
    with pytest.raises(MmsslError, match=words):
        tokenizer().check(x)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 30, "patch_size": 16}, "30x30 is not divisible by patch_size 16x16"),
        ({"image_size": 32, "farthest": 0.0}, "farthest must be above 0 metres"),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(MmsslError, match=words):
        DepthTokenizerConfig(**settings)


def test_another_unit_is_said_once(caplog):
    tok, millimetres = tokenizer(), 1500 + 100 * torch.rand(2, 1, 8, 12)
    millimetres[0, 0, 0, 0] = 0  # unknown
    with caplog.at_level(logging.WARNING):
        tok.check(torch.full((1, 1, 8, 12), 80.0))
        tok.check(torch.zeros(1, 1, 8, 12))
        assert not caplog.records
        tok.check(millimetres)
        tok.check(millimetres)
    assert len(caplog.records) == 1 and "all values of 'depth' are above 1000" in caplog.text
