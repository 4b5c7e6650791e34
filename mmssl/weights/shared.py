"""What two models have in common, where one of them reads other modalities than the other (`--init-shared`)."""

import re
from typing import Any

from torch import Tensor

from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.methods.base import Method
from mmssl.tokenizers.base import TokenizerConfig
from mmssl.weights.naming import listed

_MANY = 30  # parts that are listed


def load_shared(method: Method, other: Method | Encoder, source: str) -> str:
    """Give `method` the weights that `other` has too, in place; `other` may be resized.

    The encoder's blocks must fit. Beside them each part is taken whole or not at all: the tokenizer of a modality, and,
    of the same method, what else it is made of (the decoder of a task; of it the vectors of modalities one by one).

    Returns:
        One sentence on what was taken, what of the source was left, and what starts anew.

    Raises:
        MmsslError: the blocks differ, or there is no modality that both have.
    """
    theirs, ours = _state(other, method), method.state_dict()
    common = [name for name in method.encoder.tokenizers if name in _encoder(other).tokenizers]
    if not common:
        raise MmsslError(
            f"{source} holds a model of {', '.join(_encoder(other).tokenizers)} and this is one of "
            f"{', '.join(method.encoder.tokenizers)}: no modality is shared."
        )
    differs = {_part(k) for k in ours.keys() | theirs.keys() if not _fits(ours.get(k), theirs.get(k))}
    if "blocks" in differs:
        raise MmsslError(f"{source} is of another size: the blocks of its encoder do not fit this model.")
    taken = {name: value for name, value in theirs.items() if _part(name) not in differs}
    method.load_state_dict(ours | taken)
    left, anew = ({_part(name) for name in state} & differs for state in (theirs, ours))
    words = f"took {listed({_part(name) for name in taken}, _MANY)} from {source}"
    return "; ".join(
        [words]
        + ([f"left there: {listed(left, _MANY)}"] if left else [])
        + ([f"these start anew: {listed(anew, _MANY)}"] if anew else [])
    )


def size_of(config: TokenizerConfig) -> dict[str, Any]:
    """What `Encoder.resize` can change of a tokenizer."""
    return {name: getattr(config, name) for name in ("image_size", "frames", "mel_bins") if hasattr(config, name)}


def _encoder(model: Method | Encoder) -> Encoder:
    return model if isinstance(model, Encoder) else model.encoder


def _state(other: Method | Encoder, method: Method) -> dict[str, Tensor]:
    """Weights of the source for the sizes of this method: all of the same method, of others those of the encoder."""
    encoder = _encoder(other)
    for name in method.encoder.tokenizers:
        size = size_of(method.encoder.tokenizers[name].config)
        if name in encoder.tokenizers and size != size_of(encoder.tokenizers[name].config):
            encoder.resize(**size)
    if isinstance(other, Method) and other.config.name == method.config.name:
        return other.state_dict()
    return {f"encoder.{name}": value for name, value in encoder.state_dict().items()}


def _fits(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape


def _part(name: str) -> str:
    """The part of a model that a tensor belongs to, which is taken whole or not at all."""
    name = name.removeprefix("encoder.")
    if ".task_embed." in name or name.startswith("type_embed."):
        return name
    match = re.match(r"(tokenizers|targets|decoders)\.[^.]+", name)
    return match[0] if match else name.split(".")[0]
