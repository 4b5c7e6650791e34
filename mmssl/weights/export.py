"""Weights out: the encoder of a run in a folder of its own, for users (`mmssl export`)."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import save_file

from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.methods.mae import MAE
from mmssl.methods.videomae import VideoMAE
from mmssl.weights import huggingface, runs, videomae_transformers
from mmssl.weights.card import model_card
from mmssl.weights.files import State
from mmssl.weights.load import load, load_method, recognise
from mmssl.weights.official import encoder_to_authors

Format = Literal["mmssl", "timm", "transformers"]
Files = tuple[State, dict[str, dict[str, Any]]]
"""Tensors, and the contents of JSON files by their names."""

_TO_TRANSFORMERS = {MAE: huggingface.to_transformers, VideoMAE: videomae_transformers.to_transformers}


def export(
    run: Path, out: Path | None = None, format: Format = "mmssl", license: str = "other", overwrite: bool = False
) -> Path:
    """Write a run's encoder for users: config.json, model.safetensors and README.md, a model card.

    `mmssl.load` reads the folder back, bit for bit.

    Args:
        run: a run folder (its newest checkpoint is taken), one of its checkpoints, or anything that mmssl.load reads.
        out: the folder to write; default the run's export/, or export-FORMAT/ for the other formats.
        format: mmssl; timm (what timm reads with local-dir:); transformers (of an MAE ViTMAEForPreTraining, of a
            VideoMAE VideoMAEForPreTraining, decoder included).
        license: the licence of the weights, as the hub names it (apache-2.0, cc-by-nc-4.0, ...).
        overwrite: write over a folder that is not empty and not the run's own export.

    Returns:
        The folder.

    Raises:
        MmsslError: nothing to export; a model that the format cannot hold; a folder that is not empty.
    """
    kind, path = ("timm", Path(run)) if str(run).startswith("timm:") else recognise(run)
    home = {"run": path, "checkpoint": path.parent.parent}.get(kind)
    out = Path(out) if out is not None else _default_out(home, run, format)
    own_export = home is not None and out.resolve() == (home / "export").resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (overwrite or own_export):
        raise MmsslError(f"{out} exists and is not empty; choose another folder with --out, or give --overwrite.")
    if home is not None and out.resolve() in (path.resolve(), home.resolve()):
        raise MmsslError(f"{out} is the run itself; choose another folder with --out.")
    encoder, files = _content(kind, path, format)
    recipe = runs.read_run_config(home) if home else {}
    card = model_card(encoder, recipe, out, format, license, home / "scores.json" if home else None)
    _write(out, files, card, encoder if format == "mmssl" else None)
    print(f"exported {run} to {out}")
    return out


def export_encoder(
    encoder: Encoder,
    out: Path,
    recipe: dict[str, Any] | None = None,
    license: str = "other",
    shown_as: Path | None = None,
) -> Path:
    """Write an encoder that is in memory, as `export` does in its own format; what the end of a training calls.

    `recipe` is the run's config.yaml as plain values; `shown_as` the folder that the card names, where `out` is a
    temporary one.
    """
    _write(out, None, model_card(encoder, recipe or {}, shown_as or out, "mmssl", license), encoder)
    return out


def _default_out(home: Path | None, run: Path, format: Format) -> Path:
    if home is None:
        raise MmsslError(f"{run} is no run folder: say where to write with --out FOLDER.")
    return home / "export" if format == "mmssl" else home / f"export-{format}"


def _content(kind: str, path: Path, format: Format) -> tuple[Encoder, Files | None]:
    """The encoder, and for foreign formats what to write."""
    if format == "transformers":
        method = load_method(path)
        if type(method) not in _TO_TRANSFORMERS:
            raise MmsslError(
                f"{path} holds {method.config.name!r}; the transformers format is for 'mae' and 'videomae' alone."
            )
        return method.encoder, _TO_TRANSFORMERS[type(method)](method)
    # A run's export may be older than its newest checkpoint, so the method is asked and not the export.
    encoder = load_method(path).encoder if kind in ("run", "checkpoint") else load(path)
    if format == "timm":
        return encoder, (encoder_to_authors(encoder), {"config.json": timm_config(encoder)})
    return encoder, None


def timm_config(encoder: Encoder) -> dict[str, Any]:
    """config.json from which timm makes the same encoder: its VisionTransformer with this one's sizes."""
    config, tokenizer = encoder.config, encoder.tokenizers[encoder.modalities[0]].config
    if config.norm_eps != 1e-6 or config.gelu != "exact" or config.qkv_bias == "qv":
        raise MmsslError(
            f"timm's ViT cannot be told norm_eps {config.norm_eps}, gelu {config.gelu!r} and qkv_bias "
            f"{config.qkv_bias!r} in a file (it takes 1e-6, 'exact', and 'full' or 'none'); use format 'mmssl'."
        )
    arguments = {
        "img_size": list(tokenizer.image_size),
        "patch_size": _one_or_two(tokenizer.patch_size),
        "in_chans": tokenizer.channels,
        "embed_dim": config.dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias == "full",
        "class_token": config.cls_token,
        "init_values": config.layer_scale,
        "global_pool": "token" if config.cls_token else "avg",
        "fc_norm": False,
        "final_norm": config.final_norm,
    }
    size = [tokenizer.channels, *tokenizer.image_size]
    about = {"mean": list(tokenizer.mean), "std": list(tokenizer.std), "input_size": size, "num_classes": 0}
    about |= {"first_conv": "patch_embed.proj", "classifier": "head"}
    # Any plain ViT entry of timm's will do: model_args replace all of its sizes.
    return {
        "architecture": "vit_base_patch16_224",
        "num_classes": 0,
        "num_features": config.dim,
        "pretrained_cfg": about,
        "model_args": arguments,
    }


def _one_or_two(pair: tuple[int, int]) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)


def _write(out: Path, files: Files | None, card: str, encoder: Encoder | None) -> None:
    """Write into a temporary folder, then put each file in its place; other files in `out` stay."""
    temporary = out.parent / f".tmp-{out.name}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if encoder is not None:
            encoder.save_pretrained(temporary)
        else:
            state, settings = files
            save_file(state, temporary / runs.WEIGHTS, metadata={"format": "pt"})
            for name, content in settings.items():
                (temporary / name).write_text(json.dumps(content, indent=2) + "\n")
        (temporary / "README.md").write_text(card)
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(temporary.iterdir()):
            path.replace(out / path.name)
    except (OSError, SafetensorError) as error:  # safetensors' own class, where the disk is full
        raise MmsslError(f"{out} could not be written ({error}); free some space or choose another folder.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
