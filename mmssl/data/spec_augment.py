"""SpecAugment (Park et al. 2019): a band of pitches and a stretch of time of each spectrogram are hidden."""

import torch
from torch import Tensor

from mmssl.data.transforms import SPEC_STREAM
from mmssl.errors import MmsslError
from mmssl.keys import uniform


class SpecAugment:
    """One band of each kind in every spectrogram, of a width and at a place drawn from the sample's key.

    `mask(spectrogram, keys)` takes raw log-mel (B, 1, T, M) and int64 keys (B,) and gives a masked copy. Audio-MAE's
    code hides on raw values, before they are normalised and after they are padded to T frames, and writes 0 there. That
    is not the mean of the data: normalised it is -mean / (2 std), 0.47 on AudioSet.

    Args:
        freq: mel bins that a band may have, this number excluded; 0 for none. Audio-MAE: 48.
        time: frames that a stretch may have, this number excluded; 0 for none. Audio-MAE: 192.
        value: raw log-mel value of what is hidden.
    """

    def __init__(self, freq: int = 48, time: int = 192, value: float = 0.0):
        if freq < 0 or time < 0:
            raise MmsslError(f"freq and time of SpecAugment must be 0 or more, got {freq} and {time}.")
        self.freq, self.time, self.value = freq, time, value

    def __call__(self, spectrogram: Tensor, keys: Tensor) -> Tensor:
        if spectrogram.dim() != 4:
            raise MmsslError(
                f"SpecAugment takes spectrograms (batch, 1, frames, mel bins), got {tuple(spectrogram.shape)}; compute "
                "them first, with the tokenizer's spectrogram()."
            )
        frames, bins = spectrogram.shape[-2:]
        draws = uniform(keys, 4, SPEC_STREAM)  # (B, 4)
        hidden = _band(bins, self.freq, draws[:, 0], draws[:, 1])[:, None, None, :]
        hidden = hidden | _band(frames, self.time, draws[:, 2], draws[:, 3])[:, None, :, None]
        return torch.where(hidden, self.value, spectrogram)


def _band(n: int, widest: int, width: Tensor, place: Tensor) -> Tensor:
    """bool (B, n): a band as torchaudio draws it, of a width in [0, widest) at a place where it fits."""
    wide = width * widest
    begin = (place * (n - wide)).long()[:, None]
    places = torch.arange(n, device=width.device)
    return (begin <= places) & (places < begin + wide.long()[:, None])
