"""The model card: README.md of an export, in the form that the Hugging Face hub shows."""

import math
from pathlib import Path
from typing import Any

import yaml

from mmssl import __version__
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.tokenizers.audio import AudioTokenizerConfig
from mmssl.tokenizers.base import TokenizerConfig
from mmssl.tokenizers.vector import VectorTokenizerConfig
from mmssl.weights.files import read_json

_LOAD = {
    "mmssl": "import mmssl\nimport torch\n\nencoder = mmssl.load({folder!r})",
    "timm": (
        "import mmssl\nimport timm\nimport torch\n\nencoder = mmssl.load({folder!r})\n"
        "model = timm.create_model('local-dir:{folder}', pretrained=True)"
    ),
    "transformers": (
        "import mmssl\nimport torch\nfrom transformers import {theirs}\n\n"
        "encoder = mmssl.load({folder!r})\nmethod = mmssl.load_method({folder!r})  # with the decoder\n"
        "model = {theirs}.from_pretrained({folder!r})"
    ),
}


def model_card(
    encoder: Encoder, recipe: dict[str, Any], folder: Path, format: str, license: str, scores: Path | None = None
) -> str:
    """Text of the card.

    Args:
        encoder: what is exported.
        recipe: the run's resolved config.yaml; {} where there is none.
        folder: where the export goes, shown in the lines that load it.
        format: "mmssl", "timm" or "transformers".
        license: identifier of the licence, as the hub knows it.
        scores: the run's scores.json, shown where it exists.
    """
    theirs = "VideoMAEForPreTraining" if encoder.modalities[0].startswith("video") else "ViTMAEForPreTraining"
    method = recipe.get("method") or {}
    name = method.get("name", "encoder")
    parts = [
        _front_matter(name, format, license, encoder),
        f"# {folder.resolve().name}\n",
        f"An encoder of {_listed(encoder.modalities)}, pretrained with `{name}` by mmssl {__version__}.\n",
        "## Model\n",
        _table(_sizes(encoder.config, encoder) | {f"method: {k}": v for k, v in method.items() if v is not None}),
        "## Data and training\n",
        _table(_training(recipe)) if recipe else "Not recorded: no recipe stands beside the weights.\n",
        "## Input\n",
        _preprocessing(encoder.config, format),
        "## How to load\n",
        f"```python\n{_LOAD[format].format(folder=folder.as_posix(), theirs=theirs)}\n{_example(encoder)}\n```\n",
    ]
    if scores is not None and scores.is_file():
        parts += ["## Scores\n", _scores(scores)]
    parts += ["## Licence\n", _licence(license)]
    return "\n".join(parts)


def _front_matter(name: str, format: str, license: str, encoder: Encoder) -> str:
    library = "mmssl" if format == "mmssl" else format
    tags = ["mmssl", name, *(m.split("/")[0] for m in encoder.modalities)]
    front = {"library_name": library, "license": license, "tags": list(dict.fromkeys(tags))}
    if any(m.startswith("image") for m in encoder.modalities):
        front["pipeline_tag"] = "image-feature-extraction"
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n"


def _sizes(config: EncoderConfig, encoder: Encoder) -> dict[str, Any]:
    rows = {
        "parameters": f"{sum(p.numel() for p in encoder.parameters()):,}",
        "width, depth, heads": f"{config.dim}, {config.depth}, {config.heads}",
        "positions": config.positions,
        "cls token": "yes" if config.cls_token else "no",
        "final norm": "yes" if config.final_norm else "no",
    }
    for modality, tokenizer in encoder.tokenizers.items():
        rows[f"{modality}: token lattice"] = " x ".join(map(str, tokenizer.grid))
        rows |= {f"{modality}: {what}": value for what, value in _input_sizes(tokenizer.config).items()}
    return rows


def _input_sizes(config: TokenizerConfig) -> dict[str, Any]:
    if isinstance(config, AudioTokenizerConfig):
        size, overlap = f"{config.frames} x {config.mel_bins}", f", one every {config.stride}" if config.stride else ""
        return {"spectrogram and patch size": f"{size}, {config.patch_size}{overlap}"}
    rows = {}
    if hasattr(config, "patch_size"):
        rows["input and patch size"] = f"{config.image_size}, {config.patch_size}"
    if hasattr(config, "frames"):
        rows["frames, of which a token has"] = f"{config.frames}, {getattr(config, 'tubelet', 1)}"
    return rows


def _training(recipe: dict[str, Any]) -> dict[str, Any]:
    data, loop, optim = (recipe.get(part) or {} for part in ("data", "loop", "optim"))
    rows = {"data": _data(data.get("source")), "split": data.get("split")}
    rows |= {f"clips: {name}": value for name, value in (data.get("clip") or {}).items()}
    rows |= {name: loop.get(name) for name in ("steps", "epochs", "batch_size", "precision", "seed")}
    rows |= {"optimizer": optim.get("name"), "base learning rate (per 256)": optim.get("base_lr")}
    rows |= {"weight decay": optim.get("weight_decay")}
    return {name: value for name, value in rows.items() if value is not None}


def _data(source: Any) -> str:
    """Names of the data; of a path on this machine only the last part, which is all that others can use."""
    given = [source] if isinstance(source, str) else source or ["not recorded"]
    return _listed([Path(s).name if Path(s).is_absolute() else s for s in given])


def _preprocessing(config: EncoderConfig, format: str) -> str:
    lines = []
    for modality, tokenizer in config.tokenizers.items():
        if isinstance(tokenizer, AudioTokenizerConfig):
            lines.append(_sound(modality, tokenizer))
        if isinstance(tokenizer, VectorTokenizerConfig):
            shape = f"(B, 1 to {tokenizer.frames}, {tokenizer.width})"
            lines.append(f"`{modality}`: float32 {shape} in raw units; standardised inside the encoder.\n")
        if not hasattr(tokenizer, "image_size"):
            continue
        if not hasattr(tokenizer, "mean"):
            lines.append(_map(modality, tokenizer))
            continue
        line = f"`{modality}`: uint8 (B, {', '.join(map(str, _shape(tokenizer)))}), or float in [0, 1]. "
        line += "Do not normalise: " if format == "mmssl" else "Through mmssl, do not normalise: "
        line += f"mean {tokenizer.mean} and std {tokenizer.std} are applied inside the encoder"
        lines.append(line + (".\n" if format == "mmssl" else f"; {format} itself wants pixels normalised with them.\n"))
    return "\n".join(lines) or "As the encoder's config.json says; normalisation happens inside.\n"


def _map(modality: str, config: Any) -> str:
    """Depth, or class ids."""
    if hasattr(config, "classes"):
        none = ", ".join(map(str, config.ignore))
        return (
            f"`{modality}`: class ids int64 (B, {', '.join(map(str, config.image_size))}), 0 to {config.classes - 1}; "
            f"below 0{' and ' * bool(none)}{none} are no class. One of {config.stride} x {config.stride} is read.\n"
        )
    inside = "standardised inside the encoder, each map by itself" if config.standardise != "none" else "as they are"
    return f"`{modality}`: metres, float32 (B, {', '.join(map(str, _shape(config)))}); {inside}.\n"


def _sound(modality: str, config: AudioTokenizerConfig) -> str:
    rate = config.input_rate or config.sample_rate
    return (
        f"`{modality}`: waveforms float32 (B, 1, samples) in [-1, 1] at {rate} samples a second. Spectrograms "
        f"({config.kind}, {config.mel_bins} mel bins, a frame every {config.hop_ms:g} ms) are computed inside the "
        f"encoder, padded or cut to {config.frames} frames, normalised as (x - {config.mean}) / (2 * {config.std}).\n"
    )


def _shape(config: Any) -> tuple[int, ...]:
    """Shape of one image (C, H, W), clip (T, C, H, W), depth map (1, H, W) or map of ids (H, W)."""
    frames = (config.frames,) if hasattr(config, "frames") else ()
    channels = () if hasattr(config, "classes") else (getattr(config, "channels", 1),)
    return (*frames, *channels, *config.image_size)


def _dtype(config: Any) -> str:
    return "uint8" if hasattr(config, "mean") else "int64" if hasattr(config, "classes") else "float32"


def _example(encoder: Encoder) -> str:
    modality = encoder.modalities[0]
    tokenizer = encoder.tokenizer(modality)
    lines = [f"features = encoder({{{modality!r}: x}})"]
    if hasattr(tokenizer.config, "image_size"):
        lines.insert(0, f"x = torch.zeros({(1, *_shape(tokenizer.config))}, dtype=torch.{_dtype(tokenizer.config)})")
    if isinstance(tokenizer.config, AudioTokenizerConfig):
        lines.insert(0, f"x = torch.zeros({(1, 1, _samples(tokenizer.config))})")
    if isinstance(tokenizer.config, VectorTokenizerConfig):
        lines.insert(0, f"x = torch.zeros({(1, tokenizer.config.frames, tokenizer.config.width)})")
    lines.append(f"features.tokens      # (1, {tokenizer.num_tokens}, {encoder.embed_dim})")
    lines.append(f"features.pooled()    # (1, {encoder.embed_dim})")
    return "\n".join(lines)


def _samples(config: AudioTokenizerConfig) -> int:
    """Samples of a waveform that fills the spectrogram."""
    rate = config.input_rate or config.sample_rate
    return math.ceil(config.log_mel.samples(config.frames) * rate / config.sample_rate)


def _scores(path: Path) -> str:
    rows = read_json(path).get("rows") or []
    if not isinstance(rows, list) or any(not isinstance(row, dict) or "value" not in row for row in rows):
        raise MmsslError(f"{path} is not a table of scores; remove it, or run mmssl probe again.")
    lines = ["| evaluator | target | encoder | metric | value |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [str(row.get(key, "")) for key in ("evaluator", "target", "encoder", "metric")]
        lines.append(f"| {' | '.join(cells)} | {row['value']:.4g} |")
    return "\n".join(lines) + "\n"


def _licence(license: str) -> str:
    if license == "other":
        return "Not said yet: write it here and in `license` above before you publish. It also hangs on the data's.\n"
    return f"`{license}`. The data that it was trained on may set conditions of their own.\n"


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _cell(value: Any) -> str:
    text = _listed(value) if isinstance(value, (list, tuple)) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _listed(values: Any) -> str:
    return ", ".join(map(str, [values] if isinstance(values, str) else values))
