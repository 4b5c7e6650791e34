"""The MultiMAE authors' layout of weights (their `multivit` files) -> our encoder and our MultiMAE.

    global_tokens (1, 1, D)   encoder.K.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2}
    input_adapters.T.{pos_emb (1, D, h, w), proj.{weight (D, C, p, q), bias}, [class_emb.weight]}
    output_adapters.T.{task_embeddings.T, mask_token, pos_emb (1, d, h, w), proj_context, query_norm, context_norm,
                       decoder.{q, kv, proj}, out_norm, mlp.{fc1, fc2}, decoder_transformer.K.*, out_proj}

T is rgb, depth or semseg; norm_rgb is a second output of rgb. Their `timm` files are a ViT's (official.py). The way
back is multimae_back.py.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mmssl.encoder import Encoder, EncoderConfig, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.methods.multimae import MultiMAE
from mmssl.methods.multimae_settings import TASKS, MultiMAEConfig
from mmssl.tokenizers.base import TokenizerConfig
from mmssl.tokenizers.depth import DepthTokenizerConfig
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.segmentation import SegmentationTokenizerConfig
from mmssl.weights.files import State
from mmssl.weights.layout import Published, encoder_sizes, require, trunk_options
from mmssl.weights.naming import listed, rename
from mmssl.weights.official import fixed_positions

NAMES = {"image": "rgb", "depth": "depth", "segmentation": "semseg", "norm_image": "norm_rgb"}
"""Our name of a modality or task -> theirs."""
DECODER_HEADS = {256: 8}
"""Width -> attention heads of the published decoders."""
STRIDE = 4
"""Pixels of the picture for each id of a segmentation, where no other modality tells it."""

PARTS = {
    "embed": "proj_context",
    "norm_query": "query_norm",
    "norm_context": "context_norm",
    "norm_mlp": "out_norm",
    "cross": "decoder",
    "blocks": "decoder_transformer",
    "task_embed": "task_embeddings",
    "pred": "out_proj",
}
"""Our name of a part of a decoder -> theirs."""
_OURS = {theirs: ours for ours, theirs in NAMES.items()}


def is_multimae_layout(state: State) -> bool:
    """Whether these are tensors of the layout above, at least of its encoder."""
    return "encoder.0.attn.qkv.weight" in state and any(name.startswith("input_adapters.") for name in state)


def read_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors, and the file's training arguments."""
    heads = arguments.get("decoder_num_heads")
    told = {"decoder_heads": heads} if isinstance(heads, int) and heads > 0 else {}
    return state, told | {"arguments": arguments}


def build_encoder(published: Published) -> Encoder:
    """Our encoder of all modalities of the file, with its weights; it is in evaluation mode.

    Raises an `MmsslError` for what is missing, or has no place here.
    """
    encoder = Encoder(_encoder_config(published))
    load_strictly(encoder, encoder.state_dict() | _encoder_state(published), published.source)
    return encoder.eval()


def build_multimae(published: Published) -> MultiMAE:
    """Our MultiMAE, decoders included, with published weights; it is in evaluation mode."""
    encoder = build_encoder(published)
    method = create_method(_config(published, encoder.config))
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    for name in _tasks(published, "output_adapters"):
        ours = _decoder_state(published, name, method)
        state |= {f"decoders.{name}.{part}": value for part, value in ours.items()}
    load_strictly(method, state, published.source)
    return method.eval()


def _tasks(published: Published, kind: str) -> list[str]:
    """Our names of the adapters in a file, those of the paper first."""
    found = dict.fromkeys(m[1] for name in published.state if (m := re.match(rf"{kind}\.([^.]+)\.", name)))
    strange = [
        f"{kind}.{name}" for name in found if name not in _OURS or (kind, name) == ("input_adapters", "norm_rgb")
    ]
    if strange:
        raise MmsslError(f"{published.source} has {listed(strange)}; known are rgb, depth and semseg.")
    ours = [_OURS[name] for name in found]
    return sorted(ours, key=list(NAMES).index)


def part(state: State, prefix: str) -> State:
    """The tensors below a name, without it, as float32."""
    return {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}


def _adapter(published: Published, name: str) -> State:
    """Tensors of one modality, all that there must be and nothing else."""
    state, prefix = published.state, f"input_adapters.{NAMES[name]}."
    wanted = ["pos_emb", "proj.weight", "proj.bias"] + ["class_emb.weight"] * (name == "segmentation")
    require(state, [prefix + part for part in wanted], published.source)
    extra = [k for k in state if k.startswith(prefix) and k.removeprefix(prefix) not in wanted]
    if extra:
        raise MmsslError(f"{published.source} is no MultiMAE as published: there is no place for {listed(extra)}.")
    return part(published.state, prefix)


def _trunk(published: Published) -> Published:
    """What is not of one modality, under the names of the common layout (layout.py)."""
    adapter = _adapter(published, _tasks(published, "input_adapters")[0])
    state = {"patch_embed.proj.weight": adapter["proj.weight"], "pos_embed": _table(adapter["pos_emb"])}
    rest = {k: v for k, v in published.state.items() if not k.startswith(("input_adapters.", "output_adapters."))}
    state |= rename(rest, [(r"^encoder\.(\d+)\.", r"blocks.\1."), (r"^global_tokens$", "cls_token")])
    require(state, ["cls_token"], published.source)
    if (count := state["cls_token"].shape[1]) != 1:
        raise MmsslError(f"{published.source} has {count} global tokens, and encoders here have one.")
    return replace(published, state=state)


def _table(pos_emb: Tensor) -> Tensor:
    """(1, D, h, w) -> (1, h * w, D)."""
    return pos_emb.flatten(2).mT.float().contiguous()


def _encoder_config(published: Published) -> EncoderConfig:
    names, trunk = _tasks(published, "input_adapters"), _trunk(published)
    adapters = {name: _adapter(published, name) for name in names}
    tables = {name: (_table(a["pos_emb"])[0], tuple(a["pos_emb"].shape[-2:])) for name, a in adapters.items()}
    fixed = all(fixed_positions(*table) == "sincos_row" for table in tables.values())
    return EncoderConfig(
        tokenizers={name: _tokenizer_config(published, name, adapters) for name in names},
        **trunk_options(trunk, encoder_sizes(trunk)),
        positions="sincos_row" if fixed else "learned",
    )


def _tokenizer_config(published: Published, name: str, adapters: dict[str, State]) -> TokenizerConfig:
    adapter, facts = adapters[name], published.facts
    cell, lattice = adapter["proj.weight"].shape[-2:], adapter["pos_emb"].shape[-2:]
    others = [tuple(a["proj.weight"].shape[-2:]) for other, a in adapters.items() if other != "segmentation"]
    patch = tuple(cell)
    if name == "segmentation":
        patch = others[0] if others else (cell[0] * STRIDE, cell[1] * STRIDE)
    size = (lattice[0] * patch[0], lattice[1] * patch[1])
    if name == "image":
        return ImageTokenizerConfig("image", size, patch, adapter["proj.weight"].shape[1], facts.mean, facts.std)
    if name == "depth":
        standardised = facts.arguments.get("standardize_depth", True)
        return DepthTokenizerConfig("depth", size, patch, "truncated" if standardised else "none")
    classes, embed = adapter["class_emb.weight"].shape
    return SegmentationTokenizerConfig(
        "segmentation", size, patch, classes, embed, max(1, patch[0] // cell[0]), _ignored(classes)
    )


def _ignored(classes: int) -> tuple[int, ...]:
    """Ids that are no class: the default ones, as far as they are none."""
    return tuple(i for i in SegmentationTokenizerConfig.ignore if i >= classes)


def _encoder_state(published: Published) -> State:
    """Weights of the encoder under our names."""
    trunk = _trunk(published).state
    ours = {k: v.float() for k, v in trunk.items() if k.startswith(("blocks.", "norm.", "cls_token"))}
    for name in _tasks(published, "input_adapters"):
        adapter, prefix = _adapter(published, name), f"tokenizers.{name}"
        ours |= {
            f"{prefix}.pos_embed": _table(adapter["pos_emb"]),
            f"{prefix}.proj.weight": adapter["proj.weight"].movedim(1, -1).flatten(1).contiguous(),
            f"{prefix}.proj.bias": adapter["proj.bias"],
        }
        if name == "segmentation":
            ours[f"{prefix}.embedding.weight"] = adapter["class_emb.weight"]
    return ours


def _config(published: Published, encoder: EncoderConfig) -> MultiMAEConfig:
    source, tasks = published.source, _tasks(published, "output_adapters")
    if not tasks:
        raise MmsslError(f"{source} holds no MultiMAE decoder; read its encoder with mmssl.load.")
    settings: dict[str, Any] = {name: getattr(encoder, name) for name in ("dim", "depth", "heads", "norm_eps")}
    settings |= _inputs(encoder) | _masking(published.facts.arguments, encoder) | _outputs(published, tasks)
    config = MultiMAEConfig(size="custom", in_tasks=tuple(encoder.tokenizers), **settings)
    if config.encoder_config() != encoder:
        raise MmsslError(
            f"{source} is no MultiMAE as published (MLP 4 times the width, q, k, v bias, fixed positions with the row "
            "first, no final norm, three channels, one patch size); mmssl.load may still read its encoder."
        )
    return config


def _inputs(encoder: EncoderConfig) -> dict[str, Any]:
    """Settings of what is read, as the tokenizers have them."""
    image, depth, classes = (encoder.tokenizers.get(name) for name in TASKS)
    first = next(iter(encoder.tokenizers.values()))
    settings = {"image_size": first.image_size, "patch_size": first.patch_size}
    settings |= {"mean": image.mean, "std": image.std} if image else {}
    settings |= {"standardise": depth.standardise} if depth else {}
    if classes:
        settings |= {"classes": classes.classes, "class_dim": classes.embed, "class_stride": classes.stride}
        settings["ignore"] = classes.ignore
    return settings


def _outputs(published: Published, tasks: list[str]) -> dict[str, Any]:
    """Settings of what is predicted, by the shapes of the first decoder."""
    name = f"output_adapters.{NAMES[tasks[0]]}"
    decoder = part(published.state, f"{name}.")
    require(decoder, ["mask_token"], f"{published.source}: {name}")
    dim = decoder["mask_token"].shape[-1]
    return {
        "out_tasks": tuple(name for name in TASKS if name in tasks),
        "extra_norm_pix": "norm_image" in tasks,
        "decoder_dim": dim,
        "decoder_heads": _decoder_heads(published, dim),
        "decoder_depth": _depth(decoder),
    }


def _masking(said: dict[str, Any], encoder: EncoderConfig) -> dict[str, Any]:
    """How tokens were masked, where training arguments say it; a budget that these modalities have no room for goes."""
    grids = [(t.image_size[0] // t.patch_size[0]) * (t.image_size[1] // t.patch_size[1]) for t in
             encoder.tokenizers.values()]  # fmt: skip
    budget = said.get("num_encoded_tokens", MultiMAEConfig.budget)
    settings = {"budget": budget if isinstance(budget, int) and 0 < budget < sum(grids) else max(1, sum(grids) // 6)}
    if isinstance(said.get("alphas"), float) and said["alphas"] > 0:
        settings["alpha"] = said["alphas"]
    return settings | {"uniform_subsets": bool(said.get("sample_tasks_uniformly", False))}


def _depth(decoder: State) -> int:
    return max((int(m[1]) + 1 for k in decoder if (m := re.match(r"decoder_transformer\.(\d+)\.", k))), default=0)


def _decoder_heads(published: Published, dim: int) -> int:
    heads, source = published.facts.decoder_heads, published.source
    if heads is None and dim not in DECODER_HEADS:
        raise MmsslError(
            f"{source} does not say the attention heads of its decoders, whose width {dim} is not the published one "
            f"({', '.join(map(str, DECODER_HEADS))}); say it with decoder_heads=."
        )
    heads = heads or DECODER_HEADS[dim]
    if heads < 1 or dim % heads:
        raise MmsslError(f"decoder_heads={heads} does not divide the width {dim} of {source}; give the model's own.")
    return heads


def _decoder_state(published: Published, name: str, method: MultiMAE) -> State:
    """Weights of one decoder under our names."""
    theirs = part(published.state, f"output_adapters.{NAMES[name]}.")
    prefix = f"{published.source}: output_adapters.{NAMES[name]}"
    require(theirs, ["pos_emb", "out_proj.weight", "out_proj.bias"], prefix)
    names = [(rf"^{b}\.", f"{a}.") for a, b in PARTS.items()]
    tasks = [(rf"^task_embed\.{b}$", f"task_embed.{a}") for a, b in NAMES.items()]
    ours = rename({k: v for k, v in theirs.items() if k != "pos_emb"}, names, tasks)
    ours["pos_embed"] = _table(theirs["pos_emb"])
    for kind in ("weight", "bias"):
        ours[f"pred.{kind}"] = _channel_last(ours[f"pred.{kind}"], cell_of(method, name))
    return ours


def cell_of(method: MultiMAE, name: str) -> tuple[int, int]:
    """Height and width of a patch of what a task predicts, in values."""
    return method.tokenizer(name.removeprefix("norm_")).cell


def _channel_last(x: Tensor, cell: tuple[int, int]) -> Tensor:
    """Rows in the order (channel, row, column) -> (row, column, channel)."""
    if len(x) % (cell[0] * cell[1]):
        return x  # of another shape, which is said where it is loaded
    return x.unflatten(0, (-1, *cell)).movedim(0, 2).flatten(0, 2).contiguous()
