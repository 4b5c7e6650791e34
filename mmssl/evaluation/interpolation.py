"""The best that interpolation can do: masked pixels filled in from the visible ones alone.

A masked model has to beat these before its reconstructions mean anything. Each filler is
`filler(images, visible) -> images` with images float64 (B, C, H, W) and visible bool (B, H, W); it never reads a hidden
pixel, and visible pixels come back unchanged.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy import ndimage, sparse
from scipy.interpolate import griddata
from scipy.sparse.linalg import splu
from torch import Tensor

Filler = Callable[[Tensor, Tensor], Tensor]


def paste(images: Tensor, filled: Tensor, visible: Tensor) -> Tensor:
    """Visible pixels from `images`, the others from `filled`."""
    return torch.where(visible[:, None], images, filled)


def mean_color(images: Tensor, visible: Tensor) -> Tensor:
    """Every hidden pixel is the mean colour of the image's visible ones (mid grey where none is visible)."""
    weight = visible[:, None].to(images.dtype)
    count = weight.sum((2, 3), keepdim=True)
    mean = torch.where(visible[:, None], images, 0).sum((2, 3), keepdim=True) / count.clamp_min(1)
    return paste(images, torch.where(count > 0, mean, 0.5).expand_as(images), visible)


def nearest(images: Tensor, visible: Tensor) -> Tensor:
    """Every hidden pixel is the nearest visible pixel of its image."""
    filled = mean_color(images, visible)
    for i in range(len(images)):
        if visible[i].any():
            places = ndimage.distance_transform_edt(~visible[i].numpy(), return_distances=False, return_indices=True)
            rows, columns = torch.from_numpy(places).long()
            filled[i] = images[i][:, rows, columns]
    return paste(images, filled, visible)


def gaussian(images: Tensor, visible: Tensor, sigma: float | tuple[float, float]) -> Tensor:
    """Normalised convolution (Knutsson and Westin 1993): the visible pixels' mean with Gaussian weights of distance.

    `sigma` is in pixels, or one for each axis (down, across).
    """
    sigmas = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    down, across = (_gaussian_matrix(n, s) for n, s in zip(images.shape[2:], sigmas, strict=True))
    weight = down @ visible[:, None].to(images.dtype) @ across  # (B, 1, H, W)
    blurred = down @ torch.where(visible[:, None], images, 0) @ across
    filled = torch.where(weight > 1e-12, blurred / weight.clamp_min(1e-12), mean_color(images, visible))
    return paste(images, filled, visible)


def _gaussian_matrix(n: int, sigma: float) -> Tensor:
    place = torch.arange(n, dtype=torch.float64)
    return (-(place[:, None] - place[None, :]).square() / (2 * sigma**2)).exp()  # symmetric (n, n)


def inverse_distance(images: Tensor, visible: Tensor, power: float) -> Tensor:
    """Shepard's (1968) method: the visible pixels' mean with weights distance^-power, as one Fourier convolution."""
    height, width = images.shape[2:]
    rows = torch.fft.fftfreq(2 * height, 1 / (2 * height), dtype=torch.float64)  # 0, 1, .., -2, -1
    columns = torch.fft.fftfreq(2 * width, 1 / (2 * width), dtype=torch.float64)
    distance = (rows[:, None].square() + columns[None, :].square()).sqrt()
    kernel = torch.fft.rfft2(distance.clamp_min(1) ** -power)  # distance 0 is a visible pixel, which is pasted
    size = (2 * height, 2 * width)  # padding to twice the size, so that nothing wraps around
    convolve = lambda x: torch.fft.irfft2(torch.fft.rfft2(x, s=size) * kernel, s=size)[..., :height, :width]  # noqa: E731
    weight = convolve(visible[:, None].to(images.dtype))
    filled = convolve(torch.where(visible[:, None], images, 0)) / weight.clamp_min(1e-12)
    return paste(images, torch.where(weight > 1e-9, filled, mean_color(images, visible)), visible)


def harmonic(images: Tensor, visible: Tensor) -> Tensor:
    """Laplace inpainting: each hidden pixel is the mean of its neighbours, solved exactly; mirrored at the border."""
    filled = mean_color(images, visible)
    neighbours = _neighbour_graph(*images.shape[2:])
    degree = np.asarray(neighbours.sum(1)).ravel()
    for i in range(len(images)):
        known = visible[i].numpy().ravel()
        if not known.any() or known.all():
            continue
        pixels = images[i].flatten(1).numpy().T  # (H * W, C)
        hidden = np.flatnonzero(~known)
        laplacian = sparse.diags(degree[hidden]) - neighbours[hidden][:, hidden]
        border = neighbours[hidden][:, np.flatnonzero(known)] @ pixels[known]
        solution = splu(laplacian.tocsc()).solve(np.ascontiguousarray(border))
        filled[i].flatten(1)[:, torch.from_numpy(hidden)] = torch.from_numpy(solution.T)
    return paste(images, filled, visible)


def _neighbour_graph(height: int, width: int) -> sparse.csr_matrix:
    """Adjacency (H * W, H * W) of pixels that share an edge."""
    place = np.arange(height * width).reshape(height, width)
    pairs = np.concatenate(
        [np.stack([place[:, :-1].ravel(), place[:, 1:].ravel()]), np.stack([place[:-1].ravel(), place[1:].ravel()])],
        axis=1,
    )
    both = np.concatenate([pairs, pairs[::-1]], axis=1)
    return sparse.csr_matrix((np.ones(both.shape[1]), (both[0], both[1])), shape=(place.size, place.size))


def linear(images: Tensor, visible: Tensor) -> Tensor:
    """Linear on Delaunay triangles of the visible pixels; outside their hull the nearest pixel."""
    filled = nearest(images, visible)
    for i in range(len(images)):
        known, hidden = np.argwhere(visible[i].numpy()), np.argwhere(~visible[i].numpy())
        if len(hidden) == 0 or len(known) < 3 or np.ptp(known, axis=0).min() == 0:  # nothing to do, or all on one line
            continue
        values = griddata(known, images[i][:, visible[i]].numpy().T, hidden, method="linear")  # (hidden, C)
        inside = ~np.isnan(values[:, 0])
        rows, columns = torch.from_numpy(hidden[inside]).T
        filled[i][:, rows, columns] = torch.from_numpy(values[inside].T)
    return paste(images, filled, visible)


def patch_fillers(patch: int) -> dict[str, Filler]:
    """Every filler by name; those with a bandwidth are given several that suit a patch of so many pixels."""
    fillers: dict[str, Filler] = {"mean_color": mean_color, "nearest": nearest, "harmonic": harmonic, "linear": linear}
    for share in (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.5):
        fillers[f"gaussian@{share * patch:g}"] = partial(gaussian, sigma=share * patch)
    for power in (2.0, 3.0, 4.0, 6.0):
        fillers[f"inverse_distance@{power:g}"] = partial(inverse_distance, power=power)
    return fillers


def tune(fillers: dict[str, Filler], images: Tensor, visible: Tensor) -> dict[str, Filler]:
    """The best bandwidth of each family (the word in front of `@`) on training images, by hidden squared error.

    Args:
        images: float64 (B, C, H, W) in [0, 1]; visible: bool (B, H, W).

    Returns:
        family -> filler.
    """
    hidden = (~visible)[:, None].expand_as(images)
    best: dict[str, tuple[float, Filler]] = {}
    for name, filler in fillers.items():
        family, _, setting = name.partition("@")
        error = (filler(images, visible) - images)[hidden].square().mean().item() if setting else 0.0
        if family not in best or error < best[family][0]:
            best[family] = (error, filler)
    return {family: filler for family, (_, filler) in best.items()}
