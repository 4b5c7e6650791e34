"""The MTM authors' layout of weights -> our MTM. For each modality k (states, actions, returns, rewards):

    encoder_embed_dict.k.{weight (D, F), bias}   encoder_per_dim_encoding.k (1, 1, 1, D)   pos_embed (1, T, 1, D)
    {encoder,decoder}.layers.N.{self_attn.{in_proj_weight, in_proj_bias, out_proj}, linear1, linear2, norm1, norm2}
    {encoder,decoder}.norm   decoder_embed_dict.k   mask_token_dict.k (1, 1, D)   decoder_per_dim_encoding.k
    output_head_dict.k.{0,1,3}

The authors released no file. What a trajectory is standardised by is not in one: set it with
`encoder.tokenizer(name).set_statistics(mean, std)`.
"""

import re
from pathlib import Path
from typing import Any

from mmssl.encoder import Encoder, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.methods.mtm import MTM, MTMConfig
from mmssl.tokenizers.vector import VECTORS
from mmssl.weights.files import State
from mmssl.weights.layout import Published, require
from mmssl.weights.naming import listed

HEADS = {512: 4}
"""Width -> attention heads of the published models."""

_KINDS = ("weight", "bias")
_BLOCK = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "self_attn.out_proj", "mlp.fc1": "linear1",
          "mlp.fc2": "linear2"}  # our name of a part of a block -> theirs  # fmt: skip


def is_mtm_layout(state: State) -> bool:
    """Whether these are tensors of the layout above."""
    starts = {name.partition(".")[0] for name in state}
    return {"encoder_embed_dict", "encoder_per_dim_encoding", "output_head_dict"} <= starts


def read_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors as they are; a file tells nothing else."""
    return state, {}


def build_encoder(published: Published) -> Encoder:
    """The encoder of `build_mtm`."""
    return build_mtm(published).encoder


def build_mtm(published: Published) -> MTM:
    """Our MTM, decoder included, with published weights; it is in evaluation mode, and standardises nothing yet.

    Raises:
        MmsslError: parts that are missing or have no place here, such as discretised modalities and bottlenecks.
    """
    names = _modalities(published)
    method = create_method(_config(published, names))
    load_strictly(method, method.state_dict() | _state(published, names), published.source)
    return method.eval()


def _modalities(published: Published) -> dict[str, str]:
    """Our name of each modality -> theirs, in their order."""
    prefix, state = "encoder_embed_dict.", published.state
    theirs = [name.removeprefix(prefix).removesuffix(".weight") for name in state if name.startswith(prefix)
              and name.endswith(".weight")]  # fmt: skip
    names = {name.removesuffix("s"): name for name in theirs}
    if unknown := [name for ours, name in names.items() if ours not in VECTORS]:
        raise MmsslError(f"{published.source} is of the modalities {unknown}; readable are {', '.join(VECTORS)}.")
    return names


def _config(published: Published, names: dict[str, str]) -> MTMConfig:
    state, source = published.state, published.source
    require(state, ["pos_embed", "encoder.norm.weight", "decoder.norm.weight"], source)
    slots = {name: state[f"encoder_per_dim_encoding.{name}"].shape[2] for name in names.values()}
    if max(slots.values()) > 1 or any(name.startswith("encoder_projection") for name in state):
        raise MmsslError(
            f"{source} has several tokens of a modality in a step, {slots}, or a bottleneck; readable are models of "
            "standardised vectors, one token each, without encoder_projection."
        )
    dim = state["pos_embed"].shape[-1]
    heads = published.facts.heads or HEADS.get(dim)
    if heads is None:
        raise MmsslError(f"{source} does not say its number of attention heads, and its width {dim} is not the "
                         "published 512; say it with heads=.")  # fmt: skip
    return MTMConfig(
        widths={ours: state[f"encoder_embed_dict.{theirs}.weight"].shape[1] for ours, theirs in names.items()},
        length=state["pos_embed"].shape[1],
        dim=dim,
        depth=_depth(state, "encoder"),
        heads=heads,
        decoder_depth=_depth(state, "decoder"),
    )


def _depth(state: State, part: str) -> int:
    return 1 + max((int(m[1]) for name in state if (m := re.match(rf"{part}\.layers\.(\d+)\.", name))), default=-1)


def _state(published: Published, names: dict[str, str]) -> State:
    """Weights under our names. An `MmsslError` names what is missing or left over."""
    state, table, config = published.state, _table(published, names), {}
    require(state, table.values(), published.source)
    if extra := sorted(set(state) - set(table.values()) - {"pos_embed"}):
        raise MmsslError(f"{published.source} is no MTM as published: there is no place for {listed(extra)}.")
    positions = state["pos_embed"][:, :, 0].float()  # (1, T, D)
    for ours in names:
        config |= {f"encoder.tokenizers.{ours}.pos_embed": positions, f"decoder.pos_embed.{ours}": positions}
    found = {ours: state[theirs].float() for ours, theirs in table.items()}
    return config | {k: v[:, 0] if k.partition(".type_embed")[1] else v for k, v in found.items()}


def _table(published: Published, names: dict[str, str]) -> dict[str, str]:
    """Our name of every tensor but the position tables -> theirs."""
    table = {}
    for ours, theirs in names.items():
        table |= {
            f"encoder.type_embed.{ours}": f"encoder_per_dim_encoding.{theirs}",
            f"decoder.type_embed.{ours}": f"decoder_per_dim_encoding.{theirs}",
            f"decoder.mask_token.{ours}": f"mask_token_dict.{theirs}",
        }
        pairs = {f"encoder.tokenizers.{ours}.proj": f"encoder_embed_dict.{theirs}",
                 f"decoder.embed.{ours}": f"decoder_embed_dict.{theirs}"}  # fmt: skip
        pairs |= {f"decoder.head.{ours}.{i}": f"output_head_dict.{theirs}.{i}" for i in (0, 1, 3)}
        table |= {f"{a}.{kind}": f"{b}.{kind}" for a, b in pairs.items() for kind in _KINDS}
    for part in ("encoder", "decoder"):
        table |= {f"{part}.norm.{kind}": f"{part}.norm.{kind}" for kind in _KINDS}
        for k in range(_depth(published.state, part)):
            ours, theirs = f"{part}.blocks.{k}", f"{part}.layers.{k}"
            table |= {f"{ours}.{a}.{kind}": f"{theirs}.{b}.{kind}" for a, b in _BLOCK.items() for kind in _KINDS}
            table |= {f"{ours}.attn.qkv.{kind}": f"{theirs}.self_attn.in_proj_{kind}" for kind in _KINDS}
    return table
