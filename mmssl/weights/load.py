"""One line gives an encoder, or a whole method, whatever the source."""

from pathlib import Path
from typing import Any, Literal, get_args

import torch

from mmssl.encoder import Encoder
from mmssl.errors import MmsslError, unknown_name
from mmssl.methods.base import Method
from mmssl.tokenizers.image import as_pair
from mmssl.weights import runs
from mmssl.weights.files import read_json
from mmssl.weights.hub import download, is_hub_name
from mmssl.weights.published import MODEL_TYPES, read_published_file, read_transformers_folder
from mmssl.weights.timm_models import read_timm, read_timm_folder

Kind = Literal["run", "checkpoint", "export", "transformers", "timm folder", "file"]
Modality = Literal["image", "video", "audio", "text"]
Gelu = Literal["exact", "tanh", "quick"]
_ALLOWED = (
    "a run folder, an export folder, a transformers ViTMAE, VideoMAE or CLIP folder, a .pth file of the authors of "
    "MAE, VideoMAE, ST-MAE, CropMAE, Audio-MAE, MultiMAE, M3AE, CLIP or R3M, 'timm:NAME', or a hub name "
    "'organisation/name'"
)


def load(
    source: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    modality: Modality | None = None,
    device: str | torch.device | None = None,
    heads: int | None = None,
    gelu: Gelu | None = None,
    pretrained: bool = True,
) -> Encoder:
    """An encoder with its weights, in evaluation mode.

    Args:
        source: a run folder (its export, else its newest checkpoint), one of its checkpoints, an export folder, a
            transformers ViTMAE, ViT, VideoMAE or CLIP folder, a file of the authors of MAE
            (`mae_pretrain_vit_base.pth`, `_full`, visualize, fine-tuned), VideoMAE, ST-MAE, CropMAE, Audio-MAE, R3M
            (or a ResNet of torchvision) or CLIP (a state dict of OpenAI's or OpenCLIP's ViT), pretrained or fine-tuned,
            `timm:NAME[.tag]`, or a name on the Hugging Face hub (also as `timm:hf_hub:NAME`).
        image_size: height and width in pixels; where they differ from the weights' own, position tables are
            interpolated bicubically (VideoMAE's, which are a formula, made anew), otherwise they are the file's, bit
            for bit.
        frames: frames of a clip, or of the spectrogram of a model of audio (10 ms each). Where they differ, a clip's
            tables are interpolated over time; a spectrogram's are cut where it is shorter and where longer continued by
            the formula that made them (interpolated, if they were learned).
        modality: what the encoder reads. Sources tell it themselves, but for one kind of file: a ViT of one channel is
            one of grey images or of spectrograms. Without a decoder with windows or the training arguments of
            Audio-MAE's authors in it, it is taken as audio where its patches make no square and fit 128 mel bins (a
            square: where its position table is of another lattice), unless `image_size` is given. Say "audio" for a
            file that was fine-tuned on clips of 128 frames and holds nothing beside its weights. "text" gives the text
            tower of a CLIP, which is otherwise read as its image tower.
        device: where to put it; default the CPU.
        heads: attention heads, where the published ones for this width are wrong (MVP's ViT-S/16 has 12, not 6): a
            file of weights does not say.
        gelu: the kind of GELU, which files of CLIP do not say: quick (OpenAI's models) or exact (most of OpenCLIP's).
        pretrained: False takes a `timm:` architecture with random weights, without the hub.

    Raises:
        MmsslError: nothing there, damaged, pickled code, missing or unknown parts, no connection.
    """
    if not pretrained and not str(source).startswith("timm:"):
        raise MmsslError(f"pretrained=False is for 'timm:NAME' sources, not for {str(source)!r}.")
    check_modality(modality)
    if str(source).startswith("timm:"):
        encoder = read_timm(str(source).removeprefix("timm:"), pretrained, modality)
    else:
        encoder = _load_encoder(*recognise(source), heads, image_size, frames, modality, gelu)
    agree(source, "heads", heads, encoder.config.heads)
    agree(source, "modality", modality, _modality(encoder))
    agree(source, "gelu", gelu, encoder.config.gelu)
    return resized(encoder, image_size, frames).to(device or "cpu").eval()


def load_method(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    norm_pix: bool | None = None,
    image_size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    modality: Modality | None = None,
    gelu: Gelu | None = None,
) -> Method:
    """A whole method with its weights, decoder and heads included, in evaluation mode.

    Args:
        source: a run folder (its newest checkpoint), one checkpoint, a transformers ViTMAEForPreTraining or
            VideoMAEForPreTraining or CLIPModel folder or hub name, a `_full` or visualize file of the MAE authors, a
            pretraining file of VideoMAE's, ST-MAE's (mae_st), CropMAE's or Audio-MAE's, R3M's with its language, or a
            CLIP state dict.
        device: where to put it; default the CPU.
        heads: the encoder's attention heads, where they are not the published ones for its width.
        decoder_heads: the same of the decoder.
        norm_pix: whether the decoder predicts patches normalised each by itself. The weights do not say. By default:
            what the file's own training arguments or the folder's config.json say, else False for a file with
            `visualize` in its name, else True.
        image_size: height and width in pixels that the model was trained for, where the source does not say it.
        frames: the same of the frames of a clip: VideoMAE's files say neither (16 and 224 by default). A whole method
            keeps the length that it was trained for; `mmssl.load` gives its encoder for another.
        modality: as for `mmssl.load`.
        gelu: as for `mmssl.load`.

    Raises:
        MmsslError: as `load`; also where the source holds the encoder alone.
    """
    if str(source).startswith("timm:"):
        raise MmsslError(f"{source} is an encoder alone; read it with mmssl.load.")
    kind, path = recognise(source)
    check_modality(modality)
    size = None if image_size is None else as_pair(image_size)
    if kind in ("run", "checkpoint"):
        method = runs.build_method(runs.newest_checkpoint(path) if kind == "run" else path)
    elif kind in ("transformers", "file"):
        said = {"norm_pix": norm_pix, "image_size_guess": size, "frames": frames, "modality": modality}
        method = _read_method(kind, path, heads, decoder_heads, gelu, **said)
    else:
        raise MmsslError(f"{source} holds an encoder alone; read it with mmssl.load, or give the run folder itself.")
    given = {"heads": heads, "decoder_heads": decoder_heads, "norm_pix": norm_pix, "image_size": size, "frames": frames}
    for name, value in given.items():
        agree(source, name, value, _own(method, name, value))
    agree(source, "modality", modality, _modality(method.encoder))
    agree(source, "gelu", gelu, method.encoder.config.gelu)
    return method.to(device or "cpu").eval()


def check_modality(modality: str | None) -> None:
    """Raise an `MmsslError` where the user says a modality that there is not."""
    if modality is not None and modality not in get_args(Modality):
        raise unknown_name("modality", modality, get_args(Modality))


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


def _load_encoder(
    kind: Kind,
    path: Path,
    heads: int | None,
    image_size: int | tuple[int, int] | None,
    frames: int | None,
    modality: str | None,
    gelu: str | None,
) -> Encoder:
    if kind == "run" and (path / "export" / "config.json").is_file() and modality != "text":
        return Encoder.from_pretrained(path / "export")
    if kind in ("run", "checkpoint"):
        method = runs.build_method(runs.newest_checkpoint(path) if kind == "run" else path)
        return getattr(method, "text_encoder", method.encoder) if modality == "text" else method.encoder
    if kind == "export":
        return Encoder.from_pretrained(path)
    if kind == "timm folder":
        return read_timm_folder(path, modality)
    said = {"image_size_guess": None if image_size is None else as_pair(image_size), "frames": frames}
    if kind == "transformers":
        layout, published = read_transformers_folder(path, modality, **said)
    else:
        layout, published = read_published_file(path, modality, heads=heads, gelu=gelu, **said)
    return layout.encoder(published)


def _read_method(
    kind: Kind,
    path: Path,
    heads: int | None,
    decoder_heads: int | None,
    gelu: str | None,
    modality: str | None,
    **said: Any,
) -> Method:
    """The method in a file or folder of others; what a folder says of heads and GELU is believed."""
    if kind == "transformers":
        layout, published = read_transformers_folder(path, modality, **said)
    else:
        said |= {"heads": heads, "decoder_heads": decoder_heads, "gelu": gelu}
        layout, published = read_published_file(path, modality, **said)
    return layout.method(published)


def resized(encoder: Encoder, image_size: int | tuple[int, int] | None, frames: int | None = None) -> Encoder:
    """The encoder for other images, clips or sounds, in place; as it is where they are its own, or not given."""
    wanted = {"image_size": None if image_size is None else as_pair(image_size), "frames": frames}
    configs = [tokenizer.config for tokenizer in encoder.tokenizers.values()]
    for name, kinds in (("image_size", "images or video"), ("frames", "video or audio")):
        if wanted[name] is not None and not any(hasattr(config, name) for config in configs):
            reads = ", ".join(encoder.modalities)
            raise MmsslError(f"{name}= is for encoders of {kinds}, and this one reads {reads}.")
    if any(value not in (None, getattr(c, name, value)) for c in configs for name, value in wanted.items()):
        encoder.resize(image_size, frames)
    return encoder


def _modality(encoder: Encoder) -> str:
    """What an encoder reads, without the name of a camera."""
    return encoder.modalities[0].split("/")[0]


def _own(method: Method, name: str, otherwise: Any) -> Any:
    """A setting of a method as it was built, where it has that setting."""
    if name == "heads":
        return method.encoder.config.heads
    if name == "decoder_heads":
        blocks = getattr(getattr(method, "decoder", None), "blocks", None)
        return blocks[0].attn.heads if blocks else otherwise
    if name in ("image_size", "frames"):
        return getattr(next(iter(method.encoder.tokenizers.values())).config, name, None)
    return getattr(method.config, name, otherwise)


def agree(source: str | Path, name: str, given: Any, own: Any) -> None:
    """What the user says must not contradict what the source itself says."""
    if given is not None and given != own:
        raise MmsslError(
            f"{source} says itself that {name} is {own!r}; {name}={given!r} is for sources that do not say it."
        )
