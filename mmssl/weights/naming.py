"""Names of tensors: changed by tables of patterns, q, k and v joined, parts of a model taken out."""

import re
from collections.abc import Iterable

import torch

from mmssl.weights.files import State

# our name of a part of a masked decoder -> its name in the common layout
DECODER_PARTS = {"embed": "decoder_embed", "norm": "decoder_norm", "pred": "decoder_pred"}


def join_qkv(state: State) -> State:
    """Separate q, k and v projections of every block joined into one, `attn.qkv`; biases on q and v alone become
    `attn.q_bias` and `attn.v_bias`.

    An incomplete three stays as it is: the `qkv` that is missing then, or a part without a place, is named.
    """
    joined: State = {}
    for name, value in state.items():
        match = re.fullmatch(r"(.+\.attn\.)([qkv])\.(weight|bias)", name)
        if match is None:
            joined[name] = value
            continue
        block, part, kind = match.groups()
        three = [state.get(f"{block}{x}.{kind}") for x in "qkv"]
        if all(t is not None for t in three):
            joined[f"{block}qkv.{kind}"] = torch.cat(three)
        elif kind == "bias" and three[1] is None:
            joined[f"{block}{part}_bias"] = value
        else:
            joined[name] = value
    return joined


def rename(state: State, *tables: tuple) -> State:
    """The tensors under names changed by (pattern, replacement) pairs, one table after the other."""
    return {renamed(name, *tables): value for name, value in state.items()}


def renamed(name: str, *tables: tuple) -> str:
    for table in tables:
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
    return name


def projection(state: State) -> State:
    """The patch embedding's kernel (D, C, [t,] p, q) and bias -> `proj.weight` (D, [t *] p * q * C), `proj.bias`."""
    kernel = state["patch_embed.proj.weight"].float()
    bias = state.get("patch_embed.proj.bias")
    return {
        "proj.weight": kernel.movedim(1, -1).reshape(len(kernel), -1).contiguous(),
        "proj.bias": torch.zeros(len(kernel)) if bias is None else bias.float(),
    }


def trunk_state(state: State) -> State:
    """The encoder's blocks and final norm, whose names are ours, as float32."""
    return {k: v.float() for k, v in state.items() if k.startswith(("blocks.", "norm."))}


def decoder_state(state: State) -> State:
    """The decoder's layers and mask token under our names, without positions, as float32."""
    ours = {"mask_token": state["mask_token"].float()}
    for name, value in state.items():
        for part, theirs in (*DECODER_PARTS.items(), ("blocks", "decoder_blocks")):
            if name.startswith(f"{theirs}."):
                ours[name.replace(theirs, part, 1)] = value.float()
    return ours


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few of them, in order, and how many more there are."""
    names = sorted(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
