"""Class ids to tokens: the authors' convolution over embedded ids, what is no class, and what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.nn.positions import interpolate_positions, sincos_2d
from mmssl.tokenizers.segmentation import SegmentationTokenizer, SegmentationTokenizerConfig


def tokenizer(image_size=(16, 24), patch_size=8, classes=5, stride=4, embed=6, positions="sincos", **options):
    config = SegmentationTokenizerConfig("segmentation", image_size, patch_size, classes, embed, stride, **options)
    return SegmentationTokenizer(config, "segmentation", 16, positions)


def ids(batch=2, size=(16, 24), classes=5):
    return torch.randint(0, classes, (batch, *size))


def test_ids_are_the_nearest_ones_of_a_quarter_of_the_size():
    x = ids()
    small = tokenizer().prepare(x)
    for row, expected in zip(small, x, strict=True):
        picture = Image.fromarray(expected.numpy().astype(np.uint8)).resize((6, 4), Image.Resampling.NEAREST)
        assert np.array_equal(row.numpy(), np.asarray(picture))
    assert torch.equal(tokenizer(stride=1).prepare(x), x)


def test_target_and_picture():
    tok, x = tokenizer(), ids()
    target = tok.target(x)
    assert target.shape == (2, 6, 4) and target.dtype == torch.int64 and tok.grid == (2, 3) and tok.patch_dim == 4
    small = tok.prepare(x)
    for n, (r, c) in enumerate((r, c) for r in range(2) for c in range(3)):
        assert torch.equal(target[:, n], small[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten(1))
    assert torch.equal(tok.unpatchify(target), small)
    picture = tok.picture(target)
    assert picture.shape == x.shape and torch.equal(tok.prepare(picture), small)
    index = torch.tensor([[0, 5], [3, 2]])
    assert torch.equal(tok.target(x, index), target[torch.arange(2)[:, None], index])


def test_tokens_are_the_convolution_of_embedded_ids():
    tok, x = tokenizer(positions="sincos_row"), ids()
    vectors = F.embedding(tok.prepare(x), tok.embedding.weight).permute(0, 3, 1, 2)  # (B, 6, 4, 6)
    weight = tok.proj.weight.view(16, 2, 2, 6).permute(0, 3, 1, 2)
    expected = F.conv2d(vectors, weight, tok.proj.bias, stride=2).flatten(2).mT + sincos_2d(16, (2, 3), "row_first")
    torch.testing.assert_close(tok(x), expected)
    torch.testing.assert_close(tok(x, torch.tensor([[4], [1]]))[:, 0], expected[[0, 1], [4, 1]])


def test_names_of_the_weights():
    state = tokenizer().state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes == {
        "pos_embed": (1, 6, 16),
        "embedding.weight": (5, 6),
        "proj.weight": (16, 24),
        "proj.bias": (16,),
    }


@pytest.mark.parametrize("value", [-1, -7, 254, 255])
def test_what_is_no_class_is_the_vector_zero_and_no_target(value):
    tok, x = tokenizer(), ids()
    x[0, :8, :8] = value
    assert torch.equal(tok.target(x)[0, 0], torch.full((4,), -1)) and tok.target(x)[1].min() >= 0
    torch.testing.assert_close(tok.embed(tok.target(x))[0, 0], tok.proj.bias)
    tok.check(x)
    tok(x).sum().backward()
    assert bool(tok.embedding.weight.grad.isfinite().all())


def test_other_ignored_ids():
    x = torch.full((1, 16, 24), 4)
    assert tokenizer(classes=4, ignore=(4,)).target(x).unique().tolist() == [-1]


def test_positions_are_interpolated_bilinearly():
    config = SegmentationTokenizerConfig("segmentation", 16, 4, 5, 6, 2)
    encoder = Encoder(EncoderConfig({"segmentation": config}, dim=8, depth=1, heads=1))
    old = encoder.tokenizers["segmentation"].pos_embed.clone()
    encoder.resize(24)
    new = encoder.tokenizers["segmentation"].pos_embed
    assert torch.equal(new, interpolate_positions(old, (4, 4), (6, 6), "bilinear"))
    assert not torch.allclose(new, interpolate_positions(old, (4, 4), (6, 6)), atol=1e-3)
    assert encoder({"segmentation": ids(1, (24, 24))}).tokens.shape == (1, 36, 8)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 16, 24), r"must be int64 class ids, got torch.float32"),
        (torch.zeros(2, 1, 16, 24, dtype=torch.int64), r"shape \(batch, 16, 24\), got \(2, 1, 16, 24\)"),
        (torch.full((1, 16, 24), 5), r"holds the ids 5, and this model has 5 classes \(0 to 4\)"),
        (torch.arange(16 * 24).view(1, 16, 24), r"holds the ids 50, 54, 58, 62, 66, \.\.\., and"),
    ],
)
def test_wrong_ids(x, words):
    with pytest.raises(MmsslError, match=words):
        tokenizer().check(x)
    with pytest.raises(MmsslError, match=words):
        tokenizer()(x)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stride": 3}, "stride 3 does not divide patch_size 16x16"),
        ({"classes": 300}, "ignore names 254, 255, which the 300 classes have as ids"),
        ({"classes": 0}, "classes and embed must be 1 or more, got 0 and 64"),
        ({"image_size": 100}, "100x100 is not divisible"),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(MmsslError, match=words):
        SegmentationTokenizerConfig(**settings)
