"""transformers' ViTMAE (and ViT) folders -> the authors' layout, and back.

Three generations of names are read: `vit.encoder.layer.N.attention.attention.query` (transformers 4, and what 5 writes
to disk), `vit.layers.N.attention.q_proj` (5, in memory), and the `decoder.decoder_encoder.layer.N` that 5.23 writes by
mistake for the decoder. What is written is the first, which all versions read.
"""

from pathlib import Path
from typing import Any

from mmssl.errors import MmsslError
from mmssl.methods.mae import MAE
from mmssl.tokenizers.base import TokenizerConfig
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD
from mmssl.weights.files import State, read_folder, read_json
from mmssl.weights.layout import Facts, Published, is_authors_layout
from mmssl.weights.naming import join_qkv, rename, renamed
from mmssl.weights.official import mae_to_authors, read_file

MODEL_TYPES = ("vit_mae", "vit")

_PLACES = (
    (r"^(vit\.)?embeddings\.cls_token$", "cls_token"),
    (r"^(vit\.)?embeddings\.position_embeddings$", "pos_embed"),
    (r"^(vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(vit\.)?(encoder\.layer|layers)\.(\d+)\.", r"blocks.\3."),
    (r"^(vit\.)?layernorm\.", "norm."),
    (r"^vit\.(pooler\.)", r"\1"),
    (r"^classifier\.", "head."),
    (r"^decoder\.(decoder_layers|decoder_encoder\.layer)\.(\d+)\.", r"decoder_blocks.\2."),
    (r"^decoder\.(decoder_(embed|norm|pred|pos_embed)|mask_token)", r"\1"),
)
LAYER_PARTS = (
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
LAYER_PARTS_WRITTEN = (
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.([qkv])\.", lambda m: f".attention.attention.{ {'q': 'query', 'k': 'key', 'v': 'value'}[m[1]] }."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_WRITTEN = (
    (r"^(cls_token)$", r"vit.embeddings.\1"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "vit.layernorm."),
    (r"^blocks\.", "vit.encoder.layer."),
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^(decoder_(?:embed|norm|pred|pos_embed)|mask_token)", r"decoder.\1"),
)


def is_transformers_layout(state: State) -> bool:
    """Whether these are tensors of a transformers ViT or ViTMAE, of any generation."""
    return any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in state)


def read_any_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """A file of the MAE authors or of timm, or one under transformers' names."""
    return read_file(from_transformers(state) if is_transformers_layout(state) else state, arguments, path)


def is_vit_layout(state: State) -> bool:
    """Whether these are tensors of a ViT or an MAE, under the authors' and timm's names or transformers'."""
    return is_authors_layout(state) or is_transformers_layout(state)


def read_transformers(folder: Path) -> Published:
    """Weights and settings of a ViTMAE or ViT folder, with the layer-norm epsilon of its config.json.

    (transformers' own default is 1e-12, the authors' models were trained with 1e-6: features differ by about 1e-4.)
    """
    config = read_json(folder / "config.json")
    facts = Facts(
        decoder_heads=config.get("decoder_num_attention_heads", 16),
        norm_pix=config.get("norm_pix_loss", False),
        mask_ratio=config.get("mask_ratio", 0.75),
        **common_facts(config, folder),
    )
    return Published(from_transformers(read_folder(folder)), str(folder), facts)


def from_transformers(state: State) -> State:
    """Names of a transformers ViT or ViTMAE -> the authors', with q, k and v joined into one matrix."""
    return join_qkv(rename(state, _PLACES, LAYER_PARTS))


def common_facts(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the config.json of every vision transformer says; mean and std are its preprocessor's."""
    activation = config.get("hidden_act", "gelu")
    kinds = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
    if activation not in kinds:
        raise MmsslError(f"{folder} uses the activation {activation!r}; readable are {', '.join(kinds)}.")
    preparing = [folder / name for name in ("preprocessor_config.json", "video_preprocessor_config.json")]
    pictures = next((read_json(path) for path in preparing if path.is_file()), {})
    size = config.get("image_size", 224)
    return {
        "heads": config.get("num_attention_heads", 12),
        "image_size": (size, size) if isinstance(size, int) else tuple(size),
        "mean": tuple(pictures.get("image_mean", IMAGENET_MEAN)),
        "std": tuple(pictures.get("image_std", IMAGENET_STD)),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "gelu": kinds[activation],
    }


def to_transformers(method: MAE) -> tuple[State, dict[str, dict[str, Any]]]:
    """Weights of a whole MAE as transformers' ViTMAEForPreTraining reads them, and its files of settings.

    Raises an `MmsslError` where its images or patches are not square: ViTMAE's loss asks for squares.
    """
    config, tokenizer = method.config, method.tokenizer.config
    if len({*tokenizer.image_size}) > 1 or len({*tokenizer.patch_size}) > 1 or config.layer_scale is not None:
        raise MmsslError(
            f"transformers' ViTMAE takes square images and patches and no layer scale, but this model has images of "
            f"{tokenizer.image_size}, patches of {tokenizer.patch_size} and layer_scale {config.layer_scale}; use "
            "format 'mmssl' or 'timm'."
        )
    theirs: State = {}
    for name, value in mae_to_authors(method).items():
        parts = zip("qkv", value.chunk(3), strict=True) if ".attn.qkv." in name else [("qkv", value)]
        for part, tensor in parts:
            new = renamed(name.replace(".attn.qkv.", f".attn.{part}."), _WRITTEN, LAYER_PARTS_WRITTEN)
            theirs[new] = tensor.contiguous()
    size = dict(zip(("height", "width"), tokenizer.image_size, strict=True))
    pictures = preprocessor_json(tokenizer, image_processor_type="ViTImageProcessor", size=size)
    return theirs, {"config.json": _config_json(method), "preprocessor_config.json": pictures}


def preprocessor_json(tokenizer: TokenizerConfig, **settings: Any) -> dict[str, Any]:
    """preprocessor_config.json of a model that reads pixels: their mean and std, and `settings`."""
    pixels = {"do_normalize": True, "image_mean": list(tokenizer.mean), "image_std": list(tokenizer.std)}
    return {"do_resize": True} | settings | pixels


def _config_json(method: MAE) -> dict[str, Any]:
    config, encoder = method.config, method.encoder.config
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "hidden_size": encoder.dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "intermediate_size": int(encoder.dim * encoder.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": encoder.norm_eps,
        "image_size": method.tokenizer.config.image_size[0],
        "patch_size": method.tokenizer.config.patch_size[0],
        "num_channels": config.channels,
        "qkv_bias": True,
        "decoder_hidden_size": config.decoder_dim,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_heads,
        "decoder_intermediate_size": 4 * config.decoder_dim,
        "mask_ratio": config.mask_ratio,
        "norm_pix_loss": config.norm_pix,
    }
