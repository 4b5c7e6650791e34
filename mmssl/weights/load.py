"""One line gives an encoder, or a whole method, whatever the source."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.methods.base import Method
from mmssl.tokenizers.image import as_pair
from mmssl.weights import runs
from mmssl.weights.files import State, read_json, read_state
from mmssl.weights.hub import download, is_hub_name
from mmssl.weights.huggingface import MODEL_TYPES, from_transformers, is_transformers_layout, read_transformers
from mmssl.weights.layout import Facts, Published, is_authors_layout
from mmssl.weights.official import build_encoder, build_mae
from mmssl.weights.timm_models import read_timm, read_timm_folder

Kind = Literal["run", "checkpoint", "export", "transformers", "timm folder", "file"]
_ALLOWED = (
    "a run folder, an export folder, a transformers ViTMAE folder, an MAE authors' .pth file, 'timm:NAME', or a hub "
    "name 'organisation/name'"
)


def load(
    source: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
    heads: int | None = None,
    pretrained: bool = True,
) -> Encoder:
    """An encoder with its weights, in evaluation mode.

    Args:
        source: a run folder (its export, else its newest checkpoint), one of its checkpoints, an export folder, a
            transformers ViTMAE or ViT folder, a file of the MAE authors (`mae_pretrain_vit_base.pth`, `_full`,
            visualize, fine-tuned), `timm:NAME[.tag]`, or a name on the Hugging Face hub.
        image_size: height and width in pixels; where they differ from the weights' own, position tables are
            interpolated bicubically, otherwise they are the file's, bit for bit.
        device: where to put it; default the CPU.
        heads: attention heads, where the published ones for this width are wrong (MVP's ViT-S/16 has 12, not 6): a
            file of weights does not say.
        pretrained: False takes a `timm:` architecture with random weights, without the hub.

    Raises:
        MmsslError: nothing there, damaged, pickled code, missing or unknown parts, no connection.
    """
    if not pretrained and not str(source).startswith("timm:"):
        raise MmsslError(f"pretrained=False is for 'timm:NAME' sources, not for {str(source)!r}.")
    if str(source).startswith("timm:"):
        encoder = read_timm(str(source).removeprefix("timm:"), pretrained)
    else:
        encoder = _load_encoder(*recognise(source), heads, image_size)
    _agree(source, "heads", heads, encoder.config.heads)
    if image_size is not None and any(
        getattr(t.config, "image_size", None) not in (None, as_pair(image_size)) for t in encoder.tokenizers.values()
    ):
        _check_divisible(encoder, as_pair(image_size))
        encoder.resize(image_size)
    return encoder.to(device or "cpu").eval()


def load_method(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    norm_pix: bool | None = None,
) -> Method:
    """A whole method with its weights, decoder and heads included, in evaluation mode.

    Args:
        source: a run folder (its newest checkpoint), one checkpoint, a transformers ViTMAEForPreTraining folder or hub
            name, or a `_full` or visualize file of the MAE authors.
        device: where to put it; default the CPU.
        heads: the encoder's attention heads, where they are not the published ones for its width.
        decoder_heads: the same of the decoder.
        norm_pix: whether the decoder predicts patches normalised each by itself. The weights do not say. By default:
            what the file's own training arguments or the folder's config.json say, else False for a file with
            `visualize` in its name, else True.

    Raises:
        MmsslError: as `load`; also where the source holds the encoder alone.
    """
    if str(source).startswith("timm:"):
        raise MmsslError(f"{source} is an encoder alone; read it with mmssl.load.")
    kind, path = recognise(source)
    if kind in ("run", "checkpoint"):
        method = runs.build_method(runs.newest_checkpoint(path) if kind == "run" else path)
    elif kind == "transformers":
        published = read_transformers(path)
        method = build_mae(published if norm_pix is None else _with(published, norm_pix=norm_pix))
    elif kind == "file":
        facts = Facts(heads=heads, decoder_heads=decoder_heads)
        method = build_mae(read_published_file(path, facts, norm_pix=norm_pix))
    else:
        raise MmsslError(f"{source} holds an encoder alone; read it with mmssl.load, or give the run folder itself.")
    _agree(source, "heads", heads, method.encoder.config.heads)
    for name, given in (("decoder_heads", decoder_heads), ("norm_pix", norm_pix)):
        _agree(source, name, given, getattr(method.config, name, given))
    return method.to(device or "cpu").eval()


def recognise(source: str | Path) -> tuple[Kind, Path]:
    """What a source is and where; hub repositories are downloaded. An `MmsslError` where it cannot be read."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.name in (runs.WEIGHTS, "pytorch_model.bin") and _kind_of_folder(path.parent):
            return _kind_of_folder(path.parent), path.parent
        return "file", path
    if not path.is_dir():
        if not is_hub_name(str(source)):
            raise MmsslError(f"there is no file or folder {str(source)!r}; give {_ALLOWED}.")
        path = download(str(source))
    kind = _kind_of_folder(path)
    if kind is None:
        raise MmsslError(f"{source} holds nothing that can be read; give {_ALLOWED}.")
    return kind, path


def _kind_of_folder(folder: Path) -> Kind | None:
    if runs.is_checkpoint(folder):
        return "checkpoint"
    if runs.is_run(folder):
        return "run"
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    if "encoder" in config:
        return "export"
    if "architecture" in config:
        return "timm folder"
    if "model_type" in config:
        return "transformers"
    raise MmsslError(
        f"{folder / 'config.json'} describes no model that can be read; readable are mmssl's own, timm's, and "
        f"transformers' {' and '.join(MODEL_TYPES)}."
    )


def _load_encoder(kind: Kind, path: Path, heads: int | None, image_size: Any) -> Encoder:
    if kind == "run" and (path / "export" / "config.json").is_file():
        return Encoder.from_pretrained(path / "export")
    if kind in ("run", "checkpoint"):
        return runs.build_method(runs.newest_checkpoint(path) if kind == "run" else path).encoder
    if kind == "export":
        return Encoder.from_pretrained(path)
    if kind == "timm folder":
        return read_timm_folder(path)
    if kind == "transformers":
        return build_encoder(read_transformers(path))
    return build_encoder(read_published_file(path, Facts(heads=heads), image_size))


def read_published_file(path: Path, facts: Facts, image_size: Any = None, norm_pix: bool | None = None) -> Published:
    """Weights of one file, recognised by their names; an `MmsslError` where these are of no known layout."""
    state, arguments = read_state(path)
    if is_transformers_layout(state):
        state = from_transformers(state)
    if not is_authors_layout(state):
        raise MmsslError(f"{path} {_not_ours(state)}")
    if norm_pix is None:
        norm_pix = bool(arguments.get("norm_pix_loss", "visualize" not in path.name))
    guess = None if image_size is None else as_pair(image_size)
    return Published(state, str(path), replace(facts, image_size_guess=guess, norm_pix=norm_pix))


def _not_ours(state: State) -> str:
    if any(".tokenizers." in f".{name}" for name in state):
        return "holds weights of mmssl without their settings; give the folder that it was in, with its config file."
    first = ", ".join(sorted(state)[:3])
    return (
        f"is of no layout that can be read (its first names: {first}); readable are the MAE authors', timm's ViT, and "
        "transformers' ViTMAE."
    )


def _agree(source: str | Path, name: str, given: Any, own: Any) -> None:
    """What the user says must not contradict what the source itself says."""
    if given is not None and given != own:
        raise MmsslError(
            f"{source} says itself that {name} is {own!r}; {name}={given!r} is for sources that do not say it."
        )


def _with(published: Published, **facts: Any) -> Published:
    return replace(published, facts=replace(published.facts, **facts))


def _check_divisible(encoder: Encoder, size: tuple[int, int]) -> None:
    for tokenizer in encoder.tokenizers.values():
        replace(tokenizer.config, image_size=size)  # raises where the patch does not divide it
