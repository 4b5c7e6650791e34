"""The best that interpolation in time and frequency can do: hidden values of a spectrogram from the visible ones alone.

As in `interpolation.py`: a filler is `filler(levels, visible) -> levels` with levels float64 (B, 1, T, M) and visible
bool (B, T, M); it never reads a hidden value, and visible ones come back unchanged.
"""

from functools import partial

import numpy as np
from torch import Tensor

from mmssl.evaluation.interpolation import Filler, gaussian, harmonic, inverse_distance, mean_color, nearest, paste


def linear_in_time(levels: Tensor, visible: Tensor) -> Tensor:
    """Every mel bin by itself: linear between its visible frames, constant before and after them.

    A bin of which nothing is visible gets the mean of the clip.
    """
    filled = mean_color(levels, visible)
    for clip, seen in zip(filled[:, 0].mT.numpy(), visible.mT.numpy(), strict=True):  # (M, T) views of `filled`
        for line, known in zip(clip, seen, strict=True):
            places = np.flatnonzero(known)
            if len(places):
                line[:] = np.interp(np.arange(len(line)), places, line[places])
    return paste(levels, filled, visible)


def linear_in_frequency(levels: Tensor, visible: Tensor) -> Tensor:
    """Every frame by itself: linear between its visible mel bins; a frame without one gets the mean of the clip."""
    return linear_in_time(levels.mT, visible.mT).mT


def spectrogram_fillers(patch: tuple[int, int]) -> dict[str, Filler]:
    """Every filler by name; those with settings, behind an `@`, are given several that suit a patch.

    Args:
        patch: frames and mel bins of a patch.
    """
    fillers: dict[str, Filler] = {
        "mean_level": mean_color,
        "nearest": nearest,
        "linear_in_time": linear_in_time,
        "linear_in_frequency": linear_in_frequency,
        "harmonic": harmonic,
    }
    for time in (0.25, 0.5, 1.0, 2.0, 6.0):
        for mel in (0.05, 0.15, 0.5, 1.0):  # sound often lasts and seldom fills its neighbouring bins
            sigma = (time * patch[0], mel * patch[1])
            fillers[f"gaussian@{time:g},{mel:g}"] = partial(gaussian, sigma=sigma)
    for power in (2.0, 3.0, 4.0, 6.0):
        fillers[f"inverse_distance@{power:g}"] = partial(inverse_distance, power=power)
    return fillers
