"""The families of published weights, and which of them a file or folder is of.

A new one is one file that knows its names, and an entry in `LAYOUTS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.methods.base import Method
from mmssl.weights import (
    audiomae,
    clip,
    huggingface,
    m3ae,
    mtm,
    multimae,
    official,
    r3m,
    siammae,
    stmae,
    videomae,
    videomae_transformers,
)
from mmssl.weights.files import State, read_json, read_state
from mmssl.weights.layout import Facts, Published
from mmssl.weights.naming import listed


@dataclass(frozen=True)
class Layout:
    """One family of published weights: how its files are told from others, and what is made of them."""

    name: str
    """As messages call it."""
    recognise: Callable[[State], bool]
    """Whether tensors are of this family, by their names and shapes."""
    read: Callable[[State, dict[str, Any], Path], tuple[State, dict[str, Any]]]
    """Tensors, training arguments and path of a file -> tensors under the common names (layout.py), and the `Facts`
    that the file tells."""
    encoder: Callable[[Published], Encoder]
    method: Callable[[Published], Method]
    folder: Callable[[Path], Published] | None = None
    """Reads a folder of transformers'."""
    model_types: tuple[str, ...] = ()
    """What the config.json of such a folder calls itself."""
    modality: str = "image"
    """What its encoders read."""
    sure: Callable[[State, dict[str, Any], dict[str, Any]], bool] = lambda state, arguments, said: True
    """Where another modality has the same names and shapes: whether tensors, training arguments, and what the user says
    (fields of `Facts`) are of this one."""


LAYOUTS = (
    Layout(
        "the VideoMAE authors'",
        recognise=videomae.is_videomae_layout,
        read=videomae_transformers.read_any_file,
        encoder=videomae.build_encoder,
        method=videomae.build_videomae,
        folder=videomae_transformers.read_folder_of,
        model_types=("videomae",),
        modality="video",
    ),
    Layout(
        "the ST-MAE authors' and PySlowFast's ViT",
        recognise=stmae.is_stmae_layout,
        read=stmae.read_file,
        encoder=stmae.build_encoder,
        method=stmae.build_stmae,
        modality="video",
    ),
    Layout(
        "CropMAE's and SiamMAE",
        recognise=siammae.is_siammae_layout,
        read=siammae.read_file,
        encoder=official.build_encoder,
        method=siammae.build_siammae,
    ),
    Layout(
        "the MultiMAE authors'",
        recognise=multimae.is_multimae_layout,
        read=multimae.read_file,
        encoder=multimae.build_encoder,
        method=multimae.build_multimae,
    ),
    Layout(
        "the M3AE authors'",
        recognise=m3ae.is_m3ae_layout,
        read=m3ae.read_file,
        encoder=m3ae.build_encoder,
        method=m3ae.build_m3ae,
    ),
    Layout(
        "the MTM authors'",
        recognise=mtm.is_mtm_layout,
        read=mtm.read_file,
        encoder=mtm.build_encoder,
        method=mtm.build_mtm,
        modality="state",
    ),
    Layout(
        "the Audio-MAE authors'",
        recognise=audiomae.is_audiomae_layout,
        sure=audiomae.says_audio,
        read=audiomae.read_file,
        encoder=audiomae.build_encoder,
        method=audiomae.build_audiomae,
        modality="audio",
    ),
    Layout(
        "the MAE authors' and timm's ViT",
        recognise=huggingface.is_vit_layout,
        read=huggingface.read_any_file,
        encoder=official.build_encoder,
        method=official.build_mae,
        folder=huggingface.read_transformers,
        model_types=("vit_mae", "vit"),
    ),
    Layout(
        "R3M's and torchvision's ResNet",
        recognise=r3m.is_resnet_layout,
        read=r3m.read_file,
        encoder=r3m.build_encoder,
        method=r3m.build_r3m,
    ),
    Layout(
        "CLIP's",
        recognise=clip.has_image_tower,
        read=clip.read_file,
        encoder=clip.build_image_tower,
        method=clip.build_clip,
        folder=clip.read_folder_of,
        model_types=("clip", "clip_vision_model"),
    ),
    Layout(
        "CLIP's text tower",
        recognise=clip.has_text_tower,
        read=clip.read_file,
        encoder=clip.build_text_tower,
        method=clip.no_text_method,
        folder=partial(clip.read_folder_of, tower="text"),
        model_types=("clip", "clip_text_model"),
        modality="text",
    ),
)
"""The first that recognises a file reads it."""

MODEL_TYPES = tuple(dict.fromkeys(t for layout in LAYOUTS for t in layout.model_types))
"""transformers' kinds of models that can be read, as their config.json calls them."""


def read_published_file(path: Path, modality: str | None = None, **said: Any) -> tuple[Layout, Published]:
    """Weights of one file and the family that it is of, by its names.

    Args:
        path: the file.
        modality: what its encoder reads, image, video, audio or text; None = what the file itself tells.
        said: what the user says, fields of `Facts`; it comes before what the file says. None = nothing.

    Raises:
        MmsslError: no such file, damaged, pickled code, of no known family, or of none of that modality.
    """
    state, arguments = read_state(path)
    fitting = [layout for layout in LAYOUTS if layout.recognise(state)]
    if not fitting:
        raise MmsslError(f"{path} {_no_layout(state)}")
    for layout in fitting:
        if layout.sure(state, arguments, said) if modality is None else layout.modality == modality:
            state, told = layout.read(state, arguments, path)
            return layout, _with(Published(state, str(path), Facts(**told)), said)
    own = " or ".join(dict.fromkeys(layout.modality for layout in fitting))
    raise MmsslError(f"{path} holds a model of {own} by its names and shapes, not of {modality}; leave out modality.")


def read_transformers_folder(folder: Path, modality: str | None = None, **said: Any) -> tuple[Layout, Published]:
    """The same of a folder in transformers' format, by its config.json."""
    kind = read_json(folder / "config.json").get("model_type")
    fitting = [layout for layout in LAYOUTS if kind in layout.model_types]
    if not fitting:
        raise MmsslError(
            f"{folder} holds a transformers model of type {kind!r}; readable are {', '.join(MODEL_TYPES)}."
        )
    layout = next((layout for layout in fitting if layout.modality == modality), fitting[0])
    return layout, _with(layout.folder(folder), said)


def _with(published: Published, said: dict[str, Any]) -> Published:
    assert said.keys() <= {f.name for f in fields(Facts)}
    return replace(
        published, facts=replace(published.facts, **{name: value for name, value in said.items() if value is not None})
    )


def _no_layout(state: State) -> str:
    if any(".tokenizers." in f".{name}" for name in state):
        return "holds weights of mmssl without their settings; give the folder that it was in, with its config file."
    first = listed(state)
    known = ", ".join(layout.name for layout in LAYOUTS)
    return (
        f"is of no layout that can be read (its first names: {first}); readable are {known}, and transformers' "
        "ViTMAE, ViT, VideoMAE and CLIP."
    )
