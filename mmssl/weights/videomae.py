"""VideoMAE's authors' layout of weights -> our encoder and our VideoMAE.

    pretrained:  encoder.{patch_embed.proj.{weight (D, C, t, p, q), bias}, blocks.K.*, norm}   mask_token
                 encoder_to_decoder.weight   decoder.{blocks.K.*, norm, head}
    fine-tuned:  patch_embed.proj   blocks.K.*   fc_norm   head      (also behind `encoder.` or `backbone.`)

Blocks have `attn.qkv.weight`, `attn.q_bias` and `attn.v_bias`. Positions are not in the files: they are a formula, made
for 16 frames of 224 x 224 pixels where neither the file's training arguments nor the user say otherwise.
"""

from pathlib import Path
from typing import Any

from mmssl.encoder import Encoder, EncoderConfig, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.methods.videomae import VideoMAE, VideoMAEConfig
from mmssl.tokenizers.image import as_pair
from mmssl.tokenizers.video import VideoTokenizerConfig
from mmssl.weights.files import State
from mmssl.weights.layout import Facts, Published, Sizes, decoder_sizes, encoder_sizes, told_mask_ratio, trunk_options
from mmssl.weights.naming import decoder_state, projection, rename, trunk_state

DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
"""Width -> attention heads of the published decoders, beside ViT-S, B, L and H."""

_PLACES = (
    (r"^encoder_to_decoder\.", "decoder_embed."),
    (r"^decoder\.(blocks|norm)\.", r"decoder_\1."),
    (r"^decoder\.head\.", "decoder_pred."),
    (r"^(encoder|backbone)\.", ""),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
)


def is_videomae_layout(state: State) -> bool:
    """Whether these are tensors of a VideoMAE, under the authors' or transformers' names: a patch projection in three
    dimensions, and no positions."""
    kernels = [
        v for k, v in state.items() if k.endswith(("patch_embed.proj.weight", "patch_embeddings.projection.weight"))
    ]
    return any(v.ndim == 5 for v in kernels) and not any("pos_embed" in k for k in state)


def read_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors of an authors' file under the common names, and what its training arguments say."""
    told: dict[str, Any] = {}
    frames, size = arguments.get("num_frames"), arguments.get("input_size")
    if isinstance(frames, int):
        told["frames"] = frames * (arguments.get("num_segments") or 1)
    if isinstance(size, int):
        told["image_size"] = as_pair(size)
    if "normlize_target" in arguments:  # sic
        told["norm_pix"] = bool(arguments["normlize_target"])
    return rename(state, _PLACES), told | told_mask_ratio(arguments)


def build_encoder(published: Published, modality: str = "video") -> Encoder:
    """Our encoder with published weights, in evaluation mode.

    Without a final norm where the file has none: fine-tuned models pool first and norm after it. Raises an `MmsslError`
    for what is missing, or has no place here.
    """
    sizes, facts = encoder_sizes(published, tables=(), video=True), published.facts
    config = EncoderConfig(
        tokenizers={modality: clips_of(published, facts.frames or 16, _image_size(facts))},
        **trunk_options(published, sizes),
        positions="sinusoid",
    )
    encoder = Encoder(config)
    load_strictly(encoder, encoder.state_dict() | _encoder_state(published, modality), published.source)
    return encoder.eval()


def build_videomae(published: Published) -> VideoMAE:
    """Our VideoMAE, decoder included, with published weights, in evaluation mode."""
    state, facts = published.state, published.facts
    encoder = encoder_sizes(published, tables=(), video=True)
    decoder = decoder_sizes(published, "VideoMAE", DECODER_HEADS, (), False, "the authors' pretraining file")
    _check_plain(published, encoder, decoder)
    method = create_method(_config(published, encoder, decoder))
    ours = {f"encoder.{k}": v for k, v in _encoder_state(published, "video").items()}
    ours |= {f"decoder.{k}": v for k, v in decoder_state(state).items()}
    load_strictly(method, method.state_dict() | ours, published.source)
    if facts.decoder_norm_eps is not None:
        method.decoder.norm.eps = facts.decoder_norm_eps
    return method.eval()


def clips_of(published: Published, frames: int, image_size: tuple[int, int]) -> VideoTokenizerConfig:
    """The tokenizer of a video model whose patch projection has the shape (D, C, t, p, q)."""
    _, channels, tubelet, *patch = published.state["patch_embed.proj.weight"].shape
    mean, std = published.facts.mean, published.facts.std
    return VideoTokenizerConfig("video", frames, image_size, tuple(patch), tubelet, channels, mean, std)


def _image_size(facts: Facts) -> tuple[int, int]:
    return facts.image_size_guess or facts.image_size or (224, 224)


def _config(published: Published, encoder: Sizes, decoder: Sizes) -> VideoMAEConfig:
    facts = published.facts
    clips = clips_of(published, facts.frames or 16, _image_size(facts))
    lattice = {name: getattr(clips, name) for name in ("frames", "tubelet", "image_size", "patch_size", "channels")}
    return VideoMAEConfig(
        size="custom",
        dim=encoder.dim,
        depth=encoder.depth,
        heads=encoder.heads,
        **lattice,
        mean=facts.mean,
        std=facts.std,
        mask_ratio=facts.mask_ratio or VideoMAEConfig.mask_ratio,
        norm_pix=facts.norm_pix,
        decoder_dim=decoder.dim,
        decoder_depth=decoder.depth,
        decoder_heads=decoder.heads,
        norm_eps=facts.norm_eps,
    )


def _check_plain(published: Published, encoder: Sizes, decoder: Sizes) -> None:
    plain = all(s.hidden == 4 * s.dim and s.qkv_bias == "qv" and not s.layer_scale for s in (encoder, decoder))
    if not plain or "norm.weight" not in published.state or published.facts.gelu != "exact":
        raise MmsslError(
            f"{published.source} is no VideoMAE as published (MLP 4 times the width, q and v bias, exact GELU, final "
            "norm); mmssl.load may still read its encoder."
        )


def _encoder_state(published: Published, modality: str) -> State:
    ours = {f"tokenizers.{modality}.{name}": value for name, value in projection(published.state).items()}
    return ours | trunk_state(published.state)
