"""Texts to ids and back: bytes against a slow version, transformers' tokenizers against themselves."""

import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.data import text as text_data
from mmssl.data.text import BOS, EOS, TextEncoding, text_encoder
from mmssl.errors import MmsslError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "on", "mat", "##s", ".", "[MASK]"]


def slow_bytes(text: str | None, length: int, special: bool) -> list[int]:
    """Whole characters as long as there is room, one after the other."""
    ids = []
    for character in text or "":
        encoded = [b + 1 for b in character.encode("utf-8", "replace")]
        if len(ids) + len(encoded) > length - 2 * special:
            break
        ids += encoded
    return [BOS, *ids, EOS] if special and text is not None else ids


@settings(deadline=None, max_examples=80)
@given(
    texts=st.lists(st.none() | st.text(st.characters(codec=None), max_size=12), max_size=5),
    length=st.integers(3, 14),
    special=st.booleans(),
)
def test_bytes_are_the_slow_ones(texts, length, special):
    encoder = text_encoder(TextEncoding(length=length, special=special))
    ids, mask = encoder(texts)
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool and ids.shape == mask.shape == (len(texts), length)
    for row, text in enumerate(texts):
        expected = slow_bytes(text, length, special)
        assert ids[row][mask[row]].tolist() == expected and not ids[row][~mask[row]].any()
        assert mask[row].tolist() == [k < len(expected) for k in range(length)]
    whole = [text.encode("utf-8", "replace").decode() if text else "" for text in texts]
    cut = [len(text.encode()) > length - 2 * special for text in whole]
    assert encoder.cut == sum(cut)
    for text, back, shorter in zip(whole, encoder.decode(ids), cut, strict=True):
        assert text.startswith(back) if shorter else back == text


def test_bytes_that_are_no_text_are_decoded_too():
    encoder = text_encoder(TextEncoding(length=5))
    assert encoder.vocab_size == 259
    ids = torch.tensor([[0xC3 + 1, 0, 0, 0, 0], [BOS, 98, EOS, 99, 0], [98, 0, 99, 0, 0]])
    assert encoder.decode(ids) == ["\ufffd", "a", "ab"]
    with pytest.raises(MmsslError, match=r"the ids 0 to 259 do not lie in 0\.\.258"):
        encoder.decode(torch.tensor([[0, 259]]))


def test_a_long_text_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(text_data, "_TOLD", set())
    encoder = text_encoder(TextEncoding(length=4))
    encoder(["four", "five5", None])
    encoder(["much longer than that"])
    text_encoder(TextEncoding(length=4))(["another encoder"])
    assert encoder.cut == 2
    assert [r.message for r in caplog.records] == [
        "texts of more than 4 tokens are cut there (1 so far); a larger text.length keeps more"
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A WordPiece tokenizer of a few words, in the files of transformers."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder


@pytest.mark.parametrize("special", [False, True])
def test_a_folder_of_transformers(folder, special):
    from transformers import BertTokenizer

    encoder = text_encoder(TextEncoding(str(folder), 5, special))
    texts = ["A cat", "cats on a mat .", "dog", "a cat on a mat on a mat"]
    ids, mask = encoder([*texts, None])
    oracle = BertTokenizer.from_pretrained(str(folder))
    options = {"truncation": True, "max_length": 5, "padding": "max_length", "return_tensors": "pt"}
    theirs = oracle(texts, add_special_tokens=special, **options)
    assert torch.equal(ids[:4], theirs["input_ids"]) and torch.equal(mask[:4], theirs["attention_mask"].bool())
    assert not mask[4].any() and not ids[4].any()
    assert encoder.vocab_size == len(WORDS) and encoder.encoding.special == special
    assert encoder.cut == sum(len(row) > 5 for row in oracle(texts, add_special_tokens=special)["input_ids"]) == 2
    assert encoder.decode(ids)[0] == "a cat" and encoder.decode(ids)[4] == ""
    assert encoder([])[0].shape == (0, 5)


def test_a_vocabulary_without_padding(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "sat": 2}, unk_token="the"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    encoder = text_encoder(TextEncoding(str(tmp_path), 4))
    ids, mask = encoder(["the cat", "sat the cat sat", None])
    assert ids.tolist() == [[0, 1, 0, 0], [2, 0, 1, 2], [0] * 4] and mask.sum(1).tolist() == [2, 4, 0]
    assert encoder.decode(ids) == ["the cat", "sat the cat sat", ""]


def test_tokenizers_that_cannot_be_had(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(MmsslError, match=r"there is no transformers tokenizer '.*'.*give bytes, or a folder"):
        text_encoder(TextEncoding(str(tmp_path)))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MmsslError, match=r"the text vocabulary 'bert-base-uncased' needs transformers; install it"):
        text_encoder(TextEncoding("bert-base-uncased"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "text.length must be 1 tokens or more, got 0"),
        ({"length": 2, "special": True}, "text.length must be 3 tokens or more, got 2"),
        ({"vocabulary": ""}, "text.vocabulary must be bytes, or the name or folder"),
    ],
)
def test_wrong_encodings(arguments, message):
    with pytest.raises(MmsslError, match=message):
        TextEncoding(**arguments)
