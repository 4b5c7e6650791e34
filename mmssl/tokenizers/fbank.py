"""Waveforms -> log-mel spectrograms, whole batches at once: Kaldi's filter bank features, or plain ones.

The result is that of `torchaudio.compliance.kaldi.fbank` or `torchaudio.transforms.MelSpectrogram`. What goes into the
transform is rounded as torchaudio rounds it. Around that, frames are cut as wide as the transform, so that none has to
be padded, and each group of mel filters is multiplied with the few frequencies that reach it. On a CPU a few frames
are done at a time, so that what lies between two steps stays in the cache.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.errors import MmsslError

Kind = Literal["kaldi", "mel"]
FLOOR = torch.finfo(torch.float32).eps
"""Least energy of a mel filter, before the logarithm, as in Kaldi."""
SILENCE = math.log(FLOOR)
"""Log-mel value of digital silence."""
PRE_EMPHASIS = 0.97
_MOST_EMPTY = 0.05  # share of filters without a frequency; 1 of the 128 of Audio-MAE's own setting is empty
_GROUP = 16  # mel filters that are computed in one product
_CHUNK = 1024  # frames that a CPU does at a time


@dataclass(frozen=True)
class LogMelConfig:
    """How a spectrogram is computed; the defaults are Audio-MAE's."""

    kind: Kind = "kaldi"
    """`kaldi`: each frame without its mean, pre-emphasis .97, symmetric Hann window, filters that are triangles in mel.
    `mel`: as torchaudio.transforms.MelSpectrogram, periodic Hann window, filters that are triangles in hertz."""
    sample_rate: int = 16000
    """Samples a second."""
    mel_bins: int = 128
    """M."""
    window_ms: float = 25.0
    hop_ms: float = 10.0
    low_freq: float = 20.0
    """Where the first filter begins, in hertz."""
    high_freq: float = 0.0
    """Where the last filter ends, in hertz; 0 or less: so far from half the sample rate."""

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise MmsslError(f"sample_rate must be 1 or more samples a second, such as 16000, got {self.sample_rate}.")
        if self.window < 2 or self.hop < 1:
            raise MmsslError(
                f"window_ms {self.window_ms} and hop_ms {self.hop_ms} are {self.window} and {self.hop} samples at "
                f"{self.sample_rate} a second; a window needs 2 or more and a hop 1 or more."
            )
        if not 0 <= self.low_freq < self.top <= self.sample_rate / 2:
            raise MmsslError(
                f"mel filters from {self.low_freq:g} to {self.top:g} Hz do not lie between 0 and half the sample rate, "
                f"{self.sample_rate / 2:g} Hz; change low_freq, high_freq or sample_rate."
            )
        self._refuse_empty_filters()

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return int(self.sample_rate * self.window_ms * 0.001)  # rounded down in Kaldi's own order of products

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sample_rate * self.hop_ms * 0.001)

    @property
    def fft(self) -> int:
        """Samples of a transform: the next power of 2."""
        return 1 << (self.window - 1).bit_length()

    @property
    def top(self) -> float:
        """Where the last filter ends, in hertz."""
        return self.high_freq if self.high_freq > 0 else self.sample_rate / 2 + self.high_freq

    def frames(self, samples: int) -> int:
        """Frames that fit wholly into `samples`."""
        return max(0, 1 + (samples - self.window) // self.hop)

    def samples(self, frames: int) -> int:
        """Samples that `frames` frames cover."""
        return self.window + (frames - 1) * self.hop

    def _refuse_empty_filters(self) -> None:
        if self.mel_bins < 1:
            raise MmsslError(f"mel_bins must be 1 or more, got {self.mel_bins}.")
        if (empty := _empty_filters(self)) < _MOST_EMPTY * self.mel_bins:
            return
        raise MmsslError(
            f"mel_bins {self.mel_bins} is more than the transform carries: its {self.fft // 2 + 1} frequencies up to "
            f"{self.sample_rate / 2:g} Hz leave {empty} filters empty; take fewer mel_bins, or a window_ms above "
            f"{self.window_ms:g}."
        )


def mel_edges(config: LogMelConfig) -> Tensor:
    """Where the filters begin, peak and end, in hertz: float64 (M + 2,); filter j reaches from edge j to edge j + 2."""
    ends = torch.tensor([config.low_freq, config.top], dtype=torch.float64)
    low, high = _hertz_to_mel(ends)
    mel = low + torch.arange(config.mel_bins + 2, dtype=torch.float64) * (high - low) / (config.mel_bins + 1)
    return 700.0 * ((mel / 1127.0).exp() - 1.0)


def mel_bank(config: LogMelConfig) -> Tensor:
    """Triangular filters: float32 (F, M), F = fft / 2 + 1 frequencies from 0 to half the sample rate."""
    hertz = torch.arange(config.fft // 2 + 1) * (config.sample_rate / config.fft)
    if config.kind == "kaldi":
        return _kaldi_bank(config, _hertz_to_mel(hertz)[:, None])
    edges, places = mel_edges(config), hertz.double()[:, None]
    rise = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0).float()


def _kaldi_bank(config: LogMelConfig, places: Tensor) -> Tensor:
    """Triangles over the mel values `places` (F, 1) of the frequencies, rounded as torchaudio rounds them.

    A filter that hardly reaches a frequency has a weight so small that its rounding is seen in the logarithm.
    """
    low, high = (1127.0 * math.log(1.0 + f / 700.0) for f in (config.low_freq, config.top))
    step, number = (high - low) / (config.mel_bins + 1), torch.arange(config.mel_bins)
    left, centre, right = low + number * step, low + (number + 1.0) * step, low + (number + 2.0) * step
    bank = torch.minimum((places - left) / (centre - left), (right - places) / (right - centre)).clamp(min=0)
    bank[-1] = 0  # Kaldi leaves the highest frequency out
    return bank


def _hertz_to_mel(hertz: Tensor) -> Tensor:
    return 1127.0 * (1.0 + hertz / 700.0).log()


@lru_cache(maxsize=64)
def _empty_filters(config: LogMelConfig) -> int:
    with torch.device("cpu"):  # whatever device is the default while a model is made
        return int((mel_bank(config).sum(0) == 0).sum())


class LogMel(nn.Module):
    """Waveforms (B, S) -> log-mel float32 (B, T, M), T = 1 + (S - window) // hop: frames that fit wholly.

    Its constants are no weights: they are in no state dict, and stay float32 where a model is cast.
    """

    def __init__(self, config: LogMelConfig):
        super().__init__()
        self.config = config
        self._make_constants(None)

    def _make_constants(self, device: torch.device | None) -> None:
        config, device = self.config, torch.get_default_device() if device is None else device
        with torch.device("cpu"):
            window = torch.hann_window(config.window, periodic=config.kind == "mel")
            window = F.pad(window, (0, config.fft - config.window))
            bank = mel_bank(config).repeat_interleave(2, dim=0)  # (2 F, M): real and imaginary parts lie side by side
        for name, values in (("window", window), ("bank", bank)):
            self.register_buffer(name, values.to(device), persistent=False)
        self.spans = [_span(part) for part in bank.split(_GROUP, dim=1)]

    def _apply(self, fn, recurse: bool = True) -> "LogMel":
        super()._apply(fn, recurse)
        if self.window.dtype != torch.float32:
            self._make_constants(self.window.device)
        return self

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            return in_groups(self._rows, waveform, self.group(waveform.shape[1]))

    def group(self, samples: int) -> int:
        """Rows of so many samples that a CPU does at a time."""
        return max(1, _CHUNK * self.config.hop // samples)

    def _rows(self, waveform: Tensor) -> Tensor:
        frames, means = self._frames(waveform.float())
        if waveform.device.type != "cpu" or torch.compiler.is_compiling():
            return self._log_mel(frames, means)
        pieces = zip(frames.split(_CHUNK, dim=1), means.split(_CHUNK, dim=1), strict=True)
        return torch.cat([self._log_mel(*piece) for piece in pieces], dim=1)

    def _frames(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Overlapping frames (B, T, fft), and the means of their windows (B, T, 1)."""
        config = self.config
        frames = F.pad(x, (0, config.fft - config.window)).unfold(1, config.fft, config.hop)
        return frames, x.unfold(1, config.window, config.hop).mean(2, keepdim=True)

    def _log_mel(self, frames: Tensor, means: Tensor) -> Tensor:
        """(..., T, fft) and (..., T, 1) -> (..., T, M)."""
        frames = _emphasised(frames - means).mul_(self.window) if self.config.kind == "kaldi" else frames * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frames)).flatten(-2)  # (..., T, 2 F)
        return self._filter(spectrum.square_()).clamp_(min=FLOOR).log_()

    def _filter(self, power: Tensor) -> Tensor:
        """(..., 2 F) -> energies (..., M)."""
        if _rounds_products(power.device.type):
            return (power.double() @ self.bank.double()).float()
        if power.device.type != "cpu" or torch.compiler.is_compiling():
            return power @ self.bank
        rows, parts = power.flatten(0, -2), zip(self.spans, self.bank.split(_GROUP, dim=1), strict=True)
        found = [rows[:, start:end] @ part[start:end] for (start, end), part in parts]
        return torch.cat(found, dim=1).unflatten(0, power.shape[:-1])


def _emphasised(frames: Tensor) -> Tensor:
    """Frames (..., fft) less .97 of the sample before each, in place.

    All frames are taken as one row, which is twice as fast. So the first sample of a frame loses one of another frame:
    Kaldi's window is 0 there.
    """
    frames.view(-1)[1:].sub_((frames * PRE_EMPHASIS).view(-1)[:-1])
    return frames


def in_groups(function: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """`function(x)`, which treats each row of x (B, ...) by itself; on a CPU so many rows at a time.

    What a whole batch leaves between two steps would neither stay in the cache nor be given the same memory again.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or len(x) <= rows:
        return function(x)
    out = None
    for start in range(0, len(x), rows):
        found = function(x[start : start + rows])
        out = found.new_empty(len(x), *found.shape[1:]) if out is None else out
        out[start : start + rows] = found
    return out


def _rounds_products(device: str) -> bool:
    """Whether float32 products may be computed with fewer digits there, as TensorFloat-32, which is too few here."""
    if torch.compiler.is_compiling():  # the setting cannot be read from within a graph
        return device == "cuda"
    return device in ("cpu", "cuda") and torch.get_float32_matmul_precision() != "highest"


def _span(bank: Tensor) -> tuple[int, int]:
    """First row of a part of the bank that is not all zeros, and the one after the last."""
    rows = bank.any(1).nonzero()
    return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 1)


@lru_cache(maxsize=8)
def _log_mel_on(config: LogMelConfig, device: torch.device) -> LogMel:
    return LogMel(config).to(device)


def kaldi_fbank(waveform: Tensor, *, sample_rate: int = 16000, mel_bins: int = 128, **settings: float) -> Tensor:
    """Kaldi's filter bank features of waveforms (B, S) -> float32 (B, T, M), on the waveforms' device.

    `torchaudio.compliance.kaldi.fbank` with htk_compat=True, use_energy=False, window_type="hanning" and dither=0, of
    every row, to 1e-4. More settings: those of `LogMelConfig`. An `MmsslError` where a row is shorter than a window.
    """
    config = LogMelConfig(sample_rate=sample_rate, mel_bins=mel_bins, **settings)
    if waveform.ndim != 2 or waveform.shape[1] < config.window:
        raise MmsslError(
            f"kaldi_fbank reads waveforms (batch, samples) of {config.window} samples or more, got "
            f"{tuple(waveform.shape)}; pad them with zeros."
        )
    return _log_mel_on(config, waveform.device)(waveform)
