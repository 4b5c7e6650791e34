"""A feature map for every frame of a video, from an encoder of images, an encoder of clips, or the raw pixels."""

import copy
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.labelled_videos import LabelledVideo
from mmssl.errors import MmsslError
from mmssl.evaluation.features import device_of
from mmssl.tokenizers.image import as_pair

_TOKENS_AT_ONCE = 2**14  # of one pass of an encoder


class FrameMaps:
    """Frames (B, span, 3, H, W), float in [0, 1] -> features (B, h, w, D) of one frame of each window.

    Attributes:
        patch: height and width of a token in pixels; it must divide the frames' size.
        span: frames in a window.
        before: how many of them come before the frame whose features are wanted.
        device: where the frames are needed.
    """

    patch: tuple[int, int]
    span: int = 1
    before: int = 0
    device: torch.device

    def __call__(self, windows: Tensor) -> Tensor:
        raise NotImplementedError

    def fit(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size nearest to (H, W) that the patch divides."""
        return tuple(max(p, round(side / p) * p) for side, p in zip(size, self.patch, strict=True))


class PixelMaps(FrameMaps):
    """Each token is its own pixels, without the frame's mean colour: what needs no learning."""

    def __init__(self, patch: tuple[int, int], device: torch.device):
        self.patch, self.device = patch, device

    def __call__(self, windows: Tensor) -> Tensor:
        frames = windows[:, 0]
        frames = frames - frames.mean((2, 3), keepdim=True)
        tokens = F.unfold(frames, self.patch, stride=self.patch).transpose(1, 2)  # (B, N, 3 * p * q)
        return tokens.unflatten(1, [side // p for side, p in zip(frames.shape[2:], self.patch, strict=True)])


class EncoderMaps(FrameMaps):
    """The patch tokens of a frozen encoder after its final norm.

    A copy of the encoder is made for each size of frames that is met; its position tables are interpolated. An encoder
    of clips reads, for every frame, a window of as many consecutive frames as it was trained on, in the middle of which
    the frame stands (it is the first frame of tubelet number t / 2); the features are those of that tubelet. Beyond the
    ends of a video its first and last frame are repeated.

    Raises:
        MmsslError: an encoder of anything but one image or video modality.
    """

    def __init__(self, encoder: nn.Module):
        tokenizers = dict(encoder.tokenizers.items())
        self.modality, tokenizer = next(iter(tokenizers.items()))
        if len(tokenizers) > 1 or getattr(tokenizer.config, "image_size", None) is None:
            raise MmsslError(
                f"tracking needs an encoder of images or video alone; this one reads {', '.join(encoder.modalities)}."
            )
        self.device = device_of(encoder)
        self.patch = as_pair(tokenizer.config.patch_size)
        self.clips = len(tokenizer.grid) == 3
        if self.clips:
            self.span = tokenizer.config.frames
            self.before = tokenizer.grid[0] // 2 * (self.span // tokenizer.grid[0])
        self.sized = {as_pair(tokenizer.config.image_size): encoder}

    def __call__(self, windows: Tensor) -> Tensor:
        size = tuple(windows.shape[-2:])
        if size not in self.sized:
            self.sized[size] = copy.deepcopy(next(iter(self.sized.values()))).resize(size)
        if not self.clips:
            return self.sized[size]({self.modality: windows[:, 0]}).map()
        maps = self.sized[size]({self.modality: windows}).map()  # (B, t, h, w, D)
        return maps[:, maps.shape[1] // 2]


@torch.no_grad()
def frame_maps(
    source: FrameMaps, video: LabelledVideo, size: tuple[int, int], batch_size: int = 256
) -> Iterator[Tensor]:
    """Features (h, w, D) of unit length of every frame of a video, in order.

    Args:
        size: (H, W) that the frames are resized to, which the patch divides.
        batch_size: frames in one pass at most; changes the time, never the result beyond rounding.
    """
    tokens = size[0] // source.patch[0] * (size[1] // source.patch[1]) * source.span
    at_once = max(1, min(batch_size, _TOKENS_AT_ONCE // tokens))

    @lru_cache(maxsize=at_once + source.span)
    def frame(place: int) -> Tensor:
        return to_tensor(video.frame(place), size)

    for start in range(0, len(video), at_once):
        windows = []
        for place in range(start, min(start + at_once, len(video))):
            places = range(place - source.before, place - source.before + source.span)
            windows.append(torch.stack([frame(min(max(p, 0), len(video) - 1)) for p in places]))
        maps = source(torch.stack(windows).to(source.device))  # (B, h, w, D)
        yield from F.normalize(maps.float(), dim=-1)


def to_tensor(frame: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 (H, W, 3) array -> float32 (3, *size) in [0, 1], resized bilinearly, with antialiasing where it shrinks."""
    pixels = torch.tensor(frame).permute(2, 0, 1).float() / 255
    if tuple(pixels.shape[1:]) == size:
        return pixels
    return F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)
