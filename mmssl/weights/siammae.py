"""CropMAE's layout of weights, in which its authors trained SiamMAE too -> our SiamMAE, and back.

The encoder, `decoder_embed`, `mask_token`, `decoder_pos_embed`, `decoder_norm` and `decoder_pred` are MAE's; a block is

    decoder_blocks.K.{self_attn,multihead_attn}.{in_proj_weight, in_proj_bias, out_proj.{weight, bias}}
    decoder_blocks.K.{linear1,linear2,norm1,norm2,norm3}.{weight, bias}
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from mmssl.encoder import Encoder, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.methods.siammae import SiamMAE, SiamMAEConfig
from mmssl.weights.files import State
from mmssl.weights.layout import Published, is_authors_layout, require
from mmssl.weights.naming import DECODER_PARTS, listed
from mmssl.weights.official import build_encoder, encoder_to_authors

DECODER_HEADS = {256: 8, 512: 16, 1024: 16}
"""Width -> attention heads of CropMAE's decoders beside ViT-S, B and L."""

# our name of a part of a block -> theirs, both with .weight and .bias
_BLOCK = {
    "norm_cross": "norm2",
    "cross.proj": "multihead_attn.out_proj",
    "norm2": "norm3",
    "mlp.fc1": "linear1",
    "mlp.fc2": "linear2",
    "norm1": "norm1",
    "attn.proj": "self_attn.out_proj",
}
_KINDS = ("weight", "bias")


def is_siammae_layout(state: State) -> bool:
    """Whether these are tensors of the layout above, decoder included."""
    return is_authors_layout(state) and "decoder_blocks.0.multihead_attn.in_proj_weight" in state


def read_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors, and what the file's training arguments say; without any, patches are normalised, as published."""
    told: dict[str, Any] = {"norm_pix": bool(arguments.get("norm_pix_loss", True))}
    ratio, heads = arguments.get("masking_ratio"), arguments.get("decoder_num_heads")
    if isinstance(ratio, float) and 0 < ratio < 1:
        told["mask_ratio"] = ratio
    if isinstance(heads, int) and heads > 0:
        told["decoder_heads"] = heads
    return state, told


def build_siammae(published: Published) -> SiamMAE:
    """Our SiamMAE, decoder included, with published weights; it is in evaluation mode.

    Raises an `MmsslError` where parts are missing, have no place here, or do not fit one another.
    """
    encoder, decoder = build_encoder(published), _decoder_state(published)
    method = create_method(_config(published, encoder))
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    load_strictly(method, state | {f"decoder.{k}": v for k, v in decoder.items()}, published.source)
    return method.eval()


def _config(published: Published, encoder: Encoder) -> SiamMAEConfig:
    state, config, image = published.state, encoder.config, encoder.tokenizers["image"].config
    plain = config.mlp_ratio == 4 and config.qkv_bias == "full" and config.layer_scale is None
    if not (plain and config.cls_token and config.final_norm and config.gelu == "exact" and image.channels == 3):
        raise MmsslError(
            f"{published.source} is no SiamMAE as published (three channels, cls token, MLP 4 times the width, q, k, v "
            "bias, exact GELU, final norm); mmssl.load may still read its encoder."
        )
    dim, hidden = len(state["decoder_embed.weight"]), len(state["decoder_blocks.0.linear1.weight"])
    return SiamMAEConfig(
        size="custom",
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        image_size=image.image_size,
        patch_size=image.patch_size,
        mean=image.mean,
        std=image.std,
        mask_ratio=published.facts.mask_ratio or SiamMAEConfig.mask_ratio,
        norm_pix=published.facts.norm_pix,
        decoder_order="cropmae",
        decoder_dim=dim,
        decoder_depth=_depth(state),
        decoder_heads=_heads(published, dim),
        decoder_hidden=hidden,
        norm_eps=config.norm_eps,
    )


def _depth(state: State) -> int:
    return 1 + max(int(m[1]) for name in state if (m := re.match(r"decoder_blocks\.(\d+)\.", name)))


def _heads(published: Published, dim: int) -> int:
    heads, source = published.facts.decoder_heads, published.source
    if heads is None and dim not in DECODER_HEADS:
        raise MmsslError(
            f"{source} does not say the attention heads of its decoder, whose width {dim} is not a published one "
            f"({', '.join(map(str, DECODER_HEADS))}); say it with decoder_heads=."
        )
    heads = heads or DECODER_HEADS[dim]
    if heads < 1 or dim % heads:
        raise MmsslError(f"decoder_heads={heads} does not divide the width {dim} of {source}; give the model's own.")
    return heads


def _decoder_state(published: Published) -> State:
    """Weights of the decoder under our names; an `MmsslError` names what is missing, or has no place here."""
    source = published.source
    if not is_siammae_layout(published.state):
        raise MmsslError(f"{source} holds no SiamMAE decoder in CropMAE's layout; read its encoder with mmssl.load.")
    state = {k: v.float() for k, v in published.state.items() if k.startswith("decoder_") or k == "mask_token"}
    names = _names(_depth(state))
    require(state, names.values(), source)
    extra = set(state) - set(names.values())
    if extra:
        raise MmsslError(f"{source} is not SiamMAE's decoder: it also has {listed(extra)}.")
    ours = {name: state[theirs] for name, theirs in names.items()}
    if ours["pos_embed"][:, :1].abs().max() > 0:
        raise MmsslError(f"{source} gives the decoder's cls token a position, which SiamMAE's does not have.")
    ours["pos_embed"] = ours["pos_embed"][:, 1:].contiguous()
    for name in [n for n in ours if ".cross.qkv." in n]:  # one matrix there, two here
        whole = ours.pop(name)
        q, kv = whole.tensor_split([len(whole) // 3])
        ours |= {name.replace("qkv", "q"): q.contiguous(), name.replace("qkv", "kv"): kv.contiguous()}
    return ours


def siammae_to_authors(method: SiamMAE) -> State:
    """Weights of a whole SiamMAE under CropMAE's names.

    Raises an `MmsslError` where its decoder is of another order, for which no layout was published.
    """
    if method.config.decoder_order != "cropmae":
        raise MmsslError(
            f"a decoder of order {method.config.decoder_order!r} has no place in CropMAE's layout, which is of order "
            "'cropmae'; use format 'mmssl', or write the encoder alone."
        )
    state = {k: v.detach().cpu() for k, v in method.decoder.state_dict().items()}
    for name in [n for n in state if ".cross.q." in n]:
        both = state.pop(name), state.pop(name.replace(".q.", ".kv."))
        state[name.replace(".q.", ".qkv.")] = torch.cat(both)
    state["pos_embed"] = pad(state["pos_embed"], (0, 0, 1, 0))  # a row of zeros for cls in front
    names = _names(len(method.decoder.blocks))
    return encoder_to_authors(method.encoder) | {theirs: state[ours].contiguous() for ours, theirs in names.items()}


def _names(depth: int) -> dict[str, str]:
    """Our name of each tensor of the decoder -> theirs; q, k and v of `cross` as one `cross.qkv`, as they have it."""
    names = {"mask_token": "mask_token", "pos_embed": "decoder_pos_embed"}
    names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in DECODER_PARTS.items() for kind in _KINDS}
    for k in range(depth):
        a, b = f"blocks.{k}", f"decoder_blocks.{k}"
        for kind in _KINDS:
            names |= {f"{a}.{ours}.{kind}": f"{b}.{theirs}.{kind}" for ours, theirs in _BLOCK.items()}
            names[f"{a}.attn.qkv.{kind}"] = f"{b}.self_attn.in_proj_{kind}"
            names[f"{a}.cross.qkv.{kind}"] = f"{b}.multihead_attn.in_proj_{kind}"
    return names
