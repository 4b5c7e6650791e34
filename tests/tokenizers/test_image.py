"""Images to patches and back, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.errors import MmsslError
from mmssl.registry import TOKENIZERS
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD, ImageTokenizer, ImageTokenizerConfig


def tokenizer(image_size=(8, 12), patch_size=(4, 2), channels=3, **options):
    statistics = {"mean": IMAGENET_MEAN[:channels], "std": IMAGENET_STD[:channels]}
    config = ImageTokenizerConfig("image", image_size, patch_size, channels, **statistics)
    return ImageTokenizer(config, "image", 16, **options)


@settings(max_examples=30, deadline=None)
@given(*(st.integers(1, 4) for _ in range(4)), st.integers(1, 3))
def test_unpatchify_is_the_exact_inverse(rows, columns, p, q, channels):
    tok = tokenizer((rows * p, columns * q), (p, q), channels)
    x = torch.randn(2, channels, rows * p, columns * q)
    patches = tok.patchify(x)
    assert patches.shape == (2, rows * columns, p * q * channels)
    assert torch.equal(tok.unpatchify(patches), x)


def test_pixel_order_is_row_column_channel():
    tok = tokenizer()
    x = torch.randn(1, 3, 8, 12)
    patches = tok.patchify(x)
    for n, (r, c) in enumerate((r, c) for r in range(2) for c in range(6)):
        patch = x[0, :, 4 * r : 4 * r + 4, 2 * c : 2 * c + 2].permute(1, 2, 0).reshape(-1)
        assert torch.equal(patches[0, n], patch)


def test_uint8_and_float_mean_the_same_and_restore_gives_back():
    tok = tokenizer()
    x = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    torch.testing.assert_close(tok.prepare(x), tok.prepare(x.float() / 255), atol=1e-5, rtol=0)
    expected = (x / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    torch.testing.assert_close(tok.prepare(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(tok.restore(tok.prepare(x)), x / 255, atol=1e-6, rtol=0)


@pytest.mark.parametrize("as_float", [False, True])
def test_gathered_targets_and_tokens_are_rows_of_the_whole(as_float):
    tok = tokenizer()
    x = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8)
    x = x / 255 if as_float else x
    index = torch.tensor([[3, 0, 11], [5, 6, 7]])
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(tok.target(x, index), tok.target(x)[rows, index], atol=1e-5, rtol=0)
    torch.testing.assert_close(tok(x, index), tok(x)[rows, index], atol=1e-5, rtol=1e-5)


def test_embedding_is_the_patch_convolution():
    tok = tokenizer((8, 8), (4, 4))
    x = torch.rand(2, 3, 8, 8)
    weight = tok.proj.weight.view(16, 4, 4, 3).permute(0, 3, 1, 2)
    convolved = torch.nn.functional.conv2d(tok.prepare(x), weight, tok.proj.bias, stride=4)
    expected = convolved.flatten(2).transpose(1, 2) + tok.pos_embed
    torch.testing.assert_close(tok(x), expected, atol=1e-5, rtol=1e-5)


def test_positions_are_trained_only_when_learned():
    assert not tokenizer().pos_embed.requires_grad
    assert tokenizer(positions="learned").pos_embed.requires_grad
    assert tokenizer(positions="none").pos_embed.abs().max() == 0
    assert not torch.equal(tokenizer().pos_embed, tokenizer(positions="sincos_row").pos_embed)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 30, "patch_size": 16}, "30x30 is not divisible by patch_size 16x16.*32x32"),
        ({"image_size": (32, 20), "patch_size": 8}, "32x20"),
        ({"image_size": 0}, "positive"),
        ({"mean": (0.5,)}, "each of the 3 channels"),
        ({"std": (0.1, 0.0, 0.1)}, "std must be above 0"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(MmsslError, match=words):
        ImageTokenizerConfig(**settings)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([1, 2], "torch tensor, got list"),
        (torch.zeros(2, 3, 8, 12, dtype=torch.int64), "uint8.*int64"),
        (torch.zeros(3, 8, 12), r"shape \(batch, 3, 8, 12\), got \(3, 8, 12\)"),
        (torch.zeros(2, 8, 12, 3), "shape"),
        (torch.zeros(2, 3, 16, 16), r"encoder.resize"),
        (torch.full((2, 3, 8, 12), 200.0), r"from 200 to 200.*\[0, 1\]"),
        (torch.full((2, 3, 8, 12), -0.5), "-0.5"),
        (torch.full((2, 3, 8, 12), float("nan")), "nan"),
    ],
)
def test_wrong_input_is_named(x, words):
    with pytest.raises(MmsslError, match=words):
        tokenizer().check(x)


def test_good_input_passes_and_the_registry_knows_it():
    tokenizer().check(torch.rand(2, 3, 8, 12))
    tokenizer().check(torch.zeros(2, 3, 8, 12, dtype=torch.uint8))
    assert TOKENIZERS.get("image") is ImageTokenizer
