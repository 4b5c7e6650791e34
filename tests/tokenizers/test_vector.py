"""Vectors as tokens, against a slow version of MTM's, and as one of an encoder's modalities."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from mmssl.config import from_dict, to_dict
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.evaluation.baselines import random_like
from mmssl.evaluation.frames import frames_of
from mmssl.tokenizers.base import TokenizerConfig
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.vector import VectorTokenizer, VectorTokenizerConfig, vector_tokenizers
from mmssl.weights.card import model_card

MEAN, STD = (1.0, -2.0, 0.0), (0.5, 4.0, 0.01)
SMALL = VectorTokenizerConfig(width=3, frames=4, mean=MEAN, std=STD)


def vectors(rows: int = 2, steps: int = 4, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, steps, 3, generator=torch.Generator().manual_seed(seed)) + 1


def slow(x: torch.Tensor, tokenizer: VectorTokenizer, dim: int) -> torch.Tensor:
    """One number at a time: standardised, through the linear layer, plus the sines and cosines of the time."""
    weight, bias = tokenizer.state_dict()["proj.weight"], tokenizer.state_dict()["proj.bias"]
    tokens = torch.zeros(*x.shape[:2], dim)
    for row in range(x.shape[0]):
        for time in range(x.shape[1]):
            for k in range(dim):
                value = bias[k]
                for d in range(3):
                    scale = STD[d] if STD[d] >= 0.1 else 1.0
                    value = value + weight[k, d] * (x[row, time, d] - MEAN[d]) / scale
                angle = time / 10000 ** ((k % (dim // 2)) / (dim // 2))
                tokens[row, time, k] = value + (math.sin(angle) if k < dim // 2 else math.cos(angle))
    return tokens


def test_tokens_are_the_slow_ones():
    torch.manual_seed(0)
    tokenizer = VectorTokenizer(SMALL, "proprio", 8)
    torch.nn.init.normal_(tokenizer.proj.bias)
    expected = slow(vectors(), tokenizer, 8)
    torch.testing.assert_close(tokenizer(vectors()), expected)
    places = torch.tensor([[3, 0], [1, 1]])
    torch.testing.assert_close(tokenizer(vectors(), places), expected[torch.arange(2)[:, None], places])
    torch.testing.assert_close(tokenizer(vectors()[:, :2]), expected[:, :2])  # shorter: the first places
    torch.testing.assert_close(tokenizer(vectors().double()), expected)
    assert tokenizer.grid == (4,) and tokenizer.grid_of(vectors()[:, :2]) == (2,)
    assert set(tokenizer.state_dict()) == {"mean", "std", "proj.weight", "proj.bias", "pos_embed"}
    assert not tokenizer.pos_embed.requires_grad


def test_there_and_back():
    tokenizer, x = VectorTokenizer(SMALL, "proprio", 8), vectors()
    goal = tokenizer.target(x)
    assert goal.shape == (2, 4, 3) and torch.equal(tokenizer.unpatchify(goal), tokenizer.prepare(x))
    torch.testing.assert_close(tokenizer.restore(tokenizer.prepare(x)), x)
    torch.testing.assert_close(tokenizer.picture(goal), x)
    torch.testing.assert_close(tokenizer.target(x, torch.tensor([[2], [0]]))[:, 0], goal[[0, 1], [2, 0]])


def test_statistics():
    tokenizer = VectorTokenizer(VectorTokenizerConfig(width=3, frames=4), "state", 8)
    assert torch.equal(tokenizer.prepare(vectors()), vectors())  # until they are known
    tokenizer.set_statistics(torch.tensor(MEAN).double(), torch.tensor(STD).double())
    assert tokenizer.std.tolist() == [0.5, 4.0, 1.0] and tokenizer.mean.tolist() == list(MEAN)
    exact = VectorTokenizerConfig(width=3, mean=MEAN, std=(0.5, 0.0, 0.01), min_std=0.0)
    torch.testing.assert_close(VectorTokenizer(exact, "state", 8).std, torch.tensor([0.5, 1.0, 0.01]))
    with pytest.raises(MmsslError, match=r"std of 'state' must have the shape \(3,\), got \(2,\); set width"):
        tokenizer.set_statistics(torch.zeros(3), torch.ones(2))


def test_other_positions():
    learned = VectorTokenizer(SMALL, "proprio", 8, "learned")
    assert learned.pos_embed.requires_grad and learned.pos_embed.shape == (1, 4, 8)
    assert VectorTokenizer(SMALL, "proprio", 8, "none").pos_embed.abs().max() == 0
    own = VectorTokenizer(SMALL, "proprio", 8).pos_embed
    assert torch.equal(VectorTokenizer(SMALL, "proprio", 8, "sincos_row").pos_embed, own)
    assert torch.equal(VectorTokenizer(SMALL, "proprio", 8, "sincos_half").pos_embed, own / 2)  # MTM
    assert not torch.equal(VectorTokenizer(SMALL, "proprio", 8, "sinusoid").pos_embed, own)
    with pytest.raises(MmsslError, match="vectors have 'sincos' or 'learned' ones"):
        VectorTokenizer(SMALL, "proprio", 8, "separable")


def both(type_embedding: bool = True, positions: str = "sincos", frames: int = 4) -> Encoder:
    torch.manual_seed(0)
    proprio = VectorTokenizerConfig(width=3, frames=frames, mean=MEAN, std=STD)
    tokenizers = {"image": ImageTokenizerConfig(image_size=8, patch_size=4), "proprio": proprio}
    return Encoder(EncoderConfig(tokenizers, 8, 2, 2, type_embedding=type_embedding, positions=positions)).eval()


def batch_of(rows: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (rows, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return {"image": image, "proprio": vectors(rows)}


def test_one_of_several_modalities():
    encoder, batch = both(), batch_of()
    encoder.check(batch)
    whole = encoder(batch)
    assert whole.grid == {"image": (2, 2), "proprio": (4,)} and whole.tokens.shape == (2, 8, 8)
    alone = encoder({"proprio": batch["proprio"][:, :3]})
    assert alone.tokens.shape == (2, 3, 8) and alone.index[0].tolist() == [4, 5, 6]
    assert encoder({"image": batch["image"]}).tokens.shape == (2, 4, 8)
    assert alone.map("proprio").shape == (2, 3, 8) and frames_of(encoder) is None  # its steps are no frames of clips
    masks = {"image": torch.tensor([[True, False, True, True]] * 2), "proprio": torch.tensor([[False, True] * 2] * 2)}
    seen = encoder(batch, masks)
    assert seen.index.tolist() == [[1, 4, 6]] * 2 and bool(seen.valid.all())
    other = batch | {"proprio": torch.where(masks["proprio"][..., None], 99.0, batch["proprio"])}
    assert torch.equal(encoder(other, masks).tokens, seen.tokens)


def test_padding_and_missing_rows():
    encoder, batch = both(), batch_of(3)
    valid = torch.arange(4) < torch.tensor([[4], [2], [4]])
    there = torch.tensor([True, True, False])
    given = batch | {"valid": valid, "present/proprio": there}
    assert torch.equal(encoder.valid(given)["proprio"], valid & there[:, None])
    other = given | {"proprio": torch.where((valid & there[:, None])[..., None], batch["proprio"], 7.0)}
    torch.testing.assert_close(encoder(given).cls, encoder(other).cls)
    shorter = encoder({"image": batch["image"][1:2], "proprio": batch["proprio"][1:2, :2]})
    torch.testing.assert_close(encoder(given).cls[1:2], shorter.cls)
    torch.testing.assert_close(encoder(given).cls[2:], encoder({"image": batch["image"][2:]}).cls)
    for wrong in (valid.int(), valid[:, :3]):
        with pytest.raises(MmsslError, match=r"'valid' must be bool with the shape \(3, 4\) of the time steps"):
            encoder(batch | {"valid": wrong})


def test_statistics_are_saved_with_the_weights(tmp_path):
    encoder = Encoder(EncoderConfig({"proprio": VectorTokenizerConfig(width=3, frames=4)}, 8, 1, 2)).eval()
    encoder.tokenizers["proprio"].set_statistics(torch.tensor(MEAN), torch.tensor(STD))
    encoder.save_pretrained(tmp_path)
    again = Encoder.from_pretrained(tmp_path)
    assert again.config == encoder.config and vector_tokenizers(again) == [again.tokenizers["proprio"]]
    assert torch.equal(again({"proprio": vectors()}).tokens, encoder({"proprio": vectors()}).tokens)
    assert again.tokenizers["proprio"].std.tolist() == [0.5, 4.0, 1.0]
    random = random_like(again).tokenizers["proprio"]  # what it is compared with sees the same
    assert torch.equal(random.prepare(vectors()), again.tokenizers["proprio"].prepare(vectors()))
    assert not torch.equal(random.proj.weight, again.tokenizers["proprio"].proj.weight)


def test_a_card_says_how_to_give_vectors(tmp_path):
    encoder = Encoder(EncoderConfig({"proprio": VectorTokenizerConfig(width=3, frames=4)}, 8, 1, 2)).eval()
    encoder.save_pretrained(tmp_path)
    card, names = model_card(encoder, {}, tmp_path, "mmssl", "mit"), {}
    assert "`proprio`: float32 (B, 1 to 4, 3) in raw units; standardised inside the encoder." in card
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
    assert names["features"].tokens.shape == (1, 4, 8) and "features.tokens      # (1, 4, 8)" in card


@pytest.mark.parametrize("positions", ["sincos", "learned", "sinusoid"])
def test_longer_sequences(positions):
    encoder, longer = both(positions=positions), both(positions=positions, frames=6)
    table = encoder.tokenizers["proprio"].pos_embed.clone()
    assert encoder.resize(frames=6) is encoder and encoder.config == longer.config
    now = encoder.tokenizers["proprio"]
    assert encoder({"proprio": vectors(steps=6)}).tokens.shape == (2, 6, 8)
    assert now.pos_embed.requires_grad == (positions == "learned")
    if positions == "learned":
        torch.testing.assert_close(now.pos_embed, F.interpolate(table.mT, 6, mode="linear").mT)
    else:
        assert torch.equal(now.pos_embed, longer.tokenizers["proprio"].pos_embed)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0], "'proprio' must be a torch tensor, got list"),
        (
            torch.zeros(2, 4, 3, dtype=torch.int64),
            r"must be float vectors, got torch.int64; convert it with .float\(\)",
        ),
        (torch.zeros(2, 5, 3), r"must have the shape \(batch, 1 to 4 time steps, 3\), got \(2, 5, 3\); set frames"),
        (torch.zeros(2, 0, 3), r"got \(2, 0, 3\)"),
        (torch.zeros(2, 3), r"got \(2, 3\)"),
        (torch.zeros(2, 4, 2), r"got \(2, 4, 2\); set frames and width of its tokenizer"),
        (torch.tensor([[[0.0, torch.nan, 1.0]]]), "holds NaN or infinite values"),
        (torch.tensor([[[0.0, -torch.inf, 1.0]]]), "holds NaN or infinite values"),
    ],
)
def test_wrong_input(x, message):
    with pytest.raises(MmsslError, match=message):
        VectorTokenizer(SMALL, "proprio", 8).check(x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "lacks the key 'width'"),
        ({"width": 0}, "width 0 and frames 1 of vectors must be 1 or more"),
        ({"width": 3, "frames": 0}, "width 3 and frames 0"),
        ({"width": 3, "min_std": -1}, "min_std must be 0 or more, got -1"),
        ({"width": 3, "mean": [0, 0, 0]}, "give both mean and std of the vectors, or neither"),
        ({"width": 3, "mean": [0, 0], "std": [1, 1, 1]}, r"mean has 2 numbers and vectors have 3 \(width\)"),
        ({"width": 1, "mean": [0], "std": [-1]}, "std must be 0 or more in each dimension"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(MmsslError, match=message):
        from_dict(TokenizerConfig, {"name": "vector", **settings})


def test_settings_are_plain_values():
    assert from_dict(TokenizerConfig, to_dict(SMALL)) == SMALL
