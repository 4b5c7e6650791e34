"""Stretches of any sound file at any rate: the only place where sounds are decoded.

soundfile reads wav, flac, ogg, mp3 and whatever else libsndfile knows; the sound tracks of videos, and formats that it
does not know (m4a, aac, wma), go through PyAV. Only the samples that are asked for are decoded, with as many round
them as the resampler sees, so that what comes out is, but for rounding, that stretch of the resampled whole.
"""

import math
import os
import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from mmssl.errors import MmsslError

BY_SOUNDFILE = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"}
)
EXTENSIONS = BY_SOUNDFILE | {".m4a", ".aac", ".wma", ".mka", ".ac3", ".amr"}
CONTEXT = 32  # samples of the lower rate that the resampler sees on each side, and more
_LOUDEST = 64.0  # a waveform of [-1, 1] with any gain stays far below, one in 16-bit integers does not
_FINEST = 1000  # phases of the largest resampling filter that is built
_MP3_AHEAD = 16 * 1152  # samples: a frame of mp3 uses what earlier ones left over, and is wrong without them
_HEAD = 4096  # bytes of a file in which its header is looked for
_ENDLESS = 0x7FFFF000
_TORN = 0.1  # seconds that a wav file may be shorter than its header says


class AudioUnreadable(ValueError):
    """A sound file cannot be used, and why."""


@dataclass(frozen=True)
class AudioFacts:
    """What a file says of itself: samples of a channel, samples a second, channels."""

    frames: int
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def probe(path: str | os.PathLike) -> AudioFacts:
    """Length, rate and channels of a file, or of the sound track of a video; nothing is decoded.

    Raises:
        AudioUnreadable: no such file, an empty one, no sound in it, a rate of 0, damaged or cut off.
    """
    with open_sound(path) as sound:
        return sound.facts


def read_audio(
    path: str | os.PathLike,
    rate: int | None = None,
    start_s: float = 0.0,
    seconds: float | None = None,
    channel: Literal["mix"] | int = "mix",
) -> np.ndarray:
    """A stretch of a sound, float32 (S,) in about [-1, 1].

    Args:
        rate: samples a second of the result; None keeps the file's.
        start_s: where the stretch begins, in seconds.
        seconds: its length; None for all that follows. It is shorter where the file ends before.
        channel: "mix" for the mean of all channels, or the number of one, counted from 0.

    Raises:
        AudioUnreadable: as `probe`, or NaN, infinite or far too large samples, or no such channel.
    """
    with open_sound(path) as sound:
        rate = rate or sound.facts.rate
        first, count = round(start_s * rate), None if seconds is None else round(seconds * rate)
        return sound.read(rate, first, count, channel)


def open_sound(path: str | os.PathLike) -> "Sound":
    """An open file; use it in a `with` block. Raises as `probe`."""
    path = os.fspath(path)
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise AudioUnreadable(f"there is no such file ({error.strerror})") from None
    if size == 0:
        raise AudioUnreadable("the file is empty")
    if os.path.splitext(path)[1].lower() in BY_SOUNDFILE:
        return SoundFile(path, size)
    from mmssl.data.audio_tracks import SoundTrack

    return SoundTrack(path)


class Sound:
    """An open sound. Subclasses set `facts`, and write `samples` and `close`."""

    facts: AudioFacts

    def samples(self, first: int, count: int) -> np.ndarray:
        """float32 (n, channels), n <= count, of the file's own rate from sample `first` on."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> "Sound":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def length(self, rate: int) -> int:
        """Samples of the whole at another rate."""
        return (
            self.facts.frames
            if rate == self.facts.rate
            else math.ceil(self.facts.frames * ratio(self.facts.rate, rate))
        )

    def read(self, rate: int, first: int, count: int | None, channel: Literal["mix"] | int = "mix") -> np.ndarray:
        """float32 (n,): `count` samples at `rate` from sample `first` on, fewer at the end; see `read_audio`."""
        if channel != "mix" and channel >= self.facts.channels:
            raise AudioUnreadable(
                f"it has {self.facts.channels} channel(s), counted from 0, but channel {channel} is wanted"
            )
        last = self.length(rate) if count is None else min(first + count, self.length(rate))
        if last <= first:
            raise AudioUnreadable(f"it ends after {self.facts.seconds:.2f} s, before what is wanted begins")
        step = ratio(self.facts.rate, rate)  # new / old
        if step == 1:
            return self._mono(first, last - first, channel)
        # A stretch that begins at a whole period of both rates meets the same filters as in the whole.
        old, new = step.denominator, step.numerator
        context = math.ceil(CONTEXT * max(1, old / new))
        period = max(0, (first * old // new - context) // old)
        begin, end = period * old, min(math.ceil(last * old / new) + context, self.facts.frames)
        wave = _resampler(old, new)(torch.from_numpy(self._mono(begin, end - begin, channel))[None])[0]
        return wave[first - period * new : last - period * new].numpy()

    def _mono(self, first: int, count: int, channel: Literal["mix"] | int) -> np.ndarray:
        samples = self.samples(first, count)
        wave = samples.mean(1) if channel == "mix" else np.ascontiguousarray(samples[:, channel])
        if not len(wave):
            raise AudioUnreadable("no sound can be decoded from it")
        largest = np.abs(wave).max()
        if not np.isfinite(largest):
            raise AudioUnreadable("it holds NaN or infinite samples")
        if largest > _LOUDEST:
            raise AudioUnreadable(f"it holds samples up to {largest:.4g}, but a waveform lies in about [-1, 1]")
        return wave


class SoundFile(Sound):
    """A file that libsndfile reads."""

    def __init__(self, path: str, size: int):
        self._library = _soundfile()
        self._handle = os.open(path, os.O_RDONLY)
        try:
            head = os.read(self._handle, _HEAD)
            os.lseek(self._handle, 0, os.SEEK_SET)
            file = self._file = self._library.SoundFile(self._handle, closefd=False)
        except self._library.LibsndfileError as error:
            os.close(self._handle)
            raise AudioUnreadable(_reason(error, head)) from None
        except BaseException:
            os.close(self._handle)
            raise
        self.facts = AudioFacts(file.frames, file.samplerate, file.channels)
        if reason := _torn(head, size, self.facts):
            self.close()
            raise AudioUnreadable(reason)

    def samples(self, first: int, count: int) -> np.ndarray:
        ahead = min(first, _MP3_AHEAD) if self._file.format in ("MP3", "MPEG") else 0
        try:
            self._file.seek(first - ahead)
            samples = self._file.read(ahead + count, dtype="float32", always_2d=True)[ahead:]
        except self._library.LibsndfileError as error:
            raise AudioUnreadable(f"damaged: {_words(error)}") from None
        if len(samples) < count - _TORN * self.facts.rate:
            raise AudioUnreadable(
                f"cut off: {count} samples were asked for and {len(samples)} are there, of {self.facts.frames} in all"
            )
        return samples

    def close(self) -> None:
        self._file.close()
        os.close(self._handle)


@lru_cache(maxsize=256)
def ratio(old: int, new: int) -> Fraction:
    """new / old, or, where no small filter does it exactly (44101 to 16000), the nearest that one does."""
    exact = Fraction(new, old)
    return exact if exact.numerator <= _FINEST else (1 / exact).limit_denominator(_FINEST) ** -1


@lru_cache(maxsize=16)
def _resampler(old: int, new: int) -> torch.nn.Module:
    """torchaudio's band-limited interpolation; its filter is computed once in a process."""
    from torchaudio.transforms import Resample

    return Resample(old, new)


def _soundfile():
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: it finds no libsndfile
        raise MmsslError(f"reading sound needs soundfile ({error}); install it: pip install soundfile.") from None
    return soundfile


def _reason(error: Exception, head: bytes) -> str:
    if head[:4] == b"RIFF" and head[12:16] == b"fmt " and head[24:28] == bytes(4):
        return "its header says a rate of 0 samples a second"
    return f"damaged, or no sound file: {_words(error)}"


def _words(error: Exception) -> str:
    return error.error_string.removeprefix("Error : ").strip(" .")


def _torn(head: bytes, size: int, facts: AudioFacts) -> str | None:
    """Why a file that opened cannot be used: nothing in it, no rate, or less than its header says."""
    if facts.rate < 1:
        return "its header says a rate of 0 samples a second"
    if facts.frames < 1:
        return "there is no sound in it"
    place = _data_chunk(head)
    if place is None:
        return None
    promised, there = struct.unpack("<I", head[place + 4 : place + 8])[0], size - place - 8
    if promised >= _ENDLESS or promised == 0:  # written to a pipe, when its length was not known
        return None
    if promised - there > _TORN * there / facts.seconds:
        return f"cut off: its header says {promised} bytes of sound and {there} are there"
    return None


def _data_chunk(head: bytes) -> int | None:
    """Where the samples' chunk of a wav file begins; None where the file's head does not tell."""
    place = 12
    while head[:4] == b"RIFF" and place + 8 <= len(head):
        if head[place : place + 4] == b"data":
            return place
        length = struct.unpack("<I", head[place + 4 : place + 8])[0]
        place += 8 + length + length % 2
    return None
