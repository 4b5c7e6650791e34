"""An encoder of several modalities: any subset of them, rows that lack one, views that share a tokenizer."""

import pytest
import torch

from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.joint_masking import DirichletMask, IndependentMask
from mmssl.keys import sample_keys
from mmssl.tokenizers.image import ImageTokenizerConfig

TWO = {"image": ImageTokenizerConfig(image_size=16, patch_size=4),
       "image/side": ImageTokenizerConfig(image_size=(8, 16), patch_size=4)}  # fmt: skip
SHAPE = {"dim": 16, "depth": 2, "heads": 2}


def make(**settings):
    torch.manual_seed(0)
    return Encoder(EncoderConfig(**SHAPE, **{"tokenizers": TWO, "type_embedding": True} | settings)).eval()


def images(n=3, size=(16, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=generator)


@pytest.fixture
def both():
    return {"image": images(), "image/side": images(size=(8, 16), seed=1)}


def slow(encoder, batch, row, masks=None):
    """Tokens of one row, one by one: visible patches of what it has, through the blocks without any padding."""
    tokens, places = [encoder.cls_token[0]], []
    for name in encoder.modalities:
        if name in batch and batch.get(f"present/{name}", torch.ones(99, dtype=torch.bool))[row]:
            tokenizer = encoder.tokenizer(name)
            every = tokenizer(batch[name][row : row + 1])[0] + encoder.type_embed[name][0]
            for place in range(len(every)):
                if masks is None or not masks[name][row, place]:
                    tokens.append(every[place : place + 1])
                    places.append(encoder.offsets[name] + place)
    x = torch.cat(tokens)[None]
    for block in encoder.blocks:
        x = block(x)
    return encoder.norm(x)[0], places


def test_tokens_of_all_modalities_against_a_slow_version(both):
    encoder = make()
    found = encoder(both)
    assert encoder.offsets == {"image": 0, "image/side": 16} and found.grid == {"image": (4, 4), "image/side": (2, 4)}
    for row in range(3):
        wanted, places = slow(encoder, both, row)
        torch.testing.assert_close(torch.cat([found.cls[row, None], found.tokens[row]]), wanted, atol=1e-5, rtol=1e-5)
        assert found.index[row].tolist() == places
    assert found.of("image/side")[0].shape == (3, 8, 16) and found.map("image/side").shape == (3, 2, 4, 16)
    assert torch.equal(found.map("image/side").flatten(1, 2), found.tokens[:, 16:])


@pytest.mark.parametrize("name", ["image", "image/side"])
def test_a_modality_that_is_not_there_costs_no_token(both, name):
    encoder = make()
    found = encoder({name: both[name]})
    assert list(found.grid) == [name] and found.tokens.shape[1] == encoder.tokenizer(name).num_tokens
    assert found.index[0, 0] == encoder.offsets[name]
    torch.testing.assert_close(found.tokens[1], slow(encoder, {name: both[name]}, 1)[0][1:], atol=1e-5, rtol=1e-5)


def test_rows_that_lack_a_modality_equal_rows_without_it(both):
    encoder = make()
    both["present/image/side"] = torch.tensor([True, False, True])
    both["image/side"][1] = 0
    found = encoder(both)
    assert found.valid.sum(1).tolist() == [24, 16, 24]
    for row in range(3):
        wanted = slow(encoder, both, row)[0]
        torch.testing.assert_close(found.cls[row], wanted[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.tokens[row][found.valid[row]], wanted[1:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.pooled()[row], wanted[1:].mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", [DirichletMask(7), IndependentMask(0.6), IndependentMask(0.6, padding="skip")])
@pytest.mark.parametrize("missing", [False, True])
def test_masked_tokens_against_a_slow_version(both, sampler, missing):
    encoder, keys = make(), sample_keys(3, 0, 0, torch.arange(3))
    if missing:
        both["present/image"] = torch.tensor([False, True, True])
    real = encoder.valid(both)
    masks = sampler(encoder.grids_of(both), keys, real)
    found = encoder(both, masks, sampler.visible(encoder.grids), sampler.budget(encoder.grids))
    again = encoder(both, masks)
    for row in range(3):
        wanted, places = slow(encoder, both, row, masks)
        for one in (found, again):
            order = one.index[row][one.valid[row]].argsort()
            assert one.index[row][one.valid[row]][order].tolist() == places
            torch.testing.assert_close(one.tokens[row][one.valid[row]][order], wanted[1:], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(one.cls[row], wanted[0], atol=1e-5, rtol=1e-5)
    if isinstance(sampler, DirichletMask):
        assert found.tokens.shape[1] == 7


def test_views_share_a_tokenizer_and_have_vectors_of_their_own():
    image = {"image": ImageTokenizerConfig(image_size=16, patch_size=4)}
    encoder = make(tokenizers=image, views=("left", "right"))
    assert encoder.modalities == ("image/left", "image/right") and list(encoder.tokenizers) == ["image"]
    batch = {"image/left": images(), "image/right": images(seed=1)}
    found = encoder(batch)
    assert found.tokens.shape == (3, 32, 16)
    torch.testing.assert_close(found.tokens[2], slow(encoder, batch, 2)[0][1:], atol=1e-5, rtol=1e-5)
    alone = encoder({"image": images()})  # a camera of no name: the mean of the vectors
    mean = {k: v for k, v in encoder.type_embed.items()}
    encoder.type_embed["image/left"].data = (mean["image/left"].data + mean["image/right"].data) / 2
    torch.testing.assert_close(alone.tokens, encoder({"image/left": images()}).tokens, atol=1e-6, rtol=1e-6)
    assert alone.grid == {"image": (4, 4)} and alone.index[0, 0] == 0


def test_it_comes_back_from_disk(tmp_path, both):
    encoder = make(pre_norm=True, gelu="quick", causal=True)
    encoder.save_pretrained(tmp_path)
    torch.testing.assert_close(Encoder.from_pretrained(tmp_path)(both).tokens, encoder(both).tokens)


def test_causal_tokens_do_not_see_later_ones():
    encoder = make(tokenizers={"image": TWO["image"]}, causal=True, cls_token=False)
    one, other = images(), images()
    other[:, :, 12:] = 0  # the last row of patches
    torch.testing.assert_close(encoder({"image": one}).tokens[:, :12], encoder({"image": other}).tokens[:, :12])
    last = encoder.blocks[0](torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0)))
    some = encoder.blocks[0](torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0)), last=2)
    torch.testing.assert_close(last[:, 4:], some)


def test_the_last_real_token_is_pooled(both):
    both["present/image/side"] = torch.tensor([True, False, True])
    found = make()(both)
    torch.testing.assert_close(found.pooled("last"), found.tokens[torch.arange(3), torch.tensor([23, 15, 23])])


def test_what_cannot_be(both):
    encoder = make()
    for batch, masks, words in (
        (
            {"text": images()},
            None,
            r"lacks the modality any of \['image', 'image/side'\].*has \['text'\].*at least one",
        ),
        (both, {"depth": images()}, "unknown modality of a mask 'depth'"),
        (both, {"image": torch.zeros(3, 9, dtype=torch.bool)}, r"bool with the shape \(3, 16\)"),
    ):
        with pytest.raises(MmsslError, match=words):
            encoder(batch, masks)
    for settings, words in (
        ({"views": ("a", "a")}, "different names"),
        ({"views": ("a.b",)}, "without a dot"),
    ):
        with pytest.raises(MmsslError, match=words):
            make(**settings)
    with pytest.raises(MmsslError, match="unknown modality 'image/far'"):
        encoder.tokenizer("image/far")
