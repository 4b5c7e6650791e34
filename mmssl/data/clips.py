"""Which frames of a video make a clip: dense with a stride, one of each segment (TSN), a pair, or R3M's five.

Frames of one clip share their crop and flip. Everything that is drawn is a function of the sample's key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmssl.data.transforms import CLIP_STREAM
from mmssl.errors import MmsslError
from mmssl.keys import uniform


class TooShort(ValueError):
    """A video has fewer frames than its clip needs, and such videos are to be skipped."""


@dataclass(frozen=True)
class ClipSampling:
    """Which frames of a video make a sample, `video` uint8 (B, T, 3, H, W).

    Args:
        how: "dense": `frames` frames, `stride` apart (VideoMAE on Kinetics); "segments": one frame of each of `frames`
            equal parts of the whole video (TSN, Wang et al. 2016; Something-Something); "pair": two frames whose
            distance is drawn from `gap` (SiamMAE); "r3m": five frames of the whole video: one near its start, one near
            its end, and three whose times rise (R3M).
        frames: T; a pair has 2, R3M's have 5.
        stride: frames between two of a dense clip.
        gap: smallest and largest distance of a pair, the largest one excluded (SiamMAE: 4 to 48).
        alpha: share of the video at its start, and at its end, from which R3M's first two frames are drawn.
        test_clips: clips of each video at test time, evenly spread; their predictions are averaged.
        test_crops: crops of each clip at test time (3: both ends and the middle of the longer side).
        short: videos with fewer frames than a clip needs: "pad" repeats the last frame of a dense clip, repeats frames
            evenly over the segments, and makes a pair of the first frame and the last (R3M's five of the first, the
            last and one between); "skip" leaves them out as unreadable.
    """

    how: Literal["dense", "segments", "pair", "r3m"] = "dense"
    frames: int = 16
    stride: int = 4
    gap: tuple[int, int] = (4, 48)
    alpha: float = 0.2
    test_clips: int = 1
    test_crops: int = 1
    short: Literal["pad", "skip"] = "pad"

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "test_clips", "test_crops"):
            if getattr(self, name) < 1:
                raise MmsslError(f"clip.{name} must be 1 or more, got {getattr(self, name)}.")
        if not 1 <= self.gap[0] < self.gap[1]:
            raise MmsslError(f"clip.gap must be two increasing numbers of 1 or more, got {tuple(self.gap)}.")
        if self.how == "pair" and self.frames != 2:
            raise MmsslError(f"a pair has 2 frames, got clip.frames {self.frames}; set clip.frames to 2.")
        if self.how == "r3m" and (self.frames != 5 or self.test_clips != 1):
            raise MmsslError(
                f"R3M's clips have 5 frames of the whole video, got clip.frames {self.frames} and clip.test_clips "
                f"{self.test_clips}; set them to 5 and 1."
            )
        if not 0 <= self.alpha < 0.5:
            raise MmsslError(f"clip.alpha is a share of the video in [0, 0.5), got {self.alpha}.")

    @property
    def frame_by_frame(self) -> bool:
        """Whether an encoder of single images learns from these clips, each frame by itself."""
        return self.how in ("pair", "r3m")

    @property
    def needed(self) -> int:
        """Frames that a video must have so that nothing is padded."""
        dense = (self.frames - 1) * self.stride + 1
        return {"dense": dense, "segments": self.frames, "pair": self.gap[0] + 1, "r3m": 3}[self.how]

    @property
    def reach(self) -> int | None:
        """Frames from the first to the last of the longest clip that is drawn; None for the whole video."""
        return {"dense": self.needed, "segments": None, "pair": self.gap[1], "r3m": None}[self.how]

    @property
    def draws(self) -> int:
        """Uniform numbers that one clip takes."""
        return {"dense": 1, "segments": self.frames, "pair": 2, "r3m": 5}[self.how]

    @property
    def demand(self) -> str:
        """What a clip asks of a video, in words."""
        return {
            "dense": f"a clip of {self.frames} frames with stride {self.stride} needs {self.needed}",
            "segments": f"one frame of each of {self.frames} segments needs {self.needed}",
            "pair": f"a pair with a gap of {self.gap[0]} or more needs {self.needed}",
            "r3m": f"three frames one after the other need {self.needed}",
        }[self.how]

    @property
    def remedy(self) -> str:
        """What to change where videos are too short."""
        return {
            "dense": "lower clip.stride or clip.frames",
            "segments": "lower clip.frames",
            "pair": "lower clip.gap",
            "r3m": "leave out such videos",
        }[self.how]


def clip_draws(clip: ClipSampling, keys: Tensor) -> list[list[float]]:
    """Uniform numbers of each clip, from the samples' keys (B,)."""
    return uniform(keys, clip.draws, CLIP_STREAM).tolist()


def frame_indices(
    clip: ClipSampling, n: int, draws: Sequence[float] | None = None, part: int = 0, parts: int = 1
) -> list[int]:
    """Frames of one clip of a video of `n` frames, never falling but for R3M's.

    R3M's five are, in this order: one near the start, one near the end, and three whose times rise, anywhere.

    Args:
        n: frames of the video, at least 1.
        draws: `clip.draws` uniform numbers in [0, 1) for training; None gives the clip of test time.
        part: number of the clip among `parts` of the same video. At test time they are spread evenly from the start to
            the end (a lone one lies in the middle). In training a clip starts in its own of `parts` equal stretches.

    Raises:
        TooShort: the video is too short and `clip.short` is "skip".
    """
    if n < clip.needed and clip.short == "skip":
        raise TooShort(f"too short: it has {n} frame(s), but {clip.demand}; {clip.remedy}, or set clip.short: pad")
    return {"dense": _dense, "segments": _segments, "pair": _pair, "r3m": _r3m}[clip.how](clip, n, draws, part, parts)


def _dense(clip: ClipSampling, n: int, draws: Sequence[float] | None, part: int, parts: int) -> list[int]:
    first = _start(n - clip.needed + 1, draws[0] if draws else None, part, parts)
    return [min(first + k * clip.stride, n - 1) for k in range(clip.frames)]


def _segments(clip: ClipSampling, n: int, draws: Sequence[float] | None, part: int, parts: int) -> list[int]:
    """At test time an odd number of clips sits round each segment's middle; two are its start and its middle, as the
    evaluation of Something-Something has them (VideoMAE's code).
    """
    if draws is None:
        offset = (part + parts % 2 / 2) / parts
        return [min(int((k + offset) * n / clip.frames), n - 1) for k in range(clip.frames)]
    borders = [k * n // clip.frames for k in range(clip.frames + 1)]
    return [a + int(u * (b - a)) for a, b, u in zip(borders[:-1], borders[1:], draws, strict=True)]


def _pair(clip: ClipSampling, n: int, draws: Sequence[float] | None, part: int, parts: int) -> list[int]:
    if n < clip.needed:
        return [0, n - 1]
    low, high = clip.gap[0], min(clip.gap[1], n)  # of the gaps that fit
    gap = (low + high - 1) // 2 if draws is None else low + int(draws[0] * (high - low))
    first = _start(n - gap, draws[1] if draws else None, part, parts)
    return [first, first + gap]


def _r3m(clip: ClipSampling, n: int, draws: Sequence[float] | None, part: int, parts: int) -> list[int]:
    """As the released code draws them, whose frames are numbered from 1; the third may be the second."""
    if draws is None or n < clip.needed:
        return [0, n - 1, *(k * (n - 1) // 4 for k in (1, 2, 3))] if n >= clip.needed else [0, n - 1, 0, n // 2, n - 1]
    first, last, s0, s1, s2 = draws
    middle = _among(1, n - 2, s1)
    return [
        _among(0, int(clip.alpha * n), first),
        _among(max(0, int((1 - clip.alpha) * n) - 2), n - 2, last),
        _among(0, middle - 1, s0),
        middle,
        _among(middle, n - 1, s2),
    ]


def _among(low: int, high: int, draw: float) -> int:
    """One of the whole numbers from `low` to `high`, both included."""
    return low + int(draw * (high - low + 1))


def _start(places: int, draw: float | None, part: int, parts: int) -> int:
    """One of the first `places` frames, from which the clip fits into the video."""
    if places <= 1:
        return 0
    if draw is not None:
        return int((part + draw) / parts * places)
    return part * (places - 1) // (parts - 1) if parts > 1 else (places - 1) // 2
