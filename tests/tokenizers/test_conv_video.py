"""Tokens that come out of convolutions against loops over pixels; shorter clips, positions, and what is refused."""

import math

import pytest
import torch

from mmssl.config import from_dict, to_dict
from mmssl.errors import MmsslError
from mmssl.nn.conv_stem import ConvStem, stem_widths
from mmssl.nn.positions import sincos_2d
from mmssl.registry import TOKENIZERS
from mmssl.tokenizers.base import TokenizerConfig
from mmssl.tokenizers.conv_video import (
    ConvImageTokenizer,
    ConvImageTokenizerConfig,
    ConvVideoTokenizer,
    ConvVideoTokenizerConfig,
)
from mmssl.tokenizers.video import VideoTokenizer, VideoTokenizerConfig


def clips_tokenizer(frames=3, image_size=(8, 12), patch_size=4, dim=8, positions="sincos", **options):
    torch.manual_seed(0)
    config = ConvVideoTokenizerConfig(frames=frames, image_size=image_size, patch_size=patch_size, **options)
    return ConvVideoTokenizer(config, "video", dim, positions)


def clips(n=2, shape=(3, 3, 8, 12)):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def slow_convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """One 4 x 4 convolution of stride 2 with a border of zeros and ReLU, pixel by pixel; x (C, H, W)."""
    channels, height, width = x.shape
    padded = torch.zeros(channels, height + 2, width + 2)
    padded[:, 1:-1, 1:-1] = x
    out = torch.zeros(len(weight), height // 2, width // 2)
    for d in range(len(weight)):
        for i in range(height // 2):
            for j in range(width // 2):
                value = (padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] * weight[d]).sum() + bias[d]
                out[d, i, j] = max(value, torch.zeros(()))
    return out


def test_the_stem_is_the_convolutions_pixel_by_pixel():
    torch.manual_seed(0)
    stem, x = ConvStem(3, 4, 8), torch.randn(2, 3, 8, 12)
    for conv in stem.convs:
        torch.nn.init.normal_(conv.bias)
    assert [tuple(conv.weight.shape) for conv in stem.convs] == [(2, 3, 4, 4), (4, 2, 4, 4)] and stem.width == 4
    for row, found in zip(x, stem(x), strict=True):
        for conv in stem.convs:
            row = slow_convolution(row, conv.weight, conv.bias)
        torch.testing.assert_close(found, row.flatten(1).T, atol=1e-5, rtol=1e-5)


def test_widths_are_the_released_ones():
    assert stem_widths(16, 256) == [16, 32, 64, 128] and stem_widths(8, 256) == [32, 64, 128]


def test_tokens_are_projected_features_with_place_and_time():
    tok, x = clips_tokenizer(), clips()
    tokens, places = tok(x), sincos_2d(8, (2, 3))
    assert tokens.shape == (2, 18, 8) and tok.grid == (3, 2, 3)
    for b in range(2):
        for t in range(3):
            feature = tok.stem(tok.prepare(x[b : b + 1, t].repeat(1, 1, 1, 1)[:, None])[:, 0])[0]  # (6, 4)
            for n in range(6):
                wanted = tok.proj.weight @ feature[n] + tok.proj.bias + places[n] + tok.pos_embed_temporal[0, t]
                torch.testing.assert_close(tokens[b, 6 * t + n], wanted, atol=1e-5, rtol=1e-5)


def test_places_are_fixed_and_times_are_learned():
    tok = clips_tokenizer()
    assert not tok.pos_embed_spatial.requires_grad and tok.pos_embed_temporal.requires_grad
    tok(clips()).sum().backward()
    assert tok.pos_embed_temporal.grad.abs().sum() > 0


@pytest.mark.parametrize("early_conv", [True, False])
@pytest.mark.parametrize("positions", ["sincos", "learned", "separable"])
def test_gathered_tokens_and_shorter_clips_are_rows_of_the_whole(early_conv, positions):
    tok, x = clips_tokenizer(early_conv=early_conv, positions=positions), clips()
    index, rows = torch.tensor([[3, 0, 17], [5, 16, 7]]), torch.arange(2)[:, None]
    torch.testing.assert_close(tok(x, index), tok(x)[rows, index], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tok(x[:, :2]), tok(x)[:, :12], atol=1e-5, rtol=1e-5)
    assert tok.grid_of(x[:, :2]) == (2, 2, 3)


def test_without_convolutions_it_is_the_projection_of_single_frames():
    tok, x = clips_tokenizer(early_conv=False), clips()
    torch.manual_seed(0)
    plain = VideoTokenizer(VideoTokenizerConfig("video", 3, (8, 12), 4, tubelet=1), "video", 8, "none")
    plain.proj.load_state_dict(tok.proj.state_dict())
    torch.testing.assert_close(tok(x) - tok.positions, plain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 3])
def test_targets_go_back_to_pixels_of_any_length(frames):
    tok, x = clips_tokenizer(), clips()[:, :frames]
    patches = tok.target(x)
    assert patches.shape == (2, 6 * frames, 48)
    torch.testing.assert_close(tok.picture(patches), x / 255, atol=1e-5, rtol=0)
    assert torch.equal(patches[:, :6], tok.target(x[:, :1]))


def test_images_are_clips_of_one_frame_without_a_time():
    clip = clips_tokenizer(frames=1)
    torch.manual_seed(0)
    image = ConvImageTokenizer(ConvImageTokenizerConfig(image_size=(8, 12), patch_size=4), "image", 8)
    state = {name: x for name, x in clip.state_dict().items() if name.startswith(("stem", "proj"))}
    image.load_state_dict(state, strict=False)
    x = clips(shape=(1, 3, 8, 12))
    torch.testing.assert_close(image(x[:, 0]), clip(x) - clip.pos_embed_temporal[:, 0], atol=1e-5, rtol=1e-5)
    assert image.grid == (2, 3) and torch.equal(image.target(x[:, 0]), clip.target(x))


def test_another_size_interpolates_places_and_times():
    tok = clips_tokenizer()
    first = tok.pos_embed_temporal.detach().clone()
    tok.resize(ConvVideoTokenizerConfig(frames=6, image_size=(16, 12), patch_size=4))
    assert tok(clips(shape=(6, 3, 16, 12))).shape == (2, 72, 8) and tok.pos_embed_temporal.requires_grad
    torch.testing.assert_close(tok.pos_embed_temporal[:, 0], first[:, 0])


def test_settings_come_back_from_a_mapping():
    for config in (ConvVideoTokenizerConfig(early_conv=False), ConvImageTokenizerConfig(image_size=96)):
        assert from_dict(TokenizerConfig, to_dict(config)) == config
        assert TOKENIZERS.get(config.name).config_class is type(config)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: clips_tokenizer(image_size=12, patch_size=6), "2, 4, 8, 16 pixels and so on, not of 6"),
        (lambda: clips_tokenizer(image_size=8, patch_size=8, dim=12), "multiple of 8, got 12"),
        (lambda: clips_tokenizer(patch_size=(4, 2)), "square patches, not 4x2"),
        (lambda: ConvVideoTokenizerConfig(frames=0), "frames must be 1 or more, got 0"),
        (lambda: ConvImageTokenizerConfig(image_size=10, patch_size=4), "10x10 is not divisible by patch_size 4x4"),
        (lambda: clips_tokenizer()(clips(shape=(4, 3, 8, 12))), "clips of 4 frames, and this model reads 3"),
        (lambda: clips_tokenizer()(clips(shape=(2, 3, 8, 8))), "must have the shape"),
        (lambda: clips_tokenizer()(clips().long()), "uint8, or float"),
        (lambda: clips_tokenizer().check(clips().float()), r"floats must lie in \[0, 1\]"),
        (lambda: clips_tokenizer(positions="sincos_row"), "sincos_row"),
    ],
)
def test_what_cannot_be(make, words):
    with pytest.raises(MmsslError, match=words):
        make()


def test_convolutions_start_as_keras_does():
    conv = ConvStem(3, 16, 256).convs[2]
    bound = math.sqrt(6 / (16 * (conv.in_channels + conv.out_channels)))
    assert conv.weight.abs().max() <= bound and conv.weight.std() > 0.5 * bound and (conv.bias == 0).all()
