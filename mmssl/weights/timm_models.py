"""timm's vision transformers, of images and of spectrograms -> the authors' layout, which is timm's own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmssl.encoder import Encoder
from mmssl.errors import MmsslError, unknown_name
from mmssl.weights import audiomae
from mmssl.weights.files import read_folder, read_json
from mmssl.weights.hub import download
from mmssl.weights.layout import Facts, Published
from mmssl.weights.official import build_encoder

_GELU = {"none": "exact", "tanh": "tanh"}
_HUB = ("hf_hub:", "hf-hub:")
_POOLING = {"avg": "mean", "token": "cls"}


def read_timm(name: str, pretrained: bool = True, modality: str | None = None) -> Encoder:
    """Encoder of a timm ViT by its timm name, with or without a tag (`vit_base_patch16_224.mae`).

    Without a tag timm's default one is taken: mostly supervised weights. Weights come from the hub or its cache;
    `pretrained=False` leaves them random and needs neither. As timm does, `hf_hub:organisation/name` reads any
    repository in timm's layout. Raises an `MmsslError` for an unknown name, no connection, or a model that is no plain
    ViT.
    """
    import timm

    if name.startswith(_HUB):
        return read_timm_folder(download(name[len(_HUB[0]) :], f"timm:{name}"), modality, pretrained)

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
    return _encoder(_create(name, pretrained, **weights), f"timm:{name}", modality)


def read_timm_folder(folder: Path, modality: str | None = None, pretrained: bool = True) -> Encoder:
    """Encoder of a folder in the layout of timm's hub repositories: config.json with `architecture`, and weights."""
    return _encoder(_model_of(folder, pretrained), str(folder), modality)


def read_timm_classifier(folder: Path, modality: str | None = None) -> tuple[Encoder, Published, str]:
    """Encoder of such a folder, all of its tensors, and how it pools: "mean" or "cls"."""
    model = _model_of(folder)
    encoder, pool = _encoder(model, str(folder), modality), model.global_pool
    if pool not in _POOLING:
        raise MmsslError(
            f"{folder} pools with {pool!r}; readable are classifiers that pool with {', '.join(_POOLING)}."
        )
    return encoder, _published(model, str(folder)), _POOLING[pool]


def _model_of(folder: Path, pretrained: bool = True) -> nn.Module:
    """timm's own model of such a folder, with its weights."""
    settings = read_json(folder / "config.json")
    model = _create(
        settings["architecture"],
        False,
        num_classes=settings.get("num_classes", 0),
        pretrained_cfg=settings.get("pretrained_cfg"),
        **settings.get("model_args", {}),
    )
    if not pretrained:
        return model
    try:
        model.load_state_dict(read_folder(folder))
    except RuntimeError as error:
        said = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise MmsslError(f"the weights in {folder} do not fit {settings['architecture']!r}: {said}") from None
    return model


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


def _encoder(model: nn.Module, source: str, modality: str | None) -> Encoder:
    """The model's weights in our encoder; its output is compared with the model's own on one random input."""
    published = _published(model, source)
    if _is_audio(published, modality):
        encoder = audiomae.build_encoder(audiomae.with_statistics(published))
    else:
        encoder = build_encoder(published)
    _compare(model.eval(), encoder, source)
    return encoder


def _published(model: nn.Module, source: str) -> Published:
    """Tensors of a timm model and what it says beside them; an `MmsslError` where it is no plain ViT."""
    from timm.models.vision_transformer import Block, VisionTransformer

    if not isinstance(model, VisionTransformer) or not isinstance(model.blocks[0], Block):
        raise MmsslError(f"{source} is a {type(model).__name__}, not a plain ViT; use one of timm's vit_* or deit_*.")
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("attn_pool.")}
    return Published(state, source, _facts(model))


def _is_audio(published: Published, modality: str | None) -> bool:
    """Whether a timm model reads spectrograms: what the user says, else its one channel and its size (T, 128)."""
    fits = audiomae.is_audiomae_layout(published.state)
    if modality is None or not fits:
        return fits and audiomae.says_audio(published.state, {}, {"image_size": published.facts.image_size})
    return modality == "audio"


def _facts(model: nn.Module) -> Facts:
    settings, block = model.pretrained_cfg, model.blocks[0]
    act = getattr(block.mlp, "act", None)
    facts = Facts(
        heads=block.attn.num_heads,
        image_size=tuple(model.patch_embed.img_size),
        norm_eps=getattr(block.norm1, "eps", 1e-6),
        head_norm_eps=getattr(model.fc_norm, "eps", 1e-6),
        gelu=_GELU.get(getattr(act, "approximate", "none"), "exact"),
    )
    channels = len(settings.get("mean") or ())
    return replace(facts, mean=tuple(settings["mean"]), std=tuple(settings["std"])) if channels else facts


@torch.no_grad()
def _compare(model: nn.Module, encoder: Encoder, source: str) -> None:
    """Names and shapes do not tell everything (activation, pre-norm, softmax scale): look at one output."""
    (modality,) = encoder.modalities
    shape = (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    features = encoder({modality: x})
    theirs = model.forward_features(encoder.tokenizers[modality].prepare(x))[:, -features.tokens.shape[1] :]
    error = (features.tokens - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
    if not error < 1e-3:
        raise MmsslError(
            f"{source} computes something that a plain ViT does not (its features come out {error:.2g} apart); it "
            "cannot be read."
        )
