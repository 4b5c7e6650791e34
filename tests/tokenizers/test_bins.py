"""Vectors as tokens of single numbers in bins, against a slow version."""

import re

import pytest
import torch

from mmssl.errors import MmsslError
from mmssl.tokenizers.bins import BinsTokenizer, BinsTokenizerConfig

MEAN, STD = (1.0, -2.0), (0.5, 4.0)
SMALL = BinsTokenizerConfig(width=2, frames=3, mean=MEAN, std=STD, bins=8, limit=2.0)


def make(config=SMALL, positions="sincos_half"):
    torch.manual_seed(0)
    tokenizer = BinsTokenizer(config, "state", 6, positions)
    torch.nn.init.normal_(tokenizer.slot_embed)
    return tokenizer


def vectors(rows=4, steps=3):
    return 4 * torch.randn(rows, steps, 2, generator=torch.Generator().manual_seed(0))


def slow_bin(x: float, d: int) -> int:
    """Of eight bins of half a standard deviation each, from -2 to 2."""
    value = (x - MEAN[d]) / STD[d]
    for k in range(7):
        if value < -2 + 0.5 * (k + 1):
            return k
    return 7


def test_tokens_are_the_slow_ones():
    tokenizer, x = make(), vectors()
    target, tokens = tokenizer.target(x), tokenizer(x)
    assert target.shape == (4, 6, 8) and tokens.shape == (4, 6, 6)
    assert tokenizer.grid == (3, 2) and tokenizer.grid_of(x[:, :2]) == (2, 2)
    for row in range(4):
        for time in range(3):
            for d in range(2):
                k, place = slow_bin(float(x[row, time, d]), d), 2 * time + d
                assert target[row, place].argmax() == k and target[row, place].sum() == 1
                wanted = tokenizer.proj.weight[:, k] + tokenizer.proj.bias + tokenizer.slot_embed[0, 0, d]
                torch.testing.assert_close(tokens[row, place], wanted + tokenizer.pos_embed[0, place])
    assert torch.equal(tokenizer.pos_embed[0, 0], tokenizer.pos_embed[0, 1])  # of the time alone
    places = torch.tensor([[5, 0], [1, 1], [2, 3], [4, 4]])
    torch.testing.assert_close(tokenizer(x, places), tokens[torch.arange(4)[:, None], places])
    torch.testing.assert_close(tokenizer(x[:, :2]), tokens[:, :4])


def test_back_to_the_middle_of_the_bin():
    tokenizer, x = make(), vectors()
    back = tokenizer.picture(tokenizer.target(x))
    inside = ((x - torch.tensor(MEAN)) / torch.tensor(STD)).abs() < 2
    assert bool(((back - x).abs() / torch.tensor(STD))[inside].max() <= 0.25 + 1e-6)
    assert back.shape == x.shape and bool(inside.any() and (~inside).any())
    assert torch.equal(tokenizer.picture(5 * tokenizer.target(x) - 1), back)  # logits


def test_padding_and_another_length():
    tokenizer, x = make(), vectors()
    valid = torch.tensor([[True, True, False]] * 4)
    assert tokenizer.padding({"state": x, "valid": valid})[0].tolist() == [True] * 4 + [False] * 2
    assert tokenizer.padding({"state": x}) is None
    tokenizer.resize(BinsTokenizerConfig(width=2, frames=5, mean=MEAN, std=STD, bins=8, limit=2.0))
    assert tokenizer.grid == (5, 2) and tokenizer(vectors(steps=5)).shape == (4, 10, 6)
    assert make(positions="learned").pos_embed.shape == (1, 6, 6)


@pytest.mark.parametrize("settings", [{"bins": 1}, {"limit": 0.0}])
def test_wrong_settings(settings):
    with pytest.raises(MmsslError, match=re.escape("bins must be 2 or more and limit above 0")):
        BinsTokenizerConfig(width=2, **settings)
