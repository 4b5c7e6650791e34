"""Which stretch of a sound makes a sample, `audio` float32 (B, 1, S), and how it becomes exactly S samples long."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmssl.errors import MmsslError

MARK = 1e-20
"""What the last sample of a sound becomes where it is exactly 0: exact zeros at the end of a row are padding."""


class SoundTooShort(ValueError):
    """A sound is shorter than a sample, and such sounds are to be skipped."""


@dataclass(frozen=True)
class AudioSampling:
    """Which stretch of a sound makes a sample.

    Args:
        sample_rate: samples a second of what comes out; files of another rate are resampled.
        seconds: length of a sample; S = round(sample_rate * seconds).
        channel: "mix" takes the mean of all channels, a number that channel, counted from 0.
        start: where a sample of training begins: anywhere, at the beginning (Audio-MAE), or so that it is the middle.
        test_start: where a lone sample of test time begins.
        short: sounds shorter than a sample: "pad" puts zeros behind them, "repeat" begins them again, "skip" leaves
            them out as unreadable.
        silent: files of nothing but zeros: "keep", or "skip" as unreadable.
        test_clips: stretches of each sound at test time, evenly spread; their predictions are averaged.
    """

    sample_rate: int = 16000
    seconds: float = 10.0
    channel: Literal["mix"] | int = "mix"
    start: Literal["random", "first", "centre"] = "random"
    test_start: Literal["first", "centre"] = "centre"
    short: Literal["pad", "repeat", "skip"] = "pad"
    silent: Literal["keep", "skip"] = "keep"
    test_clips: int = 1

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise MmsslError(
                f"audio.sample_rate must be a number of samples a second, such as 16000, got {self.sample_rate}."
            )
        if not 1 <= self.sample_rate * self.seconds < 1e9:
            raise MmsslError(
                f"audio.seconds must give 1 or more samples at {self.sample_rate} a second, got {self.seconds!r}."
            )
        if self.channel != "mix" and self.channel < 0:
            raise MmsslError(f"audio.channel must be mix or a channel counted from 0, got {self.channel}.")
        if self.test_clips < 1:
            raise MmsslError(f"audio.test_clips must be 1 or more, got {self.test_clips}.")

    @property
    def samples(self) -> int:
        """S."""
        return round(self.sample_rate * self.seconds)


def first_sample(sampling: AudioSampling, n: int, draw: float | None = None, part: int = 0, parts: int = 1) -> int:
    """Where a sample of a sound of `n` samples (at the wanted rate) begins.

    Args:
        draw: a uniform number in [0, 1) for training; None gives the sample of test time.
        part: its number among `parts` of test time, spread evenly from the beginning to the end.
    """
    places = n - sampling.samples + 1  # where it fits
    where = sampling.test_start if draw is None else sampling.start
    if places <= 1:
        return 0
    if draw is None and parts > 1:
        return part * (places - 1) // (parts - 1)
    return {"random": int((draw or 0.0) * places), "first": 0, "centre": (places - 1) // 2}[where]


def to_length(sampling: AudioSampling, sound: np.ndarray) -> np.ndarray:
    """float32 (n,) -> (S,): cut, or as `sampling.short` says. What follows the sound is exactly 0, its end is not.

    Raises:
        SoundTooShort: it is too short and `sampling.short` is "skip".
    """
    missing = sampling.samples - len(sound)
    if missing > 0 and sampling.short == "skip":
        raise SoundTooShort(
            f"too short: it has {len(sound) / sampling.sample_rate:.2f} s, {sampling.seconds:g} wanted; lower "
            "audio.seconds, or set audio.short: pad"
        )
    if missing > 0 and sampling.short == "repeat":
        sound = np.resize(sound, sampling.samples)
    out = np.zeros(sampling.samples, np.float32)
    sound = sound[: sampling.samples]
    out[: len(sound)] = sound
    if out[len(sound) - 1] == 0:
        out[len(sound) - 1] = MARK
    return out
