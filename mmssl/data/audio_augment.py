"""Gain and circular shift of waveforms, batched on their device, each row by draws of its own.

Exact zeros at the end of a row are padding, and stay where they are.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.data.audio_sampling import MARK
from mmssl.data.beta import beta_draw

if TYPE_CHECKING:
    from mmssl.data.transforms import Augmentation


def real_samples(x: Tensor) -> Tensor:
    """How many samples of each row of (B, 1, S) come before its zeros at the end: int64 (B, 1, 1). 0 for all zeros."""
    place = torch.arange(1, x.shape[-1] + 1, device=x.device)
    return (place * (x != 0)).amax(-1, keepdim=True)


def end_marked(x: Tensor, length: Tensor) -> Tensor:
    """(B, 1, S) with zeros behind the first `length` (B, 1, 1) samples, of which the last is not exactly 0."""
    place = torch.arange(x.shape[-1], device=x.device)
    x = torch.where(place < length, x, 0.0)
    return torch.where((place == length - 1) & (x == 0), MARK, x)


def centred(x: Tensor, length: Tensor) -> Tensor:
    """(B, 1, S) less the mean of the first `length` samples of each row; what follows is not touched."""
    mean = x.sum(-1, keepdim=True) / length.clamp(min=1)
    return torch.where(torch.arange(x.shape[-1], device=x.device) < length, x - mean, x)


def augment_sound(x: Tensor, draws: Tensor, augmentation: "Augmentation") -> Tensor:
    """Waveforms (B, 1, S), louder or softer and shifted in a circle.

    Args:
        draws: (B, 2) uniform numbers, of the gain and of the shift.
        augmentation: its `gain`, `gain_beta` and `roll`.
    """
    a, (loud, shift) = augmentation, draws[..., None, None].unbind(1)  # (B, 1, 1) each
    if a.roll:
        x = rolled(x, shift)
    if a.gain is not None:
        x = x * (a.gain[0] + (a.gain[1] - a.gain[0]) * loud)
    if a.gain_beta:
        x = x * (beta_draw(loud, a.gain_beta) + 0.5)
    return x


def rolled(x: Tensor, shift: Tensor) -> Tensor:
    """(B, 1, S) shifted in a circle by a share (B, 1, 1) in [0, 1) of each row's length without its padding."""
    length = real_samples(x)
    place = torch.arange(x.shape[-1], device=x.device)
    source = (place - (shift * length).long()) % length.clamp(min=1)
    return end_marked(x.gather(-1, torch.where(place < length, source, place)), length)
