"""Clips to tubelets and back, positions, other sizes, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.config import from_dict, to_dict
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.nn.positions import interpolate_positions, sincos_3d, sinusoid
from mmssl.registry import TOKENIZERS
from mmssl.tokenizers.base import TokenizerConfig
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD
from mmssl.tokenizers.video import VideoTokenizer, VideoTokenizerConfig


def tokenizer(frames=4, image_size=(8, 12), patch_size=(4, 2), tubelet=2, channels=3, dim=16, **options):
    statistics = {"mean": IMAGENET_MEAN[:channels], "std": IMAGENET_STD[:channels]}
    config = VideoTokenizerConfig("video", frames, image_size, patch_size, tubelet, channels, **statistics)
    return VideoTokenizer(config, "video", dim, **options)


def clips(n=2, shape=(4, 3, 8, 12)):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8)


@settings(max_examples=30, deadline=None)
@given(*(st.integers(1, 3) for _ in range(6)), st.integers(1, 3))
def test_unpatchify_is_the_exact_inverse(times, rows, columns, u, p, q, channels):
    tok = tokenizer(times * u, (rows * p, columns * q), (p, q), u, channels)
    x = torch.randn(2, times * u, channels, rows * p, columns * q)
    patches = tok.patchify(x)
    assert patches.shape == (2, times * rows * columns, u * p * q * channels)
    assert tok.grid == (times, rows, columns) and tok.patch_dim == patches.shape[-1]
    assert torch.equal(tok.unpatchify(patches), x)


def test_order_is_time_row_column_channel():
    tok, x = tokenizer(), torch.randn(1, 4, 3, 8, 12)
    patches = tok.patchify(x)
    places = [(t, r, c) for t in range(2) for r in range(2) for c in range(6)]
    for n, (t, r, c) in enumerate(places):
        patch = x[0, 2 * t : 2 * t + 2, :, 4 * r : 4 * r + 4, 2 * c : 2 * c + 2].permute(0, 2, 3, 1).reshape(-1)
        assert torch.equal(patches[0, n], patch)


def test_patches_of_single_frames():
    tok, x = tokenizer(), torch.randn(2, 2, 3, 8, 12)
    patches = tok.cut(x, tubelet=1).mT.flatten(-2)  # channel fastest
    assert patches.shape == (2, 24, 24) and torch.equal(tok.unpatchify(patches), x)
    assert torch.equal(patches[:, 12:], tok.cut(x[:, 1:], tubelet=1).mT.flatten(-2))


def test_embedding_is_the_convolution_over_time_and_place():
    tok, x = tokenizer(), torch.rand(2, 4, 3, 8, 12)
    weight = tok.proj.weight.view(16, 2, 4, 2, 3).permute(0, 4, 1, 2, 3)  # (D, C, u, p, q)
    pixels = tok.prepare(x).transpose(1, 2)  # (B, C, T, H, W)
    convolved = torch.nn.functional.conv3d(pixels, weight, tok.proj.bias, stride=(2, 4, 2))
    torch.testing.assert_close(tok(x), convolved.flatten(2).transpose(1, 2) + tok.pos_embed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "separable"])
@pytest.mark.parametrize("as_float", [False, True])
def test_gathered_targets_and_tokens_are_rows_of_the_whole(positions, as_float):
    tok, x = tokenizer(positions=positions), clips()
    x = x / 255 if as_float else x
    index, rows = torch.tensor([[3, 0, 23], [5, 16, 7]]), torch.arange(2)[:, None]
    torch.testing.assert_close(tok.target(x, index), tok.target(x)[rows, index], atol=1e-5, rtol=0)
    torch.testing.assert_close(tok(x, index), tok(x)[rows, index], atol=1e-5, rtol=1e-5)


def test_uint8_and_float_mean_the_same_and_restore_gives_back():
    tok, x = tokenizer(), clips()
    torch.testing.assert_close(tok.prepare(x), tok.prepare(x.float() / 255), atol=1e-5, rtol=0)
    torch.testing.assert_close(tok.restore(tok.prepare(x)), x / 255, atol=1e-6, rtol=0)
    expected = (x[:, 1, 2] / 255 - IMAGENET_MEAN[2]) / IMAGENET_STD[2]
    torch.testing.assert_close(tok.prepare(x)[:, 1, 2], expected, atol=1e-5, rtol=0)


def test_positions_by_name():
    assert torch.equal(tokenizer().pos_embed.data, sincos_3d(16, (2, 2, 6))[None])
    assert torch.equal(tokenizer(positions="sinusoid").pos_embed.data, sinusoid(16, 24)[None])
    assert not tokenizer().pos_embed.requires_grad and not tokenizer(positions="sinusoid").pos_embed.requires_grad
    assert tokenizer(positions="learned").pos_embed.requires_grad
    assert tokenizer(positions="none").positions.abs().max() == 0
    with pytest.raises(MmsslError, match="'sincos_row' are of images"):
        tokenizer(positions="sincos_row")


def test_separable_positions_are_time_plus_place():
    tok = tokenizer(positions="separable")
    names = {n: tuple(p.shape) for n, p in tok.named_parameters() if n.startswith("pos")}
    assert names == {"pos_embed_spatial": (1, 12, 16), "pos_embed_temporal": (1, 2, 16)}
    for n in range(24):
        wanted = tok.pos_embed_spatial[0, n % 12] + tok.pos_embed_temporal[0, n // 12]
        torch.testing.assert_close(tok.positions[0, n], wanted)
    tok(clips(), torch.tensor([[3], [3]])).sum().backward()  # token 3 is time 0, place 3
    assert tok.pos_embed_temporal.grad[0].sum(1).tolist() == [32, 0]
    assert tok.pos_embed_spatial.grad[0].sum(1).nonzero().tolist() == [[3]]


def encoder(positions="sincos", **changes):
    torch.manual_seed(0)
    config = {"frames": 4, "image_size": (8, 12), "patch_size": 4, "tubelet": 2, **changes}
    tokenizers = {"video": VideoTokenizerConfig(**config)}
    return Encoder(EncoderConfig(tokenizers=tokenizers, dim=24, depth=1, heads=2, positions=positions)).eval()


def test_a_clip_has_a_feature_map():
    model = encoder()
    features = model({"video": clips()})
    assert features.grid == {"video": (2, 2, 3)} and features.map().shape == (2, 2, 2, 3, 24)
    assert torch.equal(features.map()[:, 1, 0, 2], features.tokens[:, 8])


def test_a_sinusoid_is_made_anew_for_another_size_and_a_trained_one_interpolated():
    model = encoder("sinusoid").resize((16, 16), frames=6)
    assert torch.equal(model.tokenizers["video"].pos_embed.data, sinusoid(24, 3 * 16)[None])
    assert model({"video": clips(1, (6, 3, 16, 16))}).grid == {"video": (3, 4, 4)}
    table = model.tokenizers["video"].pos_embed
    table.data += torch.randn(24)  # as fine-tuning may have trained it
    wanted = interpolate_positions(table.data, (3, 4, 4), (2, 2, 2))
    assert torch.equal(model.resize(8, frames=4).tokenizers["video"].pos_embed.data, wanted)


@pytest.mark.parametrize("positions", ["learned", "separable", "sincos", "none"])
def test_resizing_interpolates_and_saves(tmp_path, positions):
    model = encoder(positions)
    tok, before = model.tokenizers["video"], model.tokenizers["video"].positions.clone()
    assert model.resize(frames=8) is model
    assert tok.grid == (4, 2, 3) and model.config.tokenizers["video"].frames == 8
    wanted = interpolate_positions(before, (2, 2, 3), (4, 2, 3))
    torch.testing.assert_close(tok.positions, wanted, atol=1e-6, rtol=0)
    model.resize((16, 16))
    wanted = interpolate_positions(wanted, (4, 2, 3), (4, 4, 4))
    torch.testing.assert_close(tok.positions, wanted, atol=1e-5, rtol=0)
    trained = [p.requires_grad for n, p in tok.named_parameters() if n.startswith("pos")]
    assert trained == {"learned": [True], "separable": [True, True]}.get(positions, [False])
    model.save_pretrained(tmp_path)
    batch = {"video": clips(1, (8, 3, 16, 16))}
    assert torch.equal(Encoder.from_pretrained(tmp_path)(batch).tokens, model(batch).tokens)


def test_a_size_that_does_not_divide_changes_nothing():
    model = encoder()
    with pytest.raises(MmsslError, match="tubelet 2 does not divide the 5 frames"):
        model.resize(16, frames=5)
    with pytest.raises(MmsslError, match="not divisible"):
        model.resize(10)
    assert model({"video": clips()}).map().shape == (2, 2, 2, 3, 24)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tubelet": 3}, r"tubelet 3 does not divide the 16 frames.* is 15, .* divides 16 is (2|4)"),
        ({"frames": 5, "tubelet": 4}, r"that it divides is 4, .* divides 5 is 5"),
        ({"frames": 1}, "that it divides is 2, .* divides 1 is 1"),
        ({"tubelet": 0}, "must be 1 or more"),
        ({"image_size": 30, "patch_size": 16}, "30x30 is not divisible by patch_size 16x16.*32x32"),
        ({"mean": (0.5,)}, "each of the 3 channels"),
        ({"std": (0.1, 0.0, 0.1)}, "std must be above 0"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(MmsslError, match=words):
        VideoTokenizerConfig(**settings)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([1, 2], "torch tensor, got list"),
        (clips().long(), "uint8.*int64"),
        (clips(2, (8, 3, 8, 12)), r"clips of 8 frames, and this model reads 4; sample 4 .*resize\(frames=8\)"),
        (clips(2, (3, 8, 12)), r"shape \(batch, 4, 3, 8, 12\), got \(2, 3, 8, 12\); resize the clips"),
        (clips(2, (4, 8, 12, 3)), "shape"),
        (torch.full((2, 4, 3, 8, 12), 200.0), r"from 200 to 200.*\[0, 1\]"),
        (torch.full((2, 4, 3, 8, 12), float("nan")), "nan"),
    ],
)
def test_wrong_input_is_named(x, words):
    with pytest.raises(MmsslError, match=words):
        tokenizer().check(x)


def test_good_input_passes_and_the_registry_knows_it():
    tokenizer().check(torch.rand(2, 4, 3, 8, 12))
    tokenizer().check(clips())
    assert TOKENIZERS.get("video") is VideoTokenizer
    config = VideoTokenizerConfig(frames=8, image_size=32)
    assert from_dict(TokenizerConfig, to_dict(config)) == config


def test_padding_of_trajectories():
    clips = torch.zeros(2, 4, 3, 16, 16)
    config = VideoTokenizerConfig(frames=4, image_size=16, patch_size=8, tubelet=2)
    video = VideoTokenizer(config, "video", 16)
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    real = video.padding({"video": clips, "valid": valid})
    assert real.tolist() == [[True] * 8, [True] * 4 + [False] * 4]
    assert video.padding({"video": clips}) is None
    half = VideoTokenizer(config, "video", 16, "sincos_half")
    assert torch.equal(half.pos_embed, video.pos_embed / 2)
