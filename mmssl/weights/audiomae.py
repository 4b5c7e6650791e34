"""Audio-MAE's authors' layout of weights -> our encoder and our Audio-MAE.

It is MAE's (layout.py) with a patch projection (D, 1, p, q) over spectrograms of 128 mel bins. Tokens are in raster
order, time slow, in patches that lie side by side, or overlap, one every 10 frames and mel bins. The decoder is a
ViT's, as in MAE, or has windows:

    decoder_blocks.K.{norm1, norm2, mlp.fc1, mlp.fc2, attn.{tau (heads,), qkv, proj, meta_mlp.fc1, meta_mlp.fc2}}

Fine-tuned files have `fc_norm` and `head`, and no `norm`. Position tables are always the file's own: the authors built
theirs on the transposed lattice (`sincos_swapped`), and no clean table fits their weights.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl.encoder import Encoder, EncoderConfig, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.audiomae import AudioMAE, AudioMAEConfig
from mmssl.methods.base import create_method
from mmssl.nn.positions import sincos_swapped
from mmssl.tokenizers.audio import AudioTokenizerConfig
from mmssl.tokenizers.base import Positions
from mmssl.weights.files import State
from mmssl.weights.layout import (
    Facts,
    Published,
    Sizes,
    decoder_sizes,
    encoder_sizes,
    is_authors_layout,
    told_mask_ratio,
    trunk_options,
)
from mmssl.weights.naming import decoder_state, projection, trunk_state

STATISTICS = {
    "audioset": (-4.2677393, 4.5689974),
    "esc50": (-6.6268077, 5.358466),
    "speechcommands": (-6.845978, 5.5654526),
}
"""The authors' `dataset` -> mean and standard deviation of its log-mel values."""

MEL_BINS = 128
OVERLAP = 10
"""Frames and mel bins from one overlapping patch to the next."""

_WINDOW_PARTS = ("tau", *(f"meta_mlp.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")))


def is_audiomae_layout(state: State) -> bool:
    """Whether these can be tensors of an Audio-MAE, by their names and shapes: MAE's names, and one channel.

    A model of grey images has the same; `says_audio` tells them apart.
    """
    return is_authors_layout(state) and state["patch_embed.proj.weight"].shape[1:2] == (1,)


def says_audio(state: State, arguments: dict[str, Any], said: dict[str, Any]) -> bool:
    """Whether tensors of this layout are of a model of audio, and not of grey images.

    The decoder's windows say so, and the authors' training arguments. Else it is one of images where the user gives an
    image size, or the tokens fit no 128 mel bins, or make a square whose position table is not plainly another one's.
    """
    if has_windows(state) or arguments.get("audio_exp") is True or str(arguments.get("dataset")) in STATISTICS:
        return True
    if "pos_embed" not in state or said.get("image_size_guess") is not None:
        return False
    if said.get("image_size") is not None:
        return said["image_size"][1] == MEL_BINS != said["image_size"][0]
    table = _table(state)
    columns, rows = _columns(table), state["pos_embed"].shape[1]  # an image's table may lack a row for cls
    sides = [math.isqrt(n) for n in (len(table), rows) if math.isqrt(n) ** 2 == n]
    return bool(_lattices(state)) and (not sides or columns not in (None, *sides))


def read_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors, and what the file's training arguments say: statistics of the data, overlap, masks, target."""
    mean, std = STATISTICS.get(str(arguments.get("dataset")), STATISTICS["audioset"])
    told = {"mean": (mean,), "std": (std,), "norm_pix": bool(arguments.get("norm_pix_loss", True))}
    return state, told | told_mask_ratio(arguments) | {"arguments": arguments}


def with_statistics(published: Published) -> Published:
    """The same with statistics of AudioSet: beside timm's conversions stand ImageNet's, which are timm's default."""
    mean, std = STATISTICS["audioset"]
    return replace(published, facts=replace(published.facts, mean=(mean,), std=(std,)))


def has_windows(state: State) -> bool:
    """Whether the decoder attends inside windows, and not globally."""
    return "decoder_blocks.0.attn.tau" in state


def build_encoder(published: Published, modality: str = "audio") -> Encoder:
    """Our encoder with published weights, in evaluation mode; position tables are the file's own, bit for bit.

    Without a final norm where the file has none: fine-tuned models pool first and norm after it. Raises an `MmsslError`
    for what is missing, or has no place here.
    """
    sizes = encoder_sizes(published)
    tokenizer = spectrograms_of(published)
    config = EncoderConfig(
        tokenizers={modality: tokenizer}, **trunk_options(published, sizes), positions=_scheme(published, tokenizer)
    )
    encoder = Encoder(config)
    load_strictly(encoder, encoder.state_dict() | _encoder_state(published.state, modality), published.source)
    return encoder.eval()


def build_audiomae(published: Published) -> AudioMAE:
    """Our Audio-MAE, decoder included, with published weights, in evaluation mode."""
    encoder, decoder = encoder_sizes(published), _decoder_sizes(published)
    _check_plain(published, encoder, decoder)
    method = create_method(_config(published, encoder, decoder))
    ours = {f"encoder.{k}": v for k, v in _encoder_state(published.state, "audio").items()}
    ours |= {f"decoder.{k}": v for k, v in _decoder_state(published).items()}
    load_strictly(method, method.state_dict() | ours, published.source)
    return method.eval()


def spectrograms_of(published: Published) -> AudioTokenizerConfig:
    """The tokenizer of a model of audio; its frames and overlap are told by the number of its tokens."""
    state, facts = published.state, published.facts
    patch = tuple(state["patch_embed.proj.weight"].shape[-2:])
    if facts.image_size is not None:  # timm knows it
        (frames, bins), stride = facts.image_size, None
    else:
        stride, rows = _lattice(published)
        frames, bins = rows * patch[0] if stride is None else _frames(rows, patch[0], facts.frames), MEL_BINS
    (mean,), (std,) = facts.mean, facts.std
    return AudioTokenizerConfig("audio", frames, bins, patch, stride, mean=mean, std=std)


def _lattice(published: Published) -> tuple[int | None, int]:
    """Stride of the patches, and how many follow one another in time.

    Where the tokens fit both kinds, the training arguments say it, else the position table.
    """
    state = published.state
    fitting = _lattices(state)
    if not fitting:
        p, q = state["patch_embed.proj.weight"].shape[-2:]
        raise MmsslError(
            f"{published.source} has positions for {len(_table(state))} patches, and no number of frames of {MEL_BINS} "
            f"mel bins has so many of {p}x{q}, side by side or one every {OVERLAP}; if it is a model of grey images, "
            "say modality='image'."
        )
    overlap, columns = published.facts.arguments.get("use_custom_patch"), _columns(_table(state))
    if overlap is None:  # a swapped table has as many columns as there are times
        overlap = columns == _pitches(state, OVERLAP) and (None, columns) not in fitting
    return next((f for f in fitting if (f[0] is not None) == bool(overlap)), fitting[0])


def _lattices(state: State) -> list[tuple[int | None, int]]:
    """Stride and times of the lattices with as many tokens as there are positions."""
    n, q = len(_table(state)), state["patch_embed.proj.weight"].shape[-1]
    strides = [None] * (MEL_BINS % q == 0) + [OVERLAP] * (OVERLAP < q <= MEL_BINS)
    return [(s, n // _pitches(state, s)) for s in strides if n % _pitches(state, s) == 0]


def _pitches(state: State, stride: int | None) -> int:
    """How many patches lie on one another at one time."""
    q = state["patch_embed.proj.weight"].shape[-1]
    return (MEL_BINS - q) // (stride or q) + 1


def _frames(rows: int, patch: int, said: int | None) -> int:
    """Frames of so many overlapping patches: of those possible what the user says, a multiple of 16, or the least."""
    least = patch + OVERLAP * (rows - 1)
    possible = range(least, least + OVERLAP)
    return said if said in possible else next((frames for frames in possible if frames % 16 == 0), least)


def _table(state: State) -> Tensor:
    """Positions of the patches (N, D)."""
    return state["pos_embed"][0, int("cls_token" in state) :].float()


def _columns(table: Tensor) -> int | None:
    """Columns of the lattice in whose raster order this (N, D) is a sine-cosine table, column first; None = it is not.

    The table may be the beginning of a longer one.
    """
    n, dim = table.shape
    if n == 0 or dim % 4:
        return None
    row = table[:, dim // 2 :]
    second = ((row - row[0]).abs().amax(1) > 1e-2).nonzero()  # the places after the first row of the lattice
    columns = int(second[0]) if len(second) else n
    return columns if torch.allclose(table, sincos_swapped(dim, n, columns), atol=1e-4) else None


def _scheme(published: Published, tokenizer: AudioTokenizerConfig) -> Positions:
    """By which formula the position table was made, so that longer sound continues it."""
    columns = _columns(_table(published.state))
    clean = (tokenizer.mel_bins - tokenizer.patch_size[1]) // tokenizer.steps[1] + 1
    if columns is None or (tokenizer.stride and columns != clean):
        return "learned"
    return "sincos" if columns == clean else "sincos_swapped"


def _encoder_state(state: State, modality: str) -> State:
    """Weights of the encoder under our names; the cls token's position row is added to the cls token itself."""
    ours = projection(state) | {"pos_embed": _table(state)[None].contiguous()}
    ours = {f"tokenizers.{modality}.{name}": value for name, value in ours.items()}
    if "cls_token" in state:
        ours["cls_token"] = state["cls_token"].float() + state["pos_embed"][:, :1].float()
    return ours | trunk_state(state)


def _decoder_sizes(published: Published) -> Sizes:
    """Sizes of the decoder; where it has windows, its heads are told by its temperatures."""
    state, facts = published.state, published.facts
    others = {"decoder_pos_embed"}
    if has_windows(state):
        published = replace(published, facts=replace(facts, decoder_heads=len(state["decoder_blocks.0.attn.tau"])))
        blocks = {name.split(".")[1] for name in state if name.startswith("decoder_blocks.")}
        others |= {f"decoder_blocks.{k}.attn.{part}" for k in blocks for part in _WINDOW_PARTS}
    return decoder_sizes(published, "Audio-MAE", others=others, whole="the authors' pretrained.pth")


def _check_plain(published: Published, encoder: Sizes, decoder: Sizes) -> None:
    plain = all(s.hidden == 4 * s.dim and s.qkv_bias == "full" and not s.layer_scale for s in (encoder, decoder))
    if not plain or not {"norm.weight", "cls_token"} <= published.state.keys():
        raise MmsslError(
            f"{published.source} is no Audio-MAE as published (cls token, MLP 4 times the width, q, k, v bias, final "
            "norm); mmssl.load may still read its encoder."
        )


def _config(published: Published, encoder: Sizes, decoder: Sizes) -> AudioMAEConfig:
    facts, tokenizer = published.facts, spectrograms_of(published)
    names = ("frames", "mel_bins", "patch_size", "stride", "mean", "std")
    return AudioMAEConfig(
        size="custom",
        dim=encoder.dim,
        depth=encoder.depth,
        heads=encoder.heads,
        **{name: getattr(tokenizer, name) for name in names},
        positions=_scheme(published, tokenizer),
        **_masks(facts),
        norm_pix=facts.norm_pix,
        decoder="window" if has_windows(published.state) else "global",
        window=(4, 4) if tokenizer.stride is None else (6, 6),
        shift=(0, 0) if facts.arguments.get("no_shift") is True else (2, 0),
        decoder_dim=decoder.dim,
        decoder_depth=decoder.depth,
        decoder_heads=decoder.heads,
        norm_eps=facts.norm_eps,
    )


def _masks(facts: Facts) -> dict[str, Any]:
    """How masks were drawn, as far as the training arguments say it."""
    said = {"mask_ratio": facts.mask_ratio or AudioMAEConfig.mask_ratio}
    if facts.arguments.get("mask_2d") is True:
        said["mask"] = "time_frequency"
        for ours, theirs in (("time_ratio", "mask_t_prob"), ("frequency_ratio", "mask_f_prob")):
            ratio = facts.arguments.get(theirs)
            said |= {ours: ratio} if isinstance(ratio, float) and 0 <= ratio < 1 else {}
    return said


def _decoder_state(published: Published) -> State:
    """The decoder's weights under our names. Before windows cls is taken away, so that its position means nothing."""
    state = published.state
    table = state["decoder_pos_embed"].float()
    if not has_windows(state) and table[:, :1].abs().max() > 0:
        raise MmsslError(f"{published.source} gives the decoder's cls token a position, which MAE's does not have.")
    return decoder_state(state) | {"pos_embed": table[:, 1:].contiguous()}
