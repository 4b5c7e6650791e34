"""Which of its modalities an encoder is given: some of those that it reads, and by default all that the data have too.

A name is a batch key: `image`, `depth`, `text`, or one camera `image/<camera>`. An encoder of several cameras also
reads `image` alone, as one view of no name.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmssl.encoder import Features
from mmssl.errors import MmsslError, unknown_name
from mmssl.evaluation.frames import FrameEncoder, is_image, is_video
from mmssl.training.asked import EXTRAS, text_encoding

_NO_INPUT = ("label", "index", "keys")


class ChosenEncoder(nn.Module):
    """An encoder that is shown some of its modalities alone, whatever else a batch holds.

    Args:
        encoder: anything that maps a batch to `Features`.
        modalities: batch keys that it is shown.
        asked: a user named them; False for what data and encoder share.
    """

    def __init__(self, encoder: nn.Module, modalities: Sequence[str], asked: bool = True):
        super().__init__()
        self.encoder, self.modalities, self.asked = encoder, tuple(modalities), asked

    @property
    def embed_dim(self) -> int:
        return self.encoder.embed_dim

    @property
    def tokenizers(self) -> nn.ModuleDict:
        return self.encoder.tokenizers

    @property
    def config(self) -> Any:
        return self.encoder.config

    @property
    def grids(self) -> dict[str, tuple[int, ...]]:
        return {name: self.encoder.tokenizer(name).grid for name in self.modalities}

    def forward(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None) -> Features:
        """Features of the chosen modalities."""
        return self.encoder(only(batch, self.modalities), masks)

    def check(self, batch: dict[str, Tensor]) -> None:
        """As `Encoder.check`, on the chosen modalities."""
        if hasattr(self.encoder, "check"):
            self.encoder.check(only(batch, self.modalities))


def only(batch: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """What belongs to some modalities in a batch: their inputs, the text's mask, and which rows have them."""
    kept = {key for name in names for key in (name, f"{name}_mask", f"present/{name}")}
    return {key: x for key, x in batch.items() if key in kept}


def bare(encoder: nn.Module) -> nn.Module:
    """The encoder itself, without what chooses its modalities or gives it clips frame by frame."""
    while isinstance(encoder, (ChosenEncoder, FrameEncoder)):
        encoder = encoder.encoder
    return encoder


def readable(encoder: nn.Module) -> tuple[str, ...]:
    """The names that an encoder can be told to read, in token order."""
    shared = getattr(encoder, "tokenizers", {})
    views = [name for name in shared if any(other.startswith(f"{name}/") for other in encoder.modalities)]
    return (*encoder.modalities, *views)


def in_order_of(encoder: nn.Module, wanted: Sequence[str]) -> tuple[str, ...]:
    """Chosen names, once each, in the encoder's order; an `MmsslError` for one that it does not read."""
    known = readable(encoder)
    for name in wanted:
        if name not in known:
            raise unknown_name("modality of this encoder", name, known)
    names = tuple(name for name in known if name in wanted)
    doubled = [name for name in names if any(other.startswith(f"{name}/") for other in names)]
    if doubled:
        raise MmsslError(f"{doubled[0]!r} is a view of no name; choose it, or the cameras {doubled[0]}/..., not both.")
    return names


class Choice(NamedTuple):
    """What an encoder is shown, and how the data are opened for it."""

    names: tuple[str, ...]
    fields: dict[str, Any]
    """Fields of `DataConfig`."""


def choose(
    encoder: nn.Module, open_data: Callable[..., Any], wanted: Sequence[str] = (), also: Sequence[str] = ()
) -> Choice:
    """The modalities of an encoder that the data have.

    Args:
        open_data: opens the data, `open_data(**fields)` with other fields of `DataConfig`.
        wanted: the modalities; without any, all that data and encoder share.
        also: planes that the data must give beside them, "depth" or "segmentation".

    Raises:
        MmsslError: a modality that the encoder or the data lack, or none that they share.
    """
    if not wanted:
        names = shared(encoder, open_data)
        return Choice(names, fields_for(encoder, names, also))
    names = in_order_of(encoder, wanted)
    fields = fields_for(encoder, names, also)
    dataset = open_data(**fields)
    has = given(dataset)
    for name in names:
        if name not in _as_read(has, names):
            raise unknown_name(f"modality of the data {dataset.name!r}", name, has)
    return Choice(names, fields)


def shared(encoder: nn.Module, open_data: Callable[..., Any]) -> tuple[str, ...]:
    """All that an encoder reads and the data have, each plane, camera and text tried by itself.

    Where these are cameras, its view of no name is left out; of clips an encoder of images reads the frames alone.
    """
    dataset, known = open_data(**fields_for(encoder, ())), readable(encoder)
    has = list(given(dataset))
    if getattr(dataset, "clip", None) is None or any(is_video(name) for name in known):
        has += [name for name in encoder.modalities if name not in has and name in _tried(encoder, open_data, name)]
        cameras = any("/" in name for name in encoder.modalities if name in has)
        names = [name for name in known if name in has and (name in encoder.modalities or not cameras)]
    else:
        names = [name for name in known if name in _as_read(has, [name]) and is_image(name)][:1]
    if not names:
        reads, gives = ", ".join(known), ", ".join(has)
        raise MmsslError(f"this encoder reads {reads} and the data {dataset.name!r} give {gives}: nothing of it.")
    return tuple(names)


def _tried(encoder: nn.Module, open_data: Callable[..., Any], name: str) -> tuple[str, ...]:
    """What the data give when they are asked for one modality: nothing where they cannot be opened so."""
    fields = fields_for(encoder, [name])
    if fields == fields_for(encoder, ()):
        return ()
    try:
        return given(open_data(**fields))
    except MmsslError:
        return ()


def _as_read(has: Sequence[str], names: Sequence[str]) -> list[str]:
    """What the data have, with the frames of clips as images where an encoder reads nothing but these."""
    frames = len(names) == 1 and is_image(names[0])
    return [*has, *("image" + name.removeprefix("video") for name in has if frames and name.startswith("video"))]


def given(dataset: Any) -> tuple[str, ...]:
    """The modalities in a dataset's batches, those that some rows lack included."""
    if len(dataset) == 0:
        raise MmsslError(f"the dataset {dataset.name!r} has no samples in this split.")
    batch = dataset.fetch(torch.tensor([0]))
    own = [key for key in batch if key not in _NO_INPUT and not key.startswith("present/")]
    return tuple(key for key in own if key.removesuffix("_mask") == key)


def fields_for(encoder: nn.Module, names: Sequence[str], also: Sequence[str] = ()) -> dict[str, Any]:
    """Fields of `DataConfig` with which data give these modalities, and the planes `also`."""
    kinds = [name.partition("/")[0] for name in (*names, *also)]
    cameras = dict.fromkeys(name.partition("/")[2] for name in names if "/" in name)
    fields: dict[str, Any] = {"extras": tuple(plane for plane in EXTRAS if plane in kinds)}
    fields["text"] = text_encoding(encoder, None) if "text" in kinds else None
    return fields | ({"cameras": tuple(cameras)} if cameras else {})


def label_of_inputs(label: str, names: Sequence[str]) -> str:
    """What a table calls a question that is put to some modalities; without any it stays as it is."""
    return f"{label}, {'+'.join(names)}" if names else label
