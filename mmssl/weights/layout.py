"""The layout of weights that all published formats are brought into first, so that only one conversion knows our names.

It is the MAE authors', which is timm's with a decoder:

    cls_token (1, 1, D)   pos_embed (1, 1 + N, D)   patch_embed.proj.{weight (D, C, p, q), bias}
    blocks.K.{norm1, attn.qkv, attn.proj, [ls1.gamma], norm2, mlp.fc1, mlp.fc2, [ls2.gamma]}   norm
    mask_token   decoder_pos_embed   decoder_embed   decoder_blocks.K.*   decoder_norm   decoder_pred

Models of video have (D, C, t, p, q) kernels and other position tables, or none.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mmssl.errors import MmsslError
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD
from mmssl.weights.files import State
from mmssl.weights.naming import DECODER_PARTS, listed

ENCODER_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Width -> attention heads of the published ViT-Ti, S, B, L, H (MVP's ViT-S has 12: say `heads=12`)."""
DECODER_HEADS = {512: 16}
"""Width -> attention heads of the published MAE decoder."""

# What classifiers carry beside the encoder. It is not part of the features; `load_classifier` reads it.
_HEAD = ("head.", "fc_norm.", "pooler.", "classifier.")
_DECODER = ("decoder_", "mask_token")


@dataclass(frozen=True)
class Facts:
    """What a file of tensors cannot tell; None = to be inferred."""

    heads: int | None = None
    decoder_heads: int | None = None
    image_size: tuple[int, int] | None = None
    """Known size of the images, in pixels."""
    image_size_guess: tuple[int, int] | None = None
    """What the user says. Where a file holds position tables it is believed only if these are of no square lattice."""
    frames: int | None = None
    """Number of frames of a clip or spectrogram, where no position table tells it."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    norm_eps: float = 1e-6
    head_norm_eps: float = 1e-6
    """Epsilon of the norm before a classifier's head."""
    decoder_norm_eps: float | None = None
    """Epsilon of the norm after the decoder; None = as everywhere."""
    gelu: str = "exact"
    norm_pix: bool = True
    mask_ratio: float | None = None
    """None = the method's own."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """The file's training arguments, for a layout that needs more of them."""


@dataclass(frozen=True)
class Published:
    """Published weights: tensors under the authors' names, and what is known beside them."""

    state: State
    source: str
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True)
class Sizes:
    """Sizes of an encoder, or of a decoder, read from the shapes of its weights."""

    dim: int
    depth: int
    hidden: int
    heads: int
    qkv_bias: str
    layer_scale: bool

    @property
    def mlp_ratio(self) -> float:
        """Ratio of which a block makes exactly `hidden`: int(dim * ratio) must not fall below it by rounding."""
        ratio = self.hidden / self.dim
        return ratio if int(self.dim * ratio) == self.hidden else math.nextafter(ratio, math.inf)


def trunk_options(published: Published, sizes: Sizes) -> dict[str, Any]:
    """The fields of `EncoderConfig` that are the same in every layout: its blocks, and what stands before and after."""
    state, facts = published.state, published.facts
    names = ("dim", "depth", "heads", "mlp_ratio", "qkv_bias")
    return {name: getattr(sizes, name) for name in names} | {
        "norm_eps": facts.norm_eps,
        "gelu": facts.gelu,
        "layer_scale": 1.0 if sizes.layer_scale else None,
        "cls_token": "cls_token" in state,
        "final_norm": "norm.weight" in state,
    }


def told_mask_ratio(arguments: dict[str, Any]) -> dict[str, float]:
    """The fact `mask_ratio`, where training arguments hold a possible one (CropMAE calls it masking_ratio)."""
    ratio = arguments.get("mask_ratio", arguments.get("masking_ratio"))
    return {"mask_ratio": ratio} if isinstance(ratio, float) and 0 < ratio < 1 else {}


def is_authors_layout(state: State) -> bool:
    """Whether these are tensors of the layout above, at least of its encoder."""
    return "patch_embed.proj.weight" in state and any(name.startswith("blocks.0.") for name in state)


def has_decoder(state: State) -> bool:
    return any(name.startswith("decoder_") for name in state)


def encoder_sizes(
    published: Published, tables: Iterable[str] = ("pos_embed",), video: bool = False, ignored: tuple[str, ...] = ()
) -> Sizes:
    """Sizes of the encoder. Raises an `MmsslError` for names that are missing or that our encoder has no place for.

    Args:
        published: the weights.
        tables: names of its position tables.
        video: whether it is a model of video, with a patch projection in three dimensions.
        ignored: starts of names that belong to other parts, beside those of this layout.
    """
    state, source = published.state, published.source
    sizes = _sizes(published, "blocks", published.facts.heads, ENCODER_HEADS, "heads")
    wanted = {*tables, "patch_embed.proj.weight"} | _block_names("blocks", sizes)
    if "norm.weight" in state:
        wanted |= {"norm.weight", "norm.bias"}
    require(state, wanted, source)
    allowed = wanted | {"cls_token", "patch_embed.proj.bias"}
    extra = [n for n in state if n not in allowed and not n.startswith(_HEAD + _DECODER + ignored)]
    if extra:
        raise MmsslError(
            f"{source} is not a plain ViT: there is no place for {listed(extra)} in the encoder, and without these "
            "its features would be wrong."
        )
    if state["patch_embed.proj.weight"].ndim != (5 if video else 4):
        shape = tuple(state["patch_embed.proj.weight"].shape)
        wanted = "a video model" if video else "an image model"
        raise MmsslError(
            f"{source} is not {wanted}: its patch projection has the shape {shape}, not "
            f"{'(D, C, t, p, q)' if video else '(D, C, p, q)'}."
        )
    return sizes


def decoder_sizes(
    published: Published,
    method: str = "MAE",
    heads: dict[int, int] = DECODER_HEADS,
    others: Iterable[str] = ("decoder_pos_embed",),
    embed_bias: bool = True,
    whole: str = "the authors' file whose name ends in _full, or a visualize one",
) -> Sizes:
    """Sizes of the decoder. Raises an `MmsslError` where the file has none, or not the whole of it, or more.

    Args:
        published: the weights.
        method: whose decoder it should be, for messages.
        heads: width -> attention heads, where the facts do not say.
        others: names that it has beside its layers and the mask token.
        embed_bias: whether its first layer has a bias.
        whole: where a decoder is to be had, for messages.
    """
    state, source = published.state, published.source
    if not has_decoder(state):
        raise MmsslError(f"{source} holds the encoder alone, no decoder; use mmssl.load for it, or give {whole}.")
    sizes = _sizes(published, "decoder_blocks", published.facts.decoder_heads, heads, "decoder_heads")
    parts = {f"{part}.{kind}" for part in DECODER_PARTS.values() for kind in ("weight", "bias")}
    parts -= set() if embed_bias else {"decoder_embed.bias"}
    wanted = {"mask_token", *others, *parts} | _block_names("decoder_blocks", sizes)
    require(state, wanted, source)
    extra = [n for n in state if n.startswith("decoder_") and n not in wanted]
    if extra:
        raise MmsslError(f"{source} is not {method}'s decoder: it also has {listed(extra)}.")
    return sizes


def grid_of(published: Published) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Lattice (rows, columns), patch size in pixels, and number of prefix rows (cls) in the position table."""
    state, source = published.state, published.source
    patch = tuple(state["patch_embed.proj.weight"].shape[-2:])
    rows, prefix = state["pos_embed"].shape[1], int("cls_token" in state)
    n = rows - prefix
    said = (published.facts.image_size, published.facts.image_size_guess)
    known, guess = ([] if size is None else [(size[0] // patch[0], size[1] // patch[1])] for size in said)
    squares = [(math.isqrt(m), math.isqrt(m)) for m in (n, rows)]
    for grid in (*known, *squares, *guess):
        if math.prod(grid) in (n, rows):  # `rows`: no row for cls (timm's no_embed_class)
            return grid, patch, rows - math.prod(grid)
    raise MmsslError(
        f"{source} has positions for {n} patches, which is no square: say of which image size with image_size=(H, W)."
    )


def require(state: State, wanted: Iterable[str], source: str) -> None:
    """Raise an `MmsslError` that names what is missing."""
    missing = sorted(set(wanted) - set(state))
    if missing:
        raise MmsslError(f"{source} lacks {listed(missing)}; the file is not complete, or of another kind of model.")


def _sizes(published: Published, blocks: str, heads: int | None, table: dict[int, int], option: str) -> Sizes:
    state, source = published.state, published.source
    require(state, [f"{blocks}.0.mlp.fc1.weight"], source)
    hidden, dim = state[f"{blocks}.0.mlp.fc1.weight"].shape
    numbers = {int(m[1]) for name in state if (m := re.match(rf"{blocks}\.(\d+)\.", name))}
    bias = "full" if f"{blocks}.0.attn.qkv.bias" in state else "none"
    bias = "qv" if f"{blocks}.0.attn.q_bias" in state else bias
    if heads is None and dim not in table:
        raise MmsslError(
            f"{source} does not say its number of attention heads, and its width {dim} is not a published one "
            f"({', '.join(map(str, table))}); say it with {option}=."
        )
    heads = heads or table[dim]
    if heads < 1 or dim % heads:
        raise MmsslError(f"{option}={heads} does not divide the width {dim} of {source}; give the model's own number.")
    return Sizes(dim, max(numbers) + 1, hidden, heads, bias, f"{blocks}.0.ls1.gamma" in state)


def _block_names(blocks: str, sizes: Sizes) -> set[str]:
    parts = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias"]
    parts += [f"{part}.{kind}" for part in ("norm2", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")]
    parts += {"full": ["attn.qkv.bias"], "qv": ["attn.q_bias", "attn.v_bias"], "none": []}[sizes.qkv_bias]
    parts += ["ls1.gamma", "ls2.gamma"] if sizes.layer_scale else []
    return {f"{blocks}.{k}.{part}" for k in range(sizes.depth) for part in parts}
