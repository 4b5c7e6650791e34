"""Start a new run from weights (`--init`)."""

from dataclasses import fields
from pathlib import Path

from mmssl.encoder import Encoder, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.base import Method
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.weights.load import load, load_method

# Settings that change what the weights compute, and that their shapes do not show.
_UNSEEN = ("heads", "gelu", "norm")


def load_into(method: Method, source: str | Path) -> str:
    """Start `method` from the weights of `source`, in place.

    All weights are taken where the source holds the same method in the same size, else those of its encoder alone;
    position tables are interpolated where only the image size differs.

    Args:
        method: a method with fresh weights.
        source: whatever `mmssl.load` or `mmssl.load_method` reads.

    Returns:
        One sentence on what was taken.

    Raises:
        MmsslError: the source cannot be read, or its encoder is of another size or kind.
    """
    other = _method_or_none(source)
    if other is not None and _same(other, method):
        load_strictly(method, other.state_dict(), str(source))
        return f"took all weights of {method.config.name!r} from {source}"
    load_encoder_into(method.encoder, load(source) if other is None else other.encoder, str(source))
    return f"took the encoder's weights from {source}; the rest of {method.config.name!r} starts anew"


def load_encoder_into(encoder: Encoder, other: Encoder, source: str) -> None:
    """Copy the weights of `other` into `encoder`; raises an `MmsslError` where they do not fit."""
    for name in _UNSEEN:
        if getattr(other.config, name) != getattr(encoder.config, name):
            raise MmsslError(
                f"{source} has {name} {getattr(other.config, name)!r}, this model {getattr(encoder.config, name)!r}: "
                "the weights would fit and compute something else; change the recipe's."
            )
    state = other.state_dict()
    if len(other.modalities) == len(encoder.modalities) == 1:
        theirs, ours = other.modalities[0], encoder.modalities[0]  # `image` fits `image/<camera>`
        config = encoder.tokenizers[ours].config
        if isinstance(config, ImageTokenizerConfig) and isinstance(
            other.tokenizers[theirs].config, ImageTokenizerConfig
        ):
            state = other.resize(config.image_size).state_dict()
        state = {k.replace(f"tokenizers.{theirs}.", f"tokenizers.{ours}.", 1): v for k, v in state.items()}
    load_strictly(encoder, state, source)


def _method_or_none(source: str | Path) -> Method | None:
    """The whole method, where the source holds one; what is wrong with a source that holds nothing, `load` says."""
    try:
        return load_method(source)
    except MmsslError:
        return None


def _same(other: Method, method: Method) -> bool:
    """Same method with the same shapes and numbers of heads."""
    if other.config.name != method.config.name:
        return False
    heads = [f.name for f in fields(method.config) if f.name.endswith("heads") and f.name != "heads"]
    theirs = {name: value.shape for name, value in other.state_dict().items()}
    return (
        theirs == {name: value.shape for name, value in method.state_dict().items()}
        and all(getattr(other.encoder.config, name) == getattr(method.encoder.config, name) for name in _UNSEEN)
        and all(getattr(other.config, name) == getattr(method.config, name) for name in heads)
    )
