"""Start a new run from weights (`--init`)."""

from pathlib import Path

from torch import Tensor

from mmssl.encoder import Encoder, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.base import Method
from mmssl.weights.load import load, load_method
from mmssl.weights.shared import load_shared, size_of

# Settings that change what the weights compute, and that their shapes do not show.
_UNSEEN = ("heads", "gelu", "norm")


def load_into(method: Method, source: str | Path, shared_only: bool = False) -> str:
    """Start `method` from the weights of `source`, in place.

    All weights are taken where the source holds the same method in the same size, else those of its encoder alone;
    where only the image size or the number of frames or mel bins differs, position tables are interpolated (of sound:
    cut or continued, where the length alone differs), and those that are a formula (VideoMAE's) stay the method's own.

    Args:
        method: a method with fresh weights.
        source: whatever `mmssl.load` or `mmssl.load_method` reads.
        shared_only: where the modalities differ, take what both have (`mmssl.weights.shared`); else they must not.

    Returns:
        One sentence on what was taken, and with `shared_only` on what was left.

    Raises:
        MmsslError: the source cannot be read, or its encoder is of another size or kind.
    """
    other = _method_or_none(source)
    if other is not None and _same(other, method):
        load_strictly(method, other.state_dict() | _formulas(method), str(source))
        return f"took all weights of {method.config.name!r} from {source}"
    encoder = load(source) if other is None else other.encoder
    if shared_only and not _alike(encoder, method.encoder):
        _check_unseen(encoder, method.encoder, str(source))
        said = load_shared(method, encoder if other is None else other, str(source))
        method.after_init()
        return said
    load_encoder_into(method.encoder, encoder, str(source))
    method.after_init()
    return f"took the encoder's weights from {source}; the rest of {method.config.name!r} starts anew"


def load_encoder_into(encoder: Encoder, other: Encoder, source: str) -> None:
    """Copy the weights of `other` into `encoder`; raises an `MmsslError` where they do not fit."""
    if not _alike(other, encoder):
        raise MmsslError(
            f"{source} holds a model of {', '.join(other.tokenizers)}, and this is one of "
            f"{', '.join(encoder.tokenizers)}: {_difference(other, encoder)}; with --init-shared in place of --init "
            "what both have is loaded."
        )
    one_each = len(other.modalities) == len(encoder.modalities) == 1
    if one_each:
        _check_kind(other.modalities[0], encoder.modalities[0], source)
    _check_unseen(other, encoder, source)
    state = other.state_dict()
    if one_each:
        theirs, ours = other.modalities[0], encoder.modalities[0]  # `image` fits `image/<camera>`
        size = size_of(encoder.tokenizers[ours].config)
        if size and size.keys() == size_of(other.tokenizers[theirs].config).keys():
            state = other.resize(**size).state_dict()
        state = {k.replace(f"tokenizers.{theirs}.", f"tokenizers.{ours}.", 1): v for k, v in state.items()}
    load_strictly(encoder, state, source)


def _alike(other: Encoder, encoder: Encoder) -> bool:
    """Whether both read the same modalities, or one each (of which `image` fits `image/<camera>`)."""
    return set(other.tokenizers) == set(encoder.tokenizers) or len(other.tokenizers) == len(encoder.tokenizers) == 1


def _difference(other: Encoder, encoder: Encoder) -> str:
    """What each of the two reads that the other one does not, in words."""
    more, fewer = ([name for name in a.tokenizers if name not in b.tokenizers] for a, b in
                   ((other, encoder), (encoder, other)))  # fmt: skip
    words = [f"this model has no {' and no '.join(more)}"] if more else []
    return " and ".join(words + ([f"the source has no {' and no '.join(fewer)}"] if fewer else []))


def _check_unseen(other: Encoder, encoder: Encoder, source: str) -> None:
    for name in _UNSEEN:
        if getattr(other.config, name) != getattr(encoder.config, name):
            raise MmsslError(
                f"{source} has {name} {getattr(other.config, name)!r}, this model {getattr(encoder.config, name)!r}: "
                "the weights would fit and compute something else; change the recipe's."
            )


def _check_kind(theirs: str, ours: str, source: str) -> None:
    theirs, ours = (modality.split("/")[0] for modality in (theirs, ours))
    if theirs != ours:
        raise MmsslError(
            f"{source} holds a model of {theirs}, and this is a model of {ours}, whose patches are others; start it "
            f"from weights of a model of {ours}."
        )


def _formulas(method: Method) -> dict[str, Tensor]:
    """Position tables of a method that are a formula of their places, and never interpolated."""
    fixed = method.encoder.config.positions == "sinusoid"
    return {k: v for k, v in method.state_dict().items() if fixed and k.endswith(".pos_embed")}


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
    theirs, ours = (
        {name: value.shape for name, value in m.state_dict().items() if name not in _formulas(m)}
        for m in (other, method)
    )
    return (
        theirs == ours
        and all(getattr(other.encoder.config, name) == getattr(method.encoder.config, name) for name in _UNSEEN)
        and _heads(other) == _heads(method)
    )


def _heads(method: Method) -> dict[str, int]:
    """Numbers of attention heads of all layers, which their shapes do not show."""
    return {name: m.heads for name, m in method.named_modules() if isinstance(getattr(m, "heads", None), int)}
