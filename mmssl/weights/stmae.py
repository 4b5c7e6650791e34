"""Layouts of ST-MAE's weights -> our encoder and our ST-MAE.

    both:       cls_token   pos_embed_{spatial (1, h * w, D), temporal (1, t, D), class (1, 1, D)}   norm
                patch_embed.proj.{weight (D, C, t, p, q), bias}   blocks.K.{norm1, attn, norm2, mlp.fc1, mlp.fc2}
                with attn.{q, k, v} apart (PySlowFast since 2022: attn.qkv), attn.proj
    mae_st:     mask_token   decoder_cls_token   decoder_pos_embed_{spatial, temporal, class}
                decoder_embed   decoder_blocks.K.*   decoder_norm   decoder_pred          fine-tuned: head
    PySlowFast: mask_token   decoder_embed   decoder_pos_embed or dec_pos_embed_{spatial, temporal, class}
                pred_head.{transforms.0.K.*, projections.0}                        fine-tuned: head.projection

The published files (`mae_pretrain_vit_large_k400.pth`, `vit_l/k400_400ep_rep4_mr9_16x4.pyth`) are PySlowFast's, and
their decoder is another one than mae_st's: it takes the encoder's cls token, and is taught every second frame. Pixels
are normalised with a mean of .45 and a std of .225 in both. The class position is added to the cls token here.
"""

import math
from pathlib import Path
from typing import Any

from mmssl.encoder import Encoder, EncoderConfig, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.methods.stmae import STMAE, STMAEConfig
from mmssl.tokenizers.video import VideoTokenizerConfig
from mmssl.weights.files import State
from mmssl.weights.layout import Published, Sizes, decoder_sizes, encoder_sizes, told_mask_ratio, trunk_options
from mmssl.weights.naming import decoder_state, join_qkv, projection, rename, trunk_state
from mmssl.weights.videomae import clips_of

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)

_SLOWFAST_DECODER = ("pred_head.", "dec_pos_embed_")
_DECODER_TABLES = ("decoder_pos_embed_spatial", "decoder_pos_embed_temporal")


def is_stmae_layout(state: State) -> bool:
    """Whether these are tensors of an ST-MAE: a table of places, or one of times."""
    return "patch_embed.proj.weight" in state and bool({"pos_embed_spatial", "pos_embed_temporal"} & state.keys())


def read_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors under the common names, and what the file's training arguments say.

    Fine-tuned models norm the mean of their tokens (PySlowFast's where MVIT.USE_MEAN_POOLING says so, as all of its
    published settings for ViT do): what they call `norm` is the common `fc_norm`.
    """
    state = join_qkv(rename(state, ((r"^head\.projection\.", "head."),)))
    pooled = (arguments.get("MVIT") or {}).get("USE_MEAN_POOLING", True)
    if "head.weight" in state and pooled:
        state = rename(state, ((r"^norm\.", "fc_norm."),))
    told = {"mean": MEAN, "std": STD, "norm_pix": bool(arguments.get("norm_pix_loss", True))}
    return state, told | told_mask_ratio(arguments)


def build_encoder(published: Published, modality: str = "video") -> Encoder:
    """Our encoder with published weights, in evaluation mode; the decoder and head, where there are any, stay out.

    Raises an `MmsslError` for what is missing, or has no place here.
    """
    sizes, clips = _sizes(published), _clips(published)
    config = EncoderConfig(
        tokenizers={modality: clips},
        **trunk_options(published, sizes),
        positions="separable",
    )
    encoder = Encoder(config)
    load_strictly(encoder, encoder.state_dict() | _encoder_state(published, modality), published.source)
    return encoder.eval()


def build_stmae(published: Published) -> STMAE:
    """Our ST-MAE, decoder included, with the weights of a file of mae_st, in evaluation mode."""
    state, source = published.state, published.source
    if any(name.startswith(_SLOWFAST_DECODER) for name in state):
        raise MmsslError(
            f"{source} holds PySlowFast's decoder, which is another one than mae_st's (it takes the encoder's cls "
            "token, and predicts every second frame); read its encoder with mmssl.load."
        )
    encoder, clips = _sizes(published), _clips(published)
    others = (*_DECODER_TABLES, "decoder_cls_token", "decoder_pos_embed_class")
    decoder = decoder_sizes(published, "ST-MAE", others=others, whole="a checkpoint of its pretraining with mae_st")
    _check_plain(published, encoder, decoder, clips)
    method = create_method(_config(published, encoder, decoder, clips))
    ours = {f"encoder.{k}": v for k, v in _encoder_state(published, "video").items()}
    ours |= {f"decoder.{k}": v for k, v in _decoder_state(state).items()}
    load_strictly(method, method.state_dict() | ours, source)
    return method.eval()


def _sizes(published: Published) -> Sizes:
    tables = ["pos_embed_spatial", "pos_embed_temporal"]
    if "cls_token" in published.state:
        tables.append("pos_embed_class")
    return encoder_sizes(published, tables, video=True, ignored=_SLOWFAST_DECODER)


def _clips(published: Published) -> VideoTokenizerConfig:
    """Frames from the table of times, image size from that of places: a square, else what the user says."""
    state, guess = published.state, published.facts.image_size_guess
    *_, tubelet, p, q = state["patch_embed.proj.weight"].shape
    frames, places = state["pos_embed_temporal"].shape[1] * tubelet, state["pos_embed_spatial"].shape[1]
    side = math.isqrt(places)
    if side * side == places:
        return clips_of(published, frames, (side * p, side * q))
    if guess is None or (guess[0] // p) * (guess[1] // q) != places:
        raise MmsslError(
            f"{published.source} has positions for {places} places, which is no square: say of which image size with "
            "image_size=(H, W)."
        )
    return clips_of(published, frames, guess)


def _check_plain(published: Published, encoder: Sizes, decoder: Sizes, clips: VideoTokenizerConfig) -> None:
    state, source = published.state, published.source
    plain = all(s.hidden == 4 * s.dim and s.qkv_bias == "full" and not s.layer_scale for s in (encoder, decoder))
    if not plain or not {"norm.weight", "cls_token"} <= state.keys():
        raise MmsslError(
            f"{source} is no ST-MAE as published (cls token, MLP 4 times the width, q, k, v bias, final norm); "
            "mmssl.load may still read its encoder."
        )
    values, wanted = len(state["decoder_pred.weight"]), math.prod(clips.patch_size) * clips.channels
    if values != wanted:
        raise MmsslError(
            f"{source} predicts {values} values a token, not one frame's {wanted}: it was not trained with a "
            f"pred_t_dim of {clips.frames // clips.tubelet}; read its encoder with mmssl.load."
        )


def _config(published: Published, encoder: Sizes, decoder: Sizes, clips: VideoTokenizerConfig) -> STMAEConfig:
    names = ("frames", "tubelet", "image_size", "patch_size", "channels", "mean", "std")
    facts = published.facts
    return STMAEConfig(
        size="custom",
        dim=encoder.dim,
        depth=encoder.depth,
        heads=encoder.heads,
        **{name: getattr(clips, name) for name in names},
        mask_ratio=facts.mask_ratio or STMAEConfig.mask_ratio,
        norm_pix=facts.norm_pix,
        decoder_dim=decoder.dim,
        decoder_depth=decoder.depth,
        decoder_heads=decoder.heads,
        norm_eps=facts.norm_eps,
    )


def _encoder_state(published: Published, modality: str) -> State:
    state = published.state
    ours = projection(state) | {name: state[name].float() for name in ("pos_embed_spatial", "pos_embed_temporal")}
    ours = {f"tokenizers.{modality}.{name}": value for name, value in ours.items()}
    if "cls_token" in state:
        ours["cls_token"] = state["cls_token"].float() + state["pos_embed_class"].float()
    return ours | trunk_state(state)


def _decoder_state(state: State) -> State:
    tables = {name.removeprefix("decoder_"): state[name].float() for name in _DECODER_TABLES}
    cls = state["decoder_cls_token"].float() + state["decoder_pos_embed_class"].float()
    return decoder_state(state) | tables | {"cls_token": cls}
