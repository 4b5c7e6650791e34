"""The best that interpolation in space and time can do: masked pixels of a clip filled in from the visible ones alone.

As in `interpolation.py`, but a filler is `filler(clips, visible) -> clips` with clips float32 (B, C, T, H, W) and
visible bool (B, T, H, W). Distances are in pixels; `pace` says how many pixels away the next frame is: a large one
looks across the frame, a small one through time. What none of them can do is follow motion.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from mmssl.evaluation.interpolation import paste

ClipFiller = Callable[[Tensor, Tensor], Tensor]
ALONE = 1e4  # a pace at which every frame is filled from itself


def mean_color(clips: Tensor, visible: Tensor) -> Tensor:
    """Every hidden pixel is the mean colour of the clip's visible ones (mid grey where none is visible)."""
    weight = visible[:, None].to(clips.dtype)
    count = weight.sum((2, 3, 4), keepdim=True)
    mean = torch.where(visible[:, None], clips, 0).sum((2, 3, 4), keepdim=True) / count.clamp_min(1)
    return paste(clips, torch.where(count > 0, mean, 0.5).expand_as(clips), visible)


def copy_past(clips: Tensor, visible: Tensor) -> Tensor:
    """Every hidden pixel is the one at its place in the first frame: nothing has moved. For pairs of frames."""
    return paste(clips, clips[:, :, :1].expand_as(clips), visible)


def nearest(clips: Tensor, visible: Tensor, pace: float) -> Tensor:
    """Every hidden pixel is the nearest visible pixel of its clip."""
    filled = mean_color(clips, visible)
    for i in range(len(clips)):
        if visible[i].any():
            hidden = ~visible[i].numpy()
            places = ndimage.distance_transform_edt(hidden, (pace, 1, 1), return_distances=False, return_indices=True)
            time, row, column = torch.from_numpy(places).long()
            filled[i] = clips[i][:, time, row, column]
    return paste(clips, filled, visible)


def gaussian(clips: Tensor, visible: Tensor, sigma: float, pace: float) -> Tensor:
    """Normalised convolution (Knutsson and Westin 1993): the visible pixels' mean with Gaussian weights of distance."""
    weight = _blurred(visible[:, None].to(clips.dtype), sigma, pace)  # (B, 1, T, H, W)
    total = _blurred(torch.where(visible[:, None], clips, 0), sigma, pace)
    filled = torch.where(weight > 1e-6, total / weight.clamp_min(1e-6), mean_color(clips, visible))
    return paste(clips, filled, visible)


def _blurred(x: Tensor, sigma: float, pace: float) -> Tensor:
    """(B, C, T, H, W) summed with Gaussian weights along each of its last three axes."""
    time, down, across = (
        _gaussian_matrix(n, s).to(x.dtype) for n, s in zip(x.shape[2:], (sigma / pace, sigma, sigma), strict=True)
    )
    x = down @ x @ across
    return torch.einsum("st,bcthw->bcshw", time, x)


def _gaussian_matrix(n: int, sigma: float) -> Tensor:
    place = torch.arange(n, dtype=torch.float64)
    return (-(place[:, None] - place[None, :]).square() / (2 * sigma**2)).exp()  # symmetric (n, n)


def inverse_distance(clips: Tensor, visible: Tensor, block: tuple[int, int, int], power: float, pace: float) -> Tensor:
    """Every hidden patch is the mean colour of the visible patches, weighted by distance ** -power (Shepard 1968).

    Args:
        block: frames, rows and columns of a patch.
    """
    colour = F.avg_pool3d(clips, block).flatten(2)  # (B, C, N)
    whole = F.avg_pool3d(visible[:, None].to(clips.dtype), block)  # (B, 1, t, h, w)
    seen = (whole == 1).flatten(1).to(clips.dtype)  # (B, N)
    steps = (pace * block[0], *block[1:])
    axes = [torch.arange(n, dtype=clips.dtype) * step for n, step in zip(whole.shape[2:], steps, strict=True)]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)  # (N, 3)
    weight = torch.cdist(place, place).clamp_min(1e-3).pow(-power)[None] * seen[:, None]  # (B, N, N)
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-30)
    filled = (colour @ weight.transpose(1, 2)).unflatten(2, whole.shape[2:])
    for axis, size in enumerate(block, start=2):
        filled = filled.repeat_interleave(size, axis)
    anything = seen.any(1).view(-1, 1, 1, 1, 1)
    return paste(clips, torch.where(anything, filled, mean_color(clips, visible)), visible)


def clip_fillers(block: tuple[int, int, int], pair: bool = False) -> dict[str, ClipFiller]:
    """Every filler by name; those with settings are given several that suit patches of this size.

    Args:
        block: frames, rows and columns of a patch.
        pair: a visible past and a masked future frame.
    """
    side = (block[1] + block[2]) / 2
    fillers: dict[str, ClipFiller] = {"mean_color": mean_color}
    if pair:
        fillers["copy_past"] = copy_past
    for pace in (0.1 * side, 0.5 * side, ALONE):
        fillers[f"nearest@{pace:g}"] = partial(nearest, pace=pace)
        for share in (0.25, 0.5, 1.0, 2.0):
            fillers[f"gaussian@{share:g},{pace:g}"] = partial(gaussian, sigma=share * side, pace=pace)
        for power in (2.0, 4.0):
            name = f"inverse_distance@{power:g},{pace:g}"
            fillers[name] = partial(inverse_distance, block=block, power=power, pace=pace)
    return fillers
