"""The MAE authors' layout -> our encoder and our MAE, and back.

Whether a decoder predicts normalised patches or raw pixels is not in its weights: the authors' `_full` files are the
former, their `visualize` files the latter, and `norm_pix=` overrides what the name says.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmssl.encoder import Encoder, EncoderConfig, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.methods.mae import MAE, MAEConfig
from mmssl.nn.positions import sincos_2d
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.weights.files import State
from mmssl.weights.layout import (
    Published,
    Sizes,
    decoder_sizes,
    encoder_sizes,
    grid_of,
    require,
    told_mask_ratio,
    trunk_options,
)
from mmssl.weights.naming import DECODER_PARTS, decoder_state, projection, trunk_state


def read_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors of an authors' file, and whether it predicts normalised patches: by its arguments, else its name."""
    norm_pix = bool(arguments.get("norm_pix_loss", "visualize" not in path.name))
    return state, {"norm_pix": norm_pix} | told_mask_ratio(arguments)


def build_encoder(published: Published, modality: str = "image") -> Encoder:
    """Our encoder with published weights; position tables are the file's own, bit for bit.

    The final norm is there where the file has one: fine-tuned files pool first and norm after it, so that their tokens
    are not normed. Raises an `MmsslError` for what is missing, or has no place here.
    """
    sizes = encoder_sizes(published)
    encoder = Encoder(_encoder_config(published, sizes, modality))
    load_strictly(encoder, encoder.state_dict() | _encoder_state(published, modality), published.source)
    return encoder.eval()


def build_mae(published: Published) -> MAE:
    """Our MAE, decoder included, with published weights."""
    encoder, decoder = encoder_sizes(published), decoder_sizes(published)
    config = _mae_config(published, encoder, decoder)
    method = create_method(config)
    state = {f"encoder.{k}": v for k, v in _encoder_state(published, config.modality).items()}
    state |= {f"decoder.{k}": v for k, v in _decoder_state(published).items()}
    load_strictly(method, method.state_dict() | state, published.source)
    return method.eval()


def _encoder_config(published: Published, sizes: Sizes, modality: str) -> EncoderConfig:
    facts, state = published.facts, published.state
    grid, patch, prefix = grid_of(published)
    size = (grid[0] * patch[0], grid[1] * patch[1])
    channels = state["patch_embed.proj.weight"].shape[1]
    table = state["pos_embed"][0, prefix:].float()
    mean, std = (_of_grey(values, channels) for values in (facts.mean, facts.std))
    return EncoderConfig(
        tokenizers={modality: ImageTokenizerConfig("image", size, patch, channels, mean, std)},
        **trunk_options(published, sizes),
        positions=fixed_positions(table, grid) or "learned",
    )


def fixed_positions(table: Tensor, grid: tuple[int, int]) -> Literal["sincos", "sincos_row"] | None:
    """Which formula a position table (N, D) is of: MAE's with the column first, MultiMAE's with the row first."""
    orders = {"sincos": "column_first", "sincos_row": "row_first"} if table.shape[1] % 4 == 0 else {}
    for name, order in orders.items():
        if torch.allclose(table, sincos_2d(table.shape[1], grid, order), atol=1e-4):
            return name
    return None


def _of_grey(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Mean or std of each channel; a grey image that only those of three colours are known of has their average."""
    return (sum(values) / len(values),) if channels == 1 else values


def _mae_config(published: Published, encoder: Sizes, decoder: Sizes) -> MAEConfig:
    facts, source = published.facts, published.source
    plain = all(s.hidden == 4 * s.dim and s.qkv_bias == "full" and not s.layer_scale for s in (encoder, decoder))
    if not plain or "norm.weight" not in published.state or facts.gelu != "exact" or "cls_token" not in published.state:
        raise MmsslError(
            f"{source} is no MAE as published (cls token, MLP 4 times the width, q, k, v bias, exact GELU, final "
            "norm); mmssl.load may still read its encoder."
        )
    shape = _encoder_config(published, encoder, "image").tokenizers["image"]
    return MAEConfig(
        size="custom",
        dim=encoder.dim,
        depth=encoder.depth,
        heads=encoder.heads,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        channels=shape.channels,
        mean=shape.mean,
        std=shape.std,
        mask_ratio=facts.mask_ratio or MAEConfig.mask_ratio,
        norm_pix=facts.norm_pix,
        decoder_dim=decoder.dim,
        decoder_depth=decoder.depth,
        decoder_heads=decoder.heads,
        norm_eps=facts.norm_eps,
    )


def _encoder_state(published: Published, modality: str) -> State:
    """Weights of the encoder under our names; the cls token's position row is added to the cls token itself."""
    state = published.state
    *_, prefix = grid_of(published)
    table = state["pos_embed"].float()
    ours = projection(state) | {"pos_embed": table[:, prefix:].contiguous()}
    ours = {f"tokenizers.{modality}.{name}": value for name, value in ours.items()}
    if "cls_token" in state:
        cls = state["cls_token"].float()
        ours["cls_token"] = cls + table[:, :1] if prefix else cls
    return ours | trunk_state(state)


def _decoder_state(published: Published) -> State:
    state = published.state
    table = state["decoder_pos_embed"].float()
    if table[:, :1].abs().max() > 0:
        raise MmsslError(f"{published.source} gives the decoder's cls token a position, which MAE's does not have.")
    return decoder_state(state) | {"pos_embed": table[:, 1:].contiguous()}


def encoder_to_authors(encoder: Encoder) -> State:
    """Weights of an encoder of images under the authors' and timm's names.

    Raises an `MmsslError` where it has other modalities, or options that the layout has no place for.
    """
    config = encoder.config
    (modality, tokenizer), *others = encoder.tokenizers.items()
    if others or not isinstance(tokenizer.config, ImageTokenizerConfig) or config.norm == "post":
        raise MmsslError(
            f"an encoder of {', '.join(encoder.modalities)} with {config.norm}-norm blocks cannot be written in "
            "timm's or transformers' format, which hold pre-norm encoders of one image; use format 'mmssl'."
        )
    state = encoder.state_dict()
    table, weight = state[f"tokenizers.{modality}.pos_embed"], state[f"tokenizers.{modality}.proj.weight"]
    theirs = {
        "pos_embed": table,
        "patch_embed.proj.weight": _kernel(weight, tokenizer.config),
        "patch_embed.proj.bias": state[f"tokenizers.{modality}.proj.bias"],
    }
    if config.cls_token:
        theirs |= {"cls_token": state["cls_token"], "pos_embed": _with_cls_row(table)}
    theirs |= {k: v for k, v in state.items() if k.startswith(("blocks.", "norm."))}
    return {k: v.detach().cpu().contiguous() for k, v in theirs.items()}


def mae_to_authors(method: MAE) -> State:
    """Weights of a whole MAE under the authors' names (their `_full` layout)."""
    theirs = encoder_to_authors(method.encoder)
    state = method.decoder.state_dict()
    require(state, ["mask_token", "pos_embed"], "the decoder")
    theirs |= {"mask_token": state["mask_token"], "decoder_pos_embed": _with_cls_row(state["pos_embed"])}
    for name, part in DECODER_PARTS.items():
        theirs |= {f"{part}.{kind}": state[f"{name}.{kind}"] for kind in ("weight", "bias")}
    theirs |= {f"decoder_{k}": v for k, v in state.items() if k.startswith("blocks.")}
    return {k: v.detach().cpu().contiguous() for k, v in theirs.items()}


def _kernel(weight: Tensor, config: ImageTokenizerConfig) -> Tensor:
    """Our projection (D, p * q * C) -> a convolution's kernel (D, C, p, q)."""
    p, q = config.patch_size
    return weight.reshape(len(weight), p, q, config.channels).permute(0, 3, 1, 2)


def _with_cls_row(table: Tensor) -> Tensor:
    """A position table (1, N, D) with a row of zeros for cls in front, (1, 1 + N, D)."""
    return torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
