"""Image encoders on clips: every frame is encoded by itself, and the tokens of all frames are the clip's."""

from typing import Any

import torch
from torch import Tensor, nn

from mmssl.encoder import Features
from mmssl.errors import MmsslError


class FrameEncoder(nn.Module):
    """An image encoder that reads clips: `video` (B, T, 3, H, W) -> `Features` of all frames.

    Tokens are (B, T * h * w, D), time slowest; `cls` is the mean over the frames' cls tokens; `grid` is (T, h, w). So a
    mean over the tokens is one over time and space, and `map()` gives (B, T, h, w, D).

    Args:
        encoder: reads `image`, or one camera `image/<camera>`, which here is `video` or `video/<camera>`.
        at_once: frames in one pass of the encoder; changes the memory, never the result.
    """

    def __init__(self, encoder: nn.Module, at_once: int = 256):
        super().__init__()
        if len(encoder.modalities) != 1 or not is_image(encoder.modalities[0]):
            raise MmsslError(f"only an encoder of images can read frames; this one reads {_listed(encoder)}.")
        self.encoder, self.at_once = encoder, at_once

    @property
    def key(self) -> str:
        """The batch key that it reads: `video` or `video/<camera>`."""
        return clip_key(self.encoder.modalities[0])

    @property
    def modalities(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def embed_dim(self) -> int:
        return self.encoder.embed_dim

    @property
    def tokenizers(self) -> nn.ModuleDict:
        return self.encoder.tokenizers

    def forward(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None) -> Features:
        """Features of clips; there are no masks here."""
        if masks:
            raise MmsslError("frames are encoded whole: FrameEncoder takes no masks.")
        return encode_frames(self.encoder, batch, self.at_once)

    def check(self, batch: dict[str, Tensor]) -> None:
        """As `Encoder.check`, on every frame."""
        self.encoder.check({self.encoder.modalities[0]: _clip(batch, self.key).flatten(0, 1)})


def encode_frames(
    encoder: nn.Module, batch: dict[str, Tensor], at_once: int | None = None, modality: str | None = None
) -> Features:
    """What `FrameEncoder` gives, from an encoder of images and a batch of clips.

    Args:
        at_once: frames in one pass; None takes all.
        modality: which one of the encoder's reads the frames; None for its only one.
    """
    modality = modality or encoder.modalities[0]
    key = clip_key(modality)
    clip = _clip(batch, key)  # (B, T, 3, H, W)
    frames = clip.flatten(0, 1)
    found = [encoder({modality: part}) for part in frames.split(at_once or len(frames))]
    tokens = torch.cat([f.tokens for f in found]).unflatten(0, clip.shape[:2]).flatten(1, 2)  # (B, T * N, D)
    cls = None
    if found[0].cls is not None:
        cls = torch.cat([f.cls for f in found]).unflatten(0, clip.shape[:2]).mean(1)  # (B, D)
    index = torch.arange(tokens.shape[1], device=tokens.device).expand(len(clip), -1)
    grid = (clip.shape[1], *next(iter(found[0].grid.values())))
    return Features(tokens, index, torch.ones_like(index, dtype=torch.bool), cls, {key: grid})


def clip_key(modality: str) -> str:
    """The batch key of the clips whose frames are read as `image` or `image/<camera>`."""
    return "video" + modality.removeprefix("image")


def _clip(batch: dict[str, Tensor], key: str) -> Tensor:
    clip = batch.get(key)
    if clip is None or clip.dim() != 5:
        raise MmsslError(
            f"clips {key!r} of shape (batch, frames, 3, height, width) are needed; the batch has "
            f"{', '.join(f'{k} {tuple(v.shape)}' for k, v in batch.items())}."
        )
    return clip


def is_image(modality: str) -> bool:
    return modality.split("/")[0] == "image"


def is_video(modality: str) -> bool:
    return modality.split("/")[0] == "video"


def frames_of(encoder: nn.Module) -> int | None:
    """Frames of the clips that an encoder reads, None where it reads no clips (or clips of any length)."""
    if isinstance(encoder, FrameEncoder):
        return None
    clips = (t for name, t in encoder.tokenizers.items() if is_video(name))  # sounds and vectors have others
    found = (getattr(tokenizer.config, "frames", None) for tokenizer in clips)
    return next((frames for frames in found if frames is not None), None)


def fit_to(encoder: nn.Module, dataset: Any) -> nn.Module:
    """The encoder as the dataset needs it: itself, or a `FrameEncoder` where an image encoder is given clips.

    Raises:
        MmsslError: a video encoder and images, an encoder of pictures and sounds, or clips of another length than it
            reads.
    """
    reads, gives = encoder.modalities, dataset.modality
    if gives == "audio" and gives not in reads:
        raise MmsslError(f"this encoder reads {_listed(encoder)} and {dataset.name!r} gives sound; give it pictures.")
    if is_video(gives) and len(reads) == 1 and is_image(reads[0]):
        return FrameEncoder(encoder)
    if is_image(gives) and all(map(is_video, reads)):
        raise MmsslError(
            f"this encoder reads clips ({_listed(encoder)}) and {dataset.name!r} gives single images; give videos, "
            "folders of frames or a recording, with a clip sampling (data.clip, or --clip)."
        )
    clip, frames = getattr(dataset, "clip", None), frames_of(encoder)
    if is_video(gives) and clip is not None and frames is not None:
        check_frames(frames, clip.frames)
    return encoder


def check_frames(frames: int, given: int) -> None:
    """An `MmsslError` where clips have another number of frames than the encoder reads."""
    if frames != given:
        raise MmsslError(
            f"the encoder reads clips of {frames} frames and clip.frames is {given}; set it to {frames}, or take an "
            "encoder of that length."
        )


def _listed(encoder: nn.Module) -> str:
    return ", ".join(encoder.modalities)
