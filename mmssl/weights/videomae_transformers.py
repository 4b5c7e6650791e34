"""transformers' VideoMAE (VideoMAEModel, ForPreTraining, ForVideoClassification) -> the common names, and back.

Two generations of names are read: `attention.attention.q_bias`, what all versions write to disk, and
`attention.attention.query.bias`, what version 5 has in memory. `key` never has a bias. What is written is the first.
With `use_mean_pooling` their base model has no final norm: it stands before the classifier.
"""

from pathlib import Path
from typing import Any

from mmssl.errors import MmsslError
from mmssl.methods.videomae import VideoMAE
from mmssl.weights.files import State, read_folder, read_json
from mmssl.weights.huggingface import (
    LAYER_PARTS,
    LAYER_PARTS_WRITTEN,
    common_facts,
    is_transformers_layout,
    preprocessor_json,
)
from mmssl.weights.layout import Facts, Published
from mmssl.weights.naming import join_qkv, rename, renamed
from mmssl.weights.videomae import read_file

# The norms before their classifier's head and after their decoder do not follow layer_norm_eps: they have torch's own.
_TORCH_EPS = 1e-5

_PLACES = (
    (r"^(videomae\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(videomae\.)?encoder\.layer\.(\d+)\.", r"blocks.\2."),
    (r"^(videomae\.)?layernorm\.", "norm."),
    (r"^encoder_to_decoder\.", "decoder_embed."),
    (r"^decoder\.decoder_layers\.(\d+)\.", r"decoder_blocks.\1."),
    (r"^decoder\.norm\.", "decoder_norm."),
    (r"^decoder\.head\.", "decoder_pred."),
    (r"^classifier\.", "head."),
    (r"\.attention\.attention\.([qv])_bias$", r".attn.\1.bias"),
)
_WRITTEN = (
    (r"^encoder\.tokenizers\.[^.]+\.proj\.", "videomae.embeddings.patch_embeddings.projection."),
    (r"^encoder\.blocks\.", "videomae.encoder.layer."),
    (r"^encoder\.norm\.", "videomae.layernorm."),
    (r"^decoder\.embed\.", "encoder_to_decoder."),
    (r"^decoder\.mask_token$", "mask_token"),
    (r"^decoder\.blocks\.", "decoder.decoder_layers."),
    (r"^decoder\.pred\.", "decoder.head."),
    (r"\.attn\.([qv])_bias$", r".attention.attention.\1_bias"),
)


def read_any_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """A file of VideoMAE's authors, or one under transformers' names."""
    if is_transformers_layout(state):
        return from_transformers(state), {}
    return read_file(state, arguments, path)


def read_folder_of(folder: Path) -> Published:
    """Weights and settings of a VideoMAE folder."""
    config = read_json(folder / "config.json")
    facts = Facts(
        decoder_heads=config.get("decoder_num_attention_heads", 6),
        frames=config.get("num_frames", 16),
        norm_pix=config.get("norm_pix_loss", True),
        head_norm_eps=_TORCH_EPS,
        decoder_norm_eps=_TORCH_EPS,
        **common_facts(config, folder),
    )
    return Published(from_transformers(read_folder(folder)), str(folder), facts)


def from_transformers(state: State) -> State:
    """Names of a transformers VideoMAE -> the common ones, with q, k and v joined into one matrix."""
    return join_qkv(rename(state, _PLACES, LAYER_PARTS))


def to_transformers(method: VideoMAE) -> tuple[State, dict[str, dict[str, Any]]]:
    """Weights of a whole VideoMAE as transformers' VideoMAEForPreTraining reads them, and its files of settings.

    Raises an `MmsslError` where its patches are not square: VideoMAEForPreTraining's decoder asks for squares.
    """
    clips = method.tokenizer.config
    if len({*clips.patch_size}) > 1:
        raise MmsslError(
            f"transformers' VideoMAE takes square patches, but this model has patches of {clips.patch_size}; use "
            "format 'mmssl'."
        )
    theirs: State = {}
    for name, value in method.state_dict().items():
        if name.endswith((".pos_embed", ".mean", ".std")):  # a formula there; and part of the preprocessor
            continue
        if ".proj.weight" in name and ".tokenizers." in name:
            value = value.unflatten(1, (clips.tubelet, *clips.patch_size, clips.channels)).movedim(-1, 1)
        parts = zip("qkv", value.chunk(3), strict=True) if ".attn.qkv." in name else [("qkv", value)]
        for part, tensor in parts:
            new = renamed(name.replace(".attn.qkv.", f".attn.{part}."), _WRITTEN, LAYER_PARTS_WRITTEN)
            theirs[new] = tensor.detach().cpu().contiguous()
    height, width = clips.image_size
    crop = {"size": {"shortest_edge": max(height, width)}, "do_center_crop": True}
    crop |= {"crop_size": {"height": height, "width": width}, "image_processor_type": "VideoMAEImageProcessor"}
    return theirs, {"config.json": _config_json(method), "preprocessor_config.json": preprocessor_json(clips, **crop)}


def _config_json(method: VideoMAE) -> dict[str, Any]:
    config, encoder, clips = method.config, method.encoder.config, method.tokenizer.config
    dim, depth, heads = config.decoder_shape()
    return {
        "architectures": ["VideoMAEForPreTraining"],
        "model_type": "videomae",
        "hidden_size": encoder.dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": int(encoder.dim * encoder.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": encoder.norm_eps,
        "image_size": clips.image_size[0] if len({*clips.image_size}) == 1 else list(clips.image_size),
        "patch_size": clips.patch_size[0],
        "num_channels": clips.channels,
        "num_frames": clips.frames,
        "tubelet_size": clips.tubelet,
        "qv_bias": True,
        "use_mean_pooling": False,
        "decoder_hidden_size": dim,
        "decoder_num_hidden_layers": depth,
        "decoder_num_attention_heads": heads,
        "decoder_intermediate_size": 4 * dim,
        "norm_pix_loss": config.norm_pix,
    }
