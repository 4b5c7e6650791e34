"""Waveforms of one rate -> another, on any device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ZEROS = 6  # zero crossings of the filter on each side
_ROLLOFF = 0.99  # where the filter cuts, as a share of half the lower rate


class Resample(nn.Module):
    """Waveforms (B, S) at `old` samples a second -> float32 (B, ceil(S * new / old)) at `new`.

    Band-limited interpolation with a Hann-windowed sinc, as `torchaudio.functional.resample` with its defaults. The
    filter is no weight: it is in no state dict, and stays float32 where a model is cast.
    """

    def __init__(self, old: int, new: int):
        super().__init__()
        divisor = math.gcd(old, new)
        self.old, self.new = old // divisor, new // divisor
        self._make_filter(None)

    def _make_filter(self, device: torch.device | None) -> None:
        cut = min(self.old, self.new) * _ROLLOFF
        self.reach = math.ceil(_ZEROS * self.old / cut)  # samples that the filter sees on each side
        place = torch.arange(-self.reach, self.reach + self.old, dtype=torch.float64) / self.old
        phase = torch.arange(self.new, dtype=torch.float64)[:, None] / self.new
        time = ((place - phase) * cut).clamp(-_ZEROS, _ZEROS)  # (new, old + 2 * reach)
        taps = torch.sinc(time) * torch.cos(time * math.pi / (2 * _ZEROS)).square() * cut / self.old
        self.register_buffer("taps", taps[:, None].to(device, torch.float32), persistent=False)

    def _apply(self, fn, recurse: bool = True) -> "Resample":
        super()._apply(fn, recurse)
        if self.taps.dtype != torch.float32:
            self._make_filter(self.taps.device)
        return self

    def forward(self, waveform: Tensor) -> Tensor:
        if self.old == self.new:
            return waveform.float()
        with torch.autocast(waveform.device.type, enabled=False):
            x = F.pad(waveform.float()[:, None], (self.reach, self.reach + self.old))
            x = F.conv1d(x, self.taps, stride=self.old)  # (B, new, steps)
        return x.mT.flatten(1)[:, : self.samples(waveform.shape[1])]

    def samples(self, samples: int) -> int:
        """Samples that come out of `samples`."""
        return -(-samples * self.new // self.old)
