"""What a method's tokenizer of texts asks of the data."""

import json

import pytest
import torch

from mmssl import open_dataset
from mmssl.config import from_dict
from mmssl.data import text as text_data
from mmssl.data.text import TextEncoding
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.text import TextTokenizerConfig
from mmssl.training.asked import check_vocabulary, text_encoding
from mmssl.training.pretrain import PretrainConfig, pretrain


def encoder_of(**text) -> Encoder:
    tokenizers = {"image": ImageTokenizerConfig(image_size=8, patch_size=4), "text": TextTokenizerConfig(**text)}
    return Encoder(EncoderConfig(tokenizers, dim=8, depth=1, heads=2))


def test_the_method_says_how_texts_are_encoded():
    model = torch.nn.ModuleDict({"tower": encoder_of(length=12, special=True)})  # a method with towers
    assert text_encoding(model, None) == TextEncoding("bytes", 12, True)
    shorter = TextEncoding("bytes", 10, True)
    assert text_encoding(model, shorter) is shorter
    pictures = Encoder(EncoderConfig({"image": ImageTokenizerConfig(image_size=8, patch_size=4)}, 8, 1, 2))
    assert text_encoding(pictures, None) is None and text_encoding(pictures, shorter) is shorter


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            TextEncoding("bert", 12),
            "data.text.vocabulary is 'bert' and the method's tokenizer has 'bytes'; set them alike",
        ),
        (TextEncoding("bytes", 12, True), "data.text.special is True and the method's tokenizer has False"),
        (TextEncoding("bytes", 13), "data.text.length is 13 and the method reads 12 tokens; lower the first"),
    ],
)
def test_a_recipe_that_contradicts_the_method(given, message):
    with pytest.raises(MmsslError, match=message):
        text_encoding(encoder_of(length=12), given)


def test_the_vocabulary_of_the_data_fits_the_method(tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    (words / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (words / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (words / "config.json").write_text(json.dumps({"model_type": "bert"}))
    large, small = (encoder_of(vocabulary=str(words), vocab_size=size) for size in (6, 5))
    dataset = open_dataset("samples", image_size=8, text=text_encoding(large, None))
    check_vocabulary(large, dataset)
    large.check(dataset.fetch(torch.arange(4)))
    with pytest.raises(MmsslError, match=r"has 6 ids and the method's vocab_size is 5; set vocab_size to 6"):
        check_vocabulary(small, dataset)


def test_pretraining_reads_texts_as_the_method_does(tmp_path, capsys, caplog, monkeypatch):
    """The captions of the samples have more than 10 tokens: the run goes on, and says so."""
    monkeypatch.setattr(text_data, "_TOLD", set())
    monkeypatch.setattr("mmssl.training.pretrain._finish", lambda *_: None)  # no report: that is tested elsewhere
    method = {"name": "clip", "size": "custom", "dim": 8, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8}
    method |= {"text_dim": 8, "text_depth": 1, "text_heads": 2, "text_length": 10}
    recipe = {
        "method": method,
        "loop": {"steps": 2, "batch_size": 4, "workers": 1, "device": "cpu"},
        "data": {"source": ["samples"]},
    }
    pretrain(from_dict(PretrainConfig, recipe), tmp_path / "run")
    assert sum("texts of more than 10 tokens are cut there" in record.message for record in caplog.records) == 1
    said = capsys.readouterr().err
    assert "texts were cut 9 times: they have more than 10 tokens" in said  # that of the check, and 2 batches of 4
