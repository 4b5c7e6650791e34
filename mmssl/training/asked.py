"""What a method's tokenizers ask of the data, where a recipe does not say it."""

from torch import nn

from mmssl.data.loading import Dataset
from mmssl.data.text import TextEncoding
from mmssl.errors import MmsslError
from mmssl.tokenizers.text import text_tokenizer


def text_encoding(model: nn.Module, given: TextEncoding | None) -> TextEncoding | None:
    """How texts are encoded for a method or an encoder: as the recipe says, else as its tokenizer does.

    As it is given for a model that reads no text. Raises an `MmsslError` where the recipe's ids do not mean what the
    tokenizer's mean, or a row has more of them than it reads.
    """
    tokenizer = text_tokenizer(model)
    if tokenizer is None:
        return given
    config = tokenizer.config
    wanted = TextEncoding(config.vocabulary, config.length, config.special)
    if given is None:
        return wanted
    for name in ("vocabulary", "special"):
        if getattr(given, name) != getattr(wanted, name):
            raise MmsslError(
                f"data.text.{name} is {getattr(given, name)!r} and the method's tokenizer has "
                f"{getattr(wanted, name)!r}; set them alike, or leave out data.text."
            )
    if given.length > wanted.length:
        raise MmsslError(
            f"data.text.length is {given.length} and the method reads {wanted.length} tokens; lower the first, or "
            "raise the second."
        )
    return given


def check_vocabulary(model: nn.Module, dataset: Dataset) -> None:
    """An `MmsslError` where a dataset's ids go beyond the vocabulary of a model."""
    tokenizer, encoder = text_tokenizer(model), dataset.text_encoder
    if tokenizer is None or encoder is None or encoder.vocab_size <= tokenizer.config.vocab_size:
        return
    raise MmsslError(
        f"the vocabulary {encoder.encoding.vocabulary!r} has {encoder.vocab_size} ids and the method's vocab_size is "
        f"{tokenizer.config.vocab_size}; set vocab_size to {encoder.vocab_size}."
    )
