"""CLIP's weights, of OpenAI, OpenCLIP and transformers -> our towers and our CLIP.

The common names are OpenAI's, which OpenCLIP has too:

    visual.{conv1.weight (D, C, p, q), class_embedding (D), positional_embedding (1 + N, D), ln_pre, ln_post}
    visual.proj (D, E)   text_projection (D, E)   logit_scale
    visual.transformer.resblocks.K.{ln_1, attn.in_proj_*, attn.out_proj, ln_2, mlp.c_fc, mlp.c_proj}
    token_embedding.weight (V, D)   positional_embedding (L, D)   transformer.resblocks.K.*   ln_final

A file of tensors does not say which GELU it was trained with: OpenAI's have the quick one, most of OpenCLIP's the
exact one.
"""

import math
import re
from pathlib import Path
from typing import Any, Literal

from mmssl.encoder import Encoder, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.methods.clip import CLIP, CLIP_MEAN, CLIP_STD, CLIPConfig
from mmssl.weights.files import State, read_folder, read_json
from mmssl.weights.layout import Facts, Published, Sizes, require
from mmssl.weights.naming import join_qkv, projection, rename

Tower = Literal["image", "text"]

VOCABULARY = "openai/clip-vit-base-patch32"
"""The tokenizer of OpenAI's models and of nearly all others, by its name on the hub."""

IMAGE_HEADS = {1280: 16, 1408: 16, 1664: 16}
"""Width of an image tower -> attention heads, where they are not 64 wide: OpenCLIP's ViT-H, g and bigG."""
_GELU = {"quick_gelu": "quick", "gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's archives hold them beside the weights
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # new ones, or old ones

_FROM_TRANSFORMERS = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_OURS = (
    (r"^(visual\.)?transformer\.resblocks\.", r"\1blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual\.ln_pre\.", "visual.norm_pre."),
    (r"^visual\.ln_post\.", "visual.norm."),
    (r"^ln_final\.", "norm."),
    (r"^token_embedding\.", "tokenizers.text.embedding."),
)


def has_image_tower(state: State) -> bool:
    """Whether there is an image tower of CLIP among these tensors, under OpenAI's or transformers' names."""
    known = {"visual.attnpool.positional_embedding", "visual.class_embedding"}
    return bool(known & state.keys()) or any(name.endswith("embeddings.class_embedding") for name in state)


def has_text_tower(state: State) -> bool:
    """Whether there is a text tower of CLIP among these tensors."""
    openai = {"token_embedding.weight", "positional_embedding"} <= state.keys()
    return openai or any(re.search(r"^(text_model\.)?embeddings\.token_embedding\.weight$", name) for name in state)


def read_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors under OpenAI's names, and what such a file tells."""
    told = {"mean": CLIP_MEAN, "std": CLIP_STD, "norm_eps": 1e-5}
    told["gelu"] = "quick" if "input_resolution" in state else "unknown"
    return to_openai(state), told


def read_folder_of(folder: Path, tower: Tower = "image") -> Published:
    """Weights and settings of a transformers CLIPModel, CLIPVisionModel or CLIPTextModel folder.

    `Facts.heads` are those of `tower`.
    """
    config = read_json(folder / "config.json")
    image, text = _section(config, "vision"), _section(config, "text")
    there = [section for section in (image, text) if section is not None]
    activations, epsilons = ({s.get(key, default) for s in there} for key, default in _SHARED.items())
    if len(activations) > 1 or len(epsilons) > 1 or activations - set(_GELU):
        raise MmsslError(
            f"{folder} has the activations {', '.join(sorted(activations))} and the epsilons "
            f"{', '.join(map(str, sorted(epsilons)))}; readable are towers that share one, of {', '.join(_GELU)}."
        )
    pictures = folder / "preprocessor_config.json"
    pixels = read_json(pictures) if pictures.is_file() else {}
    size = None if image is None else image.get("image_size", 224)
    text_facts = {} if text is None else _text_facts(text, folder)
    facts = Facts(
        heads=text_facts.get("text_heads") if tower == "text" else (image or {}).get("num_attention_heads", 12),
        image_size=(size, size) if isinstance(size, int) else size and tuple(size),
        mean=tuple(pixels.get("image_mean", CLIP_MEAN)),
        std=tuple(pixels.get("image_std", CLIP_STD)),
        norm_eps=epsilons.pop(),
        gelu=_GELU[activations.pop()],
        arguments=text_facts,
    )
    return Published(to_openai(read_folder(folder)), str(folder), facts)


_SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # setting -> transformers' own value


def _section(config: dict[str, Any], tower: str) -> dict[str, Any] | None:
    """What a config.json says of one tower, None where there is none; where it says it twice, `..._dict` is right."""
    if config["model_type"] != "clip":
        return config if config["model_type"] == f"clip_{tower}_model" else None
    return (config.get(f"{tower}_config") or {}) | (config.get(f"{tower}_config_dict") or {})


def _text_facts(text: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Heads, vocabulary and mark of the end. The id 2 is an old mistake: there the largest id is the mark."""
    end = text.get("eos_token_id", 49407)
    here = any(all((folder / name).is_file() for name in names) for names in _TOKENIZER_FILES)
    told = {"text_heads": text.get("num_attention_heads", 8), "vocabulary": str(folder) if here else VOCABULARY}
    return told | ({} if end == 2 or not isinstance(end, int) else {"text_end": end})


def to_openai(state: State) -> State:
    """Tensors under OpenAI's names, float32, without numbers that are no weights."""
    if not any(name.startswith(("vision_model.", "text_model.")) for name in state):  # a tower alone has no prefix
        tower = "vision_model" if "embeddings.class_embedding" in state else "text_model"
        own = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "final_layer_norm.")
        state = {f"{tower}.{k}" if k.startswith(own) else k: v for k, v in state.items()}
    state = join_qkv(rename(state, _FROM_TRANSFORMERS))
    state = {re.sub(r"\.attn\.qkv\.", ".attn.in_proj_", name): value for name, value in state.items()}
    for theirs, ours in (("visual_projection.weight", "visual.proj"), ("text_projection.weight", "text_projection")):
        if theirs in state:
            state[ours] = state.pop(theirs).t()
    return {k: v.float() for k, v in state.items() if k not in _NUMBERS and not k.endswith(".position_ids")}


def build_image_tower(published: Published) -> Encoder:
    """Our encoder of images with published weights; it is in evaluation mode."""
    _check(published)
    config = CLIPConfig(**_image_settings(published), **_shared_settings(published)).encoder_config()
    return _filled(Encoder(config), _image_state(published), published.source)


def build_text_tower(published: Published) -> Encoder:
    """Our encoder of texts with published weights; `Facts.heads` are its own."""
    _check(published)
    config = CLIPConfig(**_text_settings(published, published.facts.heads), **_shared_settings(published)).text_config()
    return _filled(Encoder(config), _text_state(published), published.source)


def build_clip(published: Published) -> CLIP:
    """Our CLIP, both towers, projections and temperature, with published weights; it is in evaluation mode.

    Raises an `MmsslError` where a tower is missing, or parts are missing or have no place here.
    """
    state, source = published.state, published.source
    for name, there in (("image", has_image_tower(state)), ("text", has_text_tower(state))):
        if not there:
            raise MmsslError(f"{source} holds one tower of CLIP, and not that of {name}; read it with mmssl.load.")
    _check(published)
    require(state, ["visual.proj", "text_projection", "logit_scale"], source)
    settings = _image_settings(published) | _text_settings(published, published.facts.arguments.get("text_heads"))
    config = CLIPConfig(**settings, **_shared_settings(published), joint_dim=state["text_projection"].shape[1])
    ours = {f"encoder.{k}": v for k, v in _image_state(published).items()}
    ours |= {f"text_encoder.{k}": v for k, v in _text_state(published).items()}
    ours["project.image.weight"], ours["project.text.weight"] = state["visual.proj"].t(), state["text_projection"].t()
    return _filled(create_method(config), ours | {"logit_scale": state["logit_scale"]}, source)


def no_text_method(published: Published) -> CLIP:
    """A whole CLIP is no model of text alone; an `MmsslError` says so."""
    raise MmsslError(f"{published.source} is read as a whole without modality; mmssl.load gives one tower.")


def _filled(module: Any, ours: State, source: str) -> Any:
    statistics = {k: v for k, v in module.named_buffers() if k.endswith((".mean", ".std"))}  # the config's own
    load_strictly(module, statistics | {k: v.float().contiguous() for k, v in ours.items()}, source)
    return module.eval()


def _check(published: Published) -> None:
    if any(name.startswith("visual.attnpool.") for name in published.state):
        raise MmsslError(f"{published.source} is a CLIP with a ResNet; readable are those with a ViT.")
    if published.facts.gelu == "unknown":
        raise MmsslError(
            f"{published.source} does not say which GELU its blocks have: say gelu='quick' for OpenAI's models, "
            "gelu='exact' for most of OpenCLIP's."
        )


def _shared_settings(published: Published) -> dict[str, Any]:
    return {"gelu": published.facts.gelu, "norm_eps": published.facts.norm_eps}


def _image_settings(published: Published) -> dict[str, Any]:
    """Fields of `CLIPConfig` about the image tower."""
    state, source, facts = published.state, published.source, published.facts
    require(state, ["visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding"], source)
    sizes = _sizes(published, "visual.transformer.resblocks", facts.heads, IMAGE_HEADS)
    patch, places = tuple(state["visual.conv1.weight"].shape[2:]), len(state["visual.positional_embedding"]) - 1
    square = (math.isqrt(places) * patch[0], math.isqrt(places) * patch[1])
    for size in (facts.image_size, square, facts.image_size_guess):
        if size is not None and (size[0] // patch[0]) * (size[1] // patch[1]) == places:
            break
    else:
        raise MmsslError(
            f"{source} has positions for {places} patches, which is no square: say of which image size with "
            "image_size=(H, W)."
        )
    return {
        "size": "custom",
        "dim": sizes.dim,
        "depth": sizes.depth,
        "heads": sizes.heads,
        "mlp_ratio": sizes.mlp_ratio,
        "image_size": size,
        "patch_size": patch,
        "mean": facts.mean,
        "std": facts.std,
    }


def _text_settings(published: Published, heads: int | None) -> dict[str, Any]:
    """Fields of `CLIPConfig` about the text tower."""
    state, told = published.state, published.facts.arguments
    require(state, ["token_embedding.weight", "positional_embedding", "ln_final.weight"], published.source)
    sizes = _sizes(published, "transformer.resblocks", heads, {})
    ids, length = len(state["token_embedding.weight"]), len(state["positional_embedding"])
    return {
        "text_dim": sizes.dim,
        "text_depth": sizes.depth,
        "text_heads": sizes.heads,
        "text_mlp_ratio": sizes.mlp_ratio,
        "text_length": length,
        "vocab_size": ids,
        "vocabulary": told.get("vocabulary", VOCABULARY),
        "text_end": told.get("text_end", ids - 1),
    }


def _sizes(published: Published, blocks: str, heads: int | None, table: dict[int, int]) -> Sizes:
    state, source = published.state, published.source
    require(state, [f"{blocks}.0.mlp.c_fc.weight"], source)
    hidden, dim = state[f"{blocks}.0.mlp.c_fc.weight"].shape
    depth = 1 + max(int(m[1]) for name in state if (m := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name)))
    heads = heads or table.get(dim, dim // 64)
    if heads < 1 or dim % heads:
        raise MmsslError(
            f"{source} does not say its number of attention heads, and {heads or dim / 64} do not divide the width "
            f"{dim}; say it with heads=."
        )
    return Sizes(dim, depth, hidden, heads, "full", False)


def _image_state(published: Published) -> State:
    """Weights of the image tower under our names; the class token's own position is added to it."""
    own = {k: v for k, v in published.state.items() if k.startswith("visual.")}
    table, token = own.pop("visual.positional_embedding"), own.pop("visual.class_embedding")
    patches = projection({"patch_embed.proj.weight": own.pop("visual.conv1.weight")})
    ours = {f"tokenizers.image.{name}": value for name, value in patches.items()}
    ours |= {"cls_token": (token + table[0])[None, None], "tokenizers.image.pos_embed": table[None, 1:]}
    own.pop("visual.proj", None)
    return ours | {k.removeprefix("visual."): v for k, v in rename(own, _OURS).items()}


def _text_state(published: Published) -> State:
    """Weights of the text tower under our names."""
    own = {k: v for k, v in published.state.items() if not k.startswith("visual.")}
    for name in ("text_projection", "logit_scale"):
        own.pop(name, None)
    table = own.pop("positional_embedding")[None]
    return rename(own, _OURS) | {"tokenizers.text.pos_embed": table}
