"""timm's vision transformers -> the authors' layout, which is timm's own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmssl.encoder import Encoder
from mmssl.errors import MmsslError, unknown_name
from mmssl.weights.files import read_folder, read_json
from mmssl.weights.hub import download
from mmssl.weights.layout import Facts, Published
from mmssl.weights.official import build_encoder

_GELU = {"none": "exact", "tanh": "tanh"}


def read_timm(name: str, pretrained: bool = True) -> Encoder:
    """Encoder of a timm ViT by its timm name, with or without a tag (`vit_base_patch16_224.mae`).

    Without a tag timm's default one is taken: mostly supervised weights. Weights come from the hub or its cache;
    `pretrained=False` leaves them random and needs neither. Raises an `MmsslError` for an unknown name, no connection,
    or a model that is no plain ViT.
    """
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown_name("timm model", architecture, timm.list_models("vit_*"))
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown_name(f"tag of the timm model {architecture}", tag, filter(None, tags))
    settings = dict(timm.get_pretrained_cfg(name).to_dict())
    weights = {}
    if pretrained and settings.get("hf_hub_id"):
        # Asked for here and not by timm, which retries for a minute without a connection.
        weights = {"pretrained_cfg_overlay": {"file": _weights_file(download(settings["hf_hub_id"], f"timm:{name}"))}}
    return _encoder(_create(name, pretrained, **weights), f"timm:{name}")


def read_timm_folder(folder: Path) -> Encoder:
    """Encoder of a folder in the layout of timm's hub repositories: config.json with `architecture`, and weights."""
    settings = read_json(folder / "config.json")
    model = _create(
        settings["architecture"],
        False,
        num_classes=settings.get("num_classes", 0),
        pretrained_cfg=settings.get("pretrained_cfg"),
        **settings.get("model_args", {}),
    )
    state = read_folder(folder)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        said = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise MmsslError(f"the weights in {folder} do not fit {settings['architecture']!r}: {said}") from None
    return _encoder(model, str(folder))


def _weights_file(folder: Path) -> str:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return str(folder / name)
    raise MmsslError(f"the download in {folder} holds no weights; remove the folder and try again.")


def _create(name: str, pretrained: bool, **settings: Any) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, **settings)
    except Exception as error:  # timm, the hub and torch raise anything; the user needs the one sentence
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MmsslError(f"timm could not make {name!r}: {said}") from None


def _encoder(model: nn.Module, source: str) -> Encoder:
    """The model's weights in our encoder; its output is compared with the model's own on one random image."""
    from timm.models.vision_transformer import Block, VisionTransformer

    if not isinstance(model, VisionTransformer) or not isinstance(model.blocks[0], Block):
        raise MmsslError(f"{source} is a {type(model).__name__}, not a plain ViT; use one of timm's vit_* or deit_*.")
    model = model.eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("attn_pool.")}
    published = Published(state, source, _facts(model))
    encoder = build_encoder(published)
    _compare(model, encoder, source)
    return encoder


def _facts(model: nn.Module) -> Facts:
    settings, block = model.pretrained_cfg, model.blocks[0]
    act = getattr(block.mlp, "act", None)
    facts = Facts(
        heads=block.attn.num_heads,
        image_size=tuple(model.patch_embed.img_size),
        norm_eps=getattr(block.norm1, "eps", 1e-6),
        gelu=_GELU.get(getattr(act, "approximate", "none"), "exact"),
    )
    channels = len(settings.get("mean") or ())
    return replace(facts, mean=tuple(settings["mean"]), std=tuple(settings["std"])) if channels else facts


@torch.no_grad()
def _compare(model: nn.Module, encoder: Encoder, source: str) -> None:
    """Names and shapes do not tell everything (activation, pre-norm, softmax scale): look at one output."""
    tokenizer = encoder.tokenizers["image"]
    image = torch.rand(
        1, tokenizer.config.channels, *tokenizer.config.image_size, generator=torch.Generator().manual_seed(0)
    )
    features = encoder({"image": image})
    theirs = model.forward_features(tokenizer.prepare(image))[:, -features.tokens.shape[1] :]
    error = (features.tokens - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
    if not error < 1e-3:
        raise MmsslError(
            f"{source} computes something that a plain ViT does not (its features come out {error:.2g} apart); it "
            "cannot be read."
        )
