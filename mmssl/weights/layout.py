"""The MAE authors' layout of weights, which is timm's with a decoder: its names, and the sizes that it tells.

    cls_token (1, 1, D)   pos_embed (1, 1 + N, D)   patch_embed.proj.{weight (D, C, p, q), bias}
    blocks.K.{norm1, attn.qkv, attn.proj, [ls1.gamma], norm2, mlp.fc1, mlp.fc2, [ls2.gamma]}   norm
    mask_token   decoder_pos_embed   decoder_embed   decoder_blocks.K.*   decoder_norm   decoder_pred

All published formats are brought into it first, so that only one conversion knows our own names.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from mmssl.errors import MmsslError
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD
from mmssl.weights.files import State

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
    """Believed only where the position table is of no square lattice."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    norm_eps: float = 1e-6
    gelu: str = "exact"
    norm_pix: bool = True
    mask_ratio: float = 0.75


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


def is_authors_layout(names: Iterable[str]) -> bool:
    """Whether these are names of the layout above, at least of its encoder."""
    names = set(names)
    return "patch_embed.proj.weight" in names and any(n.startswith("blocks.0.") for n in names)


def has_decoder(state: State) -> bool:
    return any(name.startswith("decoder_") for name in state)


def encoder_sizes(published: Published) -> Sizes:
    """Sizes of the encoder. Raises an `MmsslError` for names that are missing or that our encoder has no place for."""
    state, source = published.state, published.source
    sizes = _sizes(published, "blocks", published.facts.heads, ENCODER_HEADS, "heads")
    wanted = {"pos_embed", "patch_embed.proj.weight"} | _block_names("blocks", sizes)
    if "norm.weight" in state:
        wanted |= {"norm.weight", "norm.bias"}
    require(state, wanted, source)
    allowed = wanted | {"cls_token", "patch_embed.proj.bias"}
    extra = [n for n in state if n not in allowed and not n.startswith(_HEAD + _DECODER)]
    if extra:
        raise MmsslError(
            f"{source} is not a plain ViT: there is no place for {_listed(extra)} in the encoder, and without these "
            "its features would be wrong."
        )
    if state["patch_embed.proj.weight"].ndim != 4:
        shape = tuple(state["patch_embed.proj.weight"].shape)
        raise MmsslError(
            f"{source} is not an image model: its patch projection has the shape {shape}, not (D, C, p, q)."
        )
    return sizes


def decoder_sizes(published: Published) -> Sizes:
    """Sizes of the decoder. Raises an `MmsslError` where the file has none, or not the whole of it."""
    state, source = published.state, published.source
    if not has_decoder(state):
        raise MmsslError(
            f"{source} holds the encoder alone, no decoder; use mmssl.load for it, or give the authors' file whose "
            "name ends in _full, or a visualize one."
        )
    sizes = _sizes(published, "decoder_blocks", published.facts.decoder_heads, DECODER_HEADS, "decoder_heads")
    parts = [f"decoder_{part}.{kind}" for part in ("embed", "norm", "pred") for kind in ("weight", "bias")]
    wanted = {"mask_token", "decoder_pos_embed", *parts} | _block_names("decoder_blocks", sizes)
    require(state, wanted, source)
    extra = [n for n in state if n.startswith("decoder_") and n not in wanted]
    if extra:
        raise MmsslError(f"{source} is not MAE's decoder: it also has {_listed(extra)}.")
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
        raise MmsslError(f"{source} lacks {_listed(missing)}; the file is not complete, or of another kind of model.")


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


def _listed(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
