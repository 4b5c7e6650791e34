"""The M3AE authors' layout of weights (a flax tree, names joined by dots here) -> our encoder and our M3AE.

    cls_token   image_embedding.{kernel (p * q * C, D), bias}   text_embedding.embedding (V, D)
    {encoder,decoder}.Block_K.{LayerNorm_0, Attention_0.{Dense_0 (qkv), Dense_1 (proj)}, LayerNorm_1,
                               TransformerMLP_0.{fc1, fc2}}   {encoder,decoder}.LayerNorm_0
    {encoder,decoder}_{image,text}_type_embedding   {image,text}_mask_embedding   decoder_input_projection
    decoder_{image,text}_output.Dense_0

Kernels are (in, out). Positions are formulas, so that tensors tell no size of the images. The MAE of the same
repository is the same without what is named text.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmssl.encoder import Encoder, EncoderConfig, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.methods.m3ae import M3AE, M3AEConfig
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD, ImageTokenizerConfig
from mmssl.tokenizers.text import TextTokenizerConfig
from mmssl.weights.files import State
from mmssl.weights.layout import Published, Sizes, decoder_sizes, encoder_sizes, require, trunk_options
from mmssl.weights.naming import decoder_state, projection, rename, trunk_state

VOCABULARY = "bert-base-uncased"
STATISTICS = {
    "cc12m": (M3AEConfig.mean, M3AEConfig.std),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Their names of the mean and std of pixels."""

# their names -> those of the common layout (layout.py)
_COMMON = (
    (r"^encoder\.Block_", "blocks."),
    (r"^decoder\.Block_", "decoder_blocks."),
    (r"^encoder\.LayerNorm_0\.", "norm."),
    (r"^decoder\.LayerNorm_0\.", "decoder_norm."),
    (r"\.LayerNorm_0\.", ".norm1."),
    (r"\.LayerNorm_1\.", ".norm2."),
    (r"\.Attention_0\.Dense_0\.", ".attn.qkv."),
    (r"\.Attention_0\.Dense_1\.", ".attn.proj."),
    (r"\.TransformerMLP_0\.", ".mlp."),
    (r"^decoder_input_projection\.", "decoder_embed."),
    (r"^decoder_image_output\.Dense_0\.", "decoder_pred."),
    (r"^image_mask_embedding$", "mask_token"),
    (r"^image_embedding\.", "patch_embed.proj."),
    (r"\.(kernel|scale)$", ".weight"),
)
_TEXT = {
    "text_embedding.embedding": "encoder.tokenizers.text.embedding.weight",
    "text_mask_embedding": "decoder.mask_token.text",
    "decoder_text_output.Dense_0.kernel": "decoder.pred.text.weight",
    "decoder_text_output.Dense_0.bias": "decoder.pred.text.bias",
}
_TYPES = {f"{part}_{name}_type_embedding": f"{part}.type_embed.{name}" for part in ("encoder", "decoder") for name in
          ("image", "text")}  # fmt: skip


def is_m3ae_layout(state: State) -> bool:
    """Whether these are tensors of the layout above, at least of its encoder."""
    return {"image_embedding.kernel", "encoder.Block_0.Attention_0.Dense_0.kernel"} <= state.keys()


def read_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors, and what the file's settings (`variant`) say; without any, what was published."""
    normalisation = _said(arguments, "image_normalization", str) or "cc12m"
    if normalisation not in STATISTICS:
        raise MmsslError(f"{path} was trained with image_normalization {normalisation!r}, which cannot be read.")
    mean, std = STATISTICS[normalisation]
    told = {"mean": mean, "std": std, "gelu": "tanh", "norm_pix": False, "arguments": arguments}
    prefix = "m3ae" if "text_embedding.embedding" in state else "mae"
    for fact, theirs in (("heads", "num_heads"), ("decoder_heads", "dec_num_heads")):
        heads = arguments.get(f"{prefix}.{theirs}")
        # A named size overrides these numbers in their code, while its settings keep those of the large one.
        if isinstance(heads, int) and heads > 0 and not arguments.get(f"{prefix}.model_type"):
            told[fact] = heads
    return state, told


def build_encoder(published: Published) -> Encoder:
    """Our encoder of images and texts (of images, of their MAE), in evaluation mode.

    Raises an `MmsslError` for what is missing, or has no place here.
    """
    common = _common(published)
    encoder = Encoder(_encoder_config(published, common, encoder_sizes(common, ())))
    load_strictly(encoder, encoder.state_dict() | _encoder_state(published, common), published.source)
    return encoder.eval()


def build_m3ae(published: Published) -> M3AE:
    """Our M3AE, decoder included, in evaluation mode; it masks as the released code does, a whole batch alike."""
    if not any(name in published.state for name in _TEXT):
        raise MmsslError(
            f"{published.source} holds the MAE of M3AE's authors, whose decoder has no place here (tanh GELU, vectors "
            "of the modality); read its encoder with mmssl.load."
        )
    require(published.state, _TEXT, published.source)
    common = _common(published)
    whole = "a checkpoint of M3AE's pretraining"
    encoder = encoder_sizes(common, ())
    decoder = decoder_sizes(common, "M3AE", others=(), whole=whole)
    method = create_method(_config(published, common, encoder, decoder))
    state = {f"encoder.{name}": value for name, value in _encoder_state(published, common).items()}
    fresh = method.state_dict()
    without = {name: value * 0 for name, value in fresh.items() if ".type_embed." in name}  # use_type_embedding=False
    load_strictly(method, fresh | without | state | _decoder_state(published, common), published.source)
    return method.eval()


def _common(published: Published) -> Published:
    """What is of images and of both, under the names of the common layout."""
    plain = {k: v for k, v in published.state.items() if k not in _TEXT and k not in _TYPES}
    state = rename({k: v.mT.contiguous() if k.endswith(".kernel") else v for k, v in plain.items()}, _COMMON)
    require(state, ["cls_token", "norm.weight", "patch_embed.proj.weight"], published.source)
    rows = state["patch_embed.proj.weight"]  # (D, p * q * C)
    side = math.isqrt(rows.shape[1] // 3)
    if 3 * side * side != rows.shape[1]:
        raise MmsslError(f"{published.source} reads patches of {rows.shape[1]} values, no square of three colours.")
    state["patch_embed.proj.weight"] = rows.unflatten(1, (side, side, 3)).movedim(-1, 1)  # (D, C, p, q)
    return replace(published, state=state)


def _image(published: Published, common: Published) -> ImageTokenizerConfig:
    facts, patch = published.facts, common.state["patch_embed.proj.weight"].shape[-1]
    told = _said(facts.arguments, "image_size", int)
    size = facts.image_size_guess or told or M3AEConfig.image_size
    return ImageTokenizerConfig("image", size, patch, 3, facts.mean, facts.std)


def _text(published: Published) -> TextTokenizerConfig:
    said, size = published.facts.arguments, len(published.state["text_embedding.embedding"])
    vocabulary = _said(said, "tokenizer", str) or VOCABULARY
    return TextTokenizerConfig(
        "text", vocabulary, size, _said(said, "tokenizer_max_length", int) or M3AEConfig.text_length
    )


def _said(said: dict[str, Any], name: str, kind: type) -> Any:
    """A setting of the data, which their MAE calls cc12m_data; None where it is not said."""
    value = said.get(f"data.{name}", said.get(f"cc12m_data.{name}"))
    return value if isinstance(value, kind) and (kind is str or value > 0) else None


def _encoder_config(published: Published, common: Published, sizes: Sizes) -> EncoderConfig:
    tokenizers = {"image": _image(published, common)}
    if "text_embedding.embedding" in published.state:
        tokenizers["text"] = _text(published)
    typed = "encoder_image_type_embedding" in published.state
    return EncoderConfig(tokenizers=tokenizers, **trunk_options(common, sizes), type_embedding=typed)


def _encoder_state(published: Published, common: Published) -> State:
    """Weights of the encoder under our names, but for the positions, which are a formula."""
    ours = {f"tokenizers.image.{name}": value for name, value in projection(common.state).items()}
    ours |= trunk_state(common.state) | {"cls_token": common.state["cls_token"].float()}
    return ours | _own(published, "encoder.")


def _decoder_state(published: Published, common: Published) -> State:
    parts = rename(decoder_state(common.state), ((r"^mask_token$", "mask_token.image"), (r"^pred\.", "pred.image.")))
    return {f"decoder.{name}": value for name, value in (parts | _own(published, "decoder.")).items()}


def _own(published: Published, part: str) -> State:
    """What the common layout has no name for, of the encoder or of the decoder."""
    state = {ours: (theirs, published.state[theirs].float()) for theirs, ours in (_TEXT | _TYPES).items() if theirs in
             published.state and ours.startswith(part)}  # fmt: skip
    return {
        ours.removeprefix(part): value.mT.contiguous() if theirs.endswith(".kernel") else value
        for ours, (theirs, value) in state.items()
    }


def _config(published: Published, common: Published, encoder: Sizes, decoder: Sizes) -> M3AEConfig:
    image, text, facts = _image(published, common), _text(published), published.facts
    plain = all(s.hidden == 4 * s.dim and s.qkv_bias == "full" and not s.layer_scale for s in (encoder, decoder))
    values, wanted = len(common.state["decoder_pred.weight"]), common.state["patch_embed.proj.weight"][0].numel()
    if not plain or values != wanted:
        raise MmsslError(
            f"{published.source} is no M3AE of pixels as published (MLP 4 times the width, q, k, v bias, {wanted} "
            f"values a patch): it predicts {values}; mmssl.load may still read its encoder."
        )
    return M3AEConfig(
        size="custom",
        dim=encoder.dim,
        depth=encoder.depth,
        heads=encoder.heads,
        image_size=image.image_size,
        patch_size=image.patch_size,
        mean=image.mean,
        std=image.std,
        vocabulary=text.vocabulary,
        vocab_size=text.vocab_size,
        text_length=text.length,
        mask_scope="batch",
        norm_pix=facts.norm_pix,
        decoder_dim=decoder.dim,
        decoder_depth=decoder.depth,
        decoder_heads=decoder.heads,
        gelu=facts.gelu,
        norm_eps=facts.norm_eps,
        **_told(facts.arguments),
    )


def _told(said: dict[str, Any]) -> dict[str, float]:
    """Settings of the loss and the masks that a file's own settings tell, as far as they are possible."""
    ratios = {"mask_ratio": "m3ae.image_mask_ratio", "text_mask_ratio": "m3ae.text_mask_ratio"}
    weights = {"image_weight": "image_loss_weight", "text_weight": "text_loss_weight"}
    told = {ours: said[theirs] for ours, theirs in ratios.items() if _within(said.get(theirs), 0, 1)}
    told |= {ours: float(said[theirs]) for ours, theirs in weights.items() if _within(said.get(theirs), 0, math.inf)}
    return told


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and low < value < high
