"""Texts as tokens, against torch.nn.Embedding and a slow sine-cosine table."""

import math

import pytest
import torch

from mmssl.data import text as text_data
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.tokenizers import text as text_tokens
from mmssl.tokenizers.text import TextTokenizer, TextTokenizerConfig, text_tokenizer

SMALL = TextTokenizerConfig(vocabulary="toy", vocab_size=11, length=6)


def slow_sincos(places: int, dim: int) -> torch.Tensor:
    """sin block, then cos block, one number at a time."""
    table = torch.zeros(places, dim)
    for place in range(places):
        for k in range(dim // 2):
            angle = place / 10000 ** (k / (dim // 2))
            table[place, k], table[place, dim // 2 + k] = math.sin(angle), math.cos(angle)
    return table


def ids(rows: int = 3, length: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 11, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_tokens_are_rows_of_an_embedding_plus_sincos():
    tokenizer = TextTokenizer(SMALL, "text", 8)
    table = torch.nn.Embedding(11, 8)
    table.load_state_dict({"weight": tokenizer.state_dict()["embedding.weight"]})
    expected = table(ids()) + slow_sincos(6, 8)
    torch.testing.assert_close(tokenizer(ids()), expected)
    places = torch.tensor([[5, 0], [1, 1], [2, 4]])
    rows = torch.arange(3)[:, None]
    torch.testing.assert_close(tokenizer(ids(), places), expected[rows, places])
    torch.testing.assert_close(tokenizer(ids()[:, :4]), expected[:, :4])
    assert tokenizer.grid == (6,) and tokenizer.grid_of(ids()[:, :4]) == (4,)
    assert not tokenizer.pos_embed.requires_grad and tokenizer.embedding.weight.requires_grad
    assert set(tokenizer.state_dict()) == {"embedding.weight", "pos_embed"}


def test_targets_are_ids():
    tokenizer = TextTokenizer(SMALL, "text", 8)
    assert torch.equal(tokenizer.target(ids()), ids())
    places = torch.tensor([[5], [0], [2]])
    assert tokenizer.target(ids(), places).flatten().tolist() == [ids()[0, 5], ids()[1, 0], ids()[2, 2]]
    assert torch.equal(tokenizer.picture(ids()), ids())


def test_vectors_begin_standard_normal():
    weight = TextTokenizer(TextTokenizerConfig(), "text", 512).embedding.weight
    assert weight.shape == (259, 512) and abs(weight.std() - 1) < 0.01 and abs(weight.mean()) < 0.01
    narrow = TextTokenizer(TextTokenizerConfig(embed_std=0.02), "text", 512).embedding.weight
    assert abs(narrow.std() - 0.02) < 0.001


def test_other_positions():
    learned = TextTokenizer(SMALL, "text", 8, "learned")
    assert learned.pos_embed.requires_grad and learned.pos_embed.shape == (1, 6, 8)
    assert TextTokenizer(SMALL, "text", 8, "none").pos_embed.abs().max() == 0
    for same in ("sincos_row", "sincos_swapped"):
        assert torch.equal(
            TextTokenizer(SMALL, "text", 8, same).pos_embed[0], TextTokenizer(SMALL, "text", 8).pos_embed[0]
        )
    with pytest.raises(MmsslError, match=r"texts have 'sincos' or 'learned' ones"):
        TextTokenizer(SMALL, "text", 8, "separable")


def test_padding_is_the_mask_of_the_batch():
    tokenizer = TextTokenizer(SMALL, "text/subtitle", 8)
    mask = torch.rand(3, 6) < 0.5
    assert tokenizer.padding({"text/subtitle": ids(), "text/subtitle_mask": mask}) is mask
    assert tokenizer.padding({"text/subtitle": ids()}) is None
    for wrong in (mask.int(), mask[:, :5]):
        with pytest.raises(MmsslError, match=r"'text/subtitle_mask' must be bool with the shape \(3, 6\)"):
            tokenizer.padding({"text/subtitle": ids(), "text/subtitle_mask": wrong})


def test_padding_never_reaches_the_encoder():
    encoder = Encoder(EncoderConfig({"text": SMALL}, dim=8, depth=2, heads=2)).eval()
    mask = torch.arange(6) < torch.tensor([[6], [3], [1]])
    other = torch.where(mask, ids(), ids(seed=1))
    first, second = (encoder({"text": x, "text_mask": mask}) for x in (ids(), other))
    torch.testing.assert_close(first.cls, second.cls)
    torch.testing.assert_close(first.tokens[mask], second.tokens[mask])
    shorter = encoder({"text": ids()[1:2, :3], "text_mask": mask[1:2, :3]})
    torch.testing.assert_close(shorter.cls, first.cls[1:2])
    assert text_tokenizer(encoder) is encoder.tokenizers["text"] and text_tokenizer(torch.nn.Linear(1, 1)) is None


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (["a cat"], "must be a torch tensor of ids, got list; encode strings"),
        (torch.zeros(2, 6), "must be int64 ids, got torch.float32"),
        (torch.zeros(2, 7, dtype=torch.int64), r"must have the shape \(batch, 1 to 6 tokens\), got \(2, 7\)"),
        (torch.zeros(2, 0, dtype=torch.int64), r"must have the shape \(batch, 1 to 6 tokens\), got \(2, 0\)"),
        (torch.zeros(6, dtype=torch.int64), r"must have the shape \(batch, 1 to 6 tokens\), got \(6,\)"),
        (torch.tensor([[0, 11]]), "holds ids from 0 to 11, but the vocabulary 'toy' has the ids 0 to 10"),
        (torch.tensor([[-1, 3]]), "holds ids from -1 to 3"),
    ],
)
def test_wrong_input(x, message):
    with pytest.raises(MmsslError, match=message):
        TextTokenizer(SMALL, "text", 8).check(x)


def test_there_are_no_patches():
    tokenizer = TextTokenizer(SMALL, "text", 8)
    for what in ("patchify", "unpatchify", "restore"):
        with pytest.raises(MmsslError, match=f"'text' is made of ids and has no patches to {what}"):
            getattr(tokenizer, what)(ids())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length 0 must be positive"),
        ({"vocab_size": 258}, "the vocabulary bytes has 259 ids, vocab_size is 258"),
        ({"embed_std": -1.0}, "embed_std must be 0 or more"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(MmsslError, match=message):
        TextTokenizerConfig(**settings)


def test_data_and_tokenizer_speak_of_the_same_bytes():
    """They may not import one another."""
    assert (text_data.BYTES, text_data.BYTE_VOCABULARY) == (text_tokens.BYTES, text_tokens.BYTE_VOCABULARY)
    theirs, ours = text_data.TextEncoding(), TextTokenizerConfig()
    assert (theirs.vocabulary, theirs.length, theirs.special) == (ours.vocabulary, ours.length, ours.special)
