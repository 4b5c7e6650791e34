"""Losses: pure functions of tensors. A loss is a pair (sum, count), so that uneven batches weigh right when joined."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_PIECE = 2**16  # values of a target made at once on a CPU: they stay in the cache from one pass to the next


@torch.no_grad()
def norm_pix_target(patches: Tensor, per_channel: bool = False, channels: int = 3) -> Tensor:
    """Patches (..., P) standardised each by itself: MAE's norm-pix target, a constant without gradient.

    MAE: over all P values, (t - mean) / sqrt(var + 1e-6). With `per_channel` (VideoMAE): over the values of each
    channel (channel fastest in a patch), (t - mean) / (sqrt(var) + 1e-6). The variance is the unbiased one in both.
    """
    if per_channel:
        return norm_pix_channels(patches.unflatten(-1, (-1, channels)).mT)
    return _by_pieces(_norm_pix, patches, 1)


@torch.no_grad()
def norm_pix_channels(pixels: Tensor) -> Tensor:
    """The same `per_channel`, of patches (..., C, P / C) with the channel slowest, uint8 or float in [0, 1].

    Returns float32 (..., P), channel fastest.
    """
    return _by_pieces(_norm_pix_channels, pixels, 2)


def _norm_pix(patches: Tensor) -> Tensor:
    _, centred, var = _moments(patches.float())
    return centred / (var + 1e-6).sqrt()


def _norm_pix_channels(pixels: Tensor) -> Tensor:
    unit = 255 if pixels.dtype == torch.uint8 else 1
    _, centred, var = _moments(pixels.float().contiguous())
    return (centred / (var.sqrt() + 1e-6 * unit)).mT.flatten(-2)


def _moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (..., 1), values less their mean (..., n), and unbiased variance (..., 1).

    Measured on a CPU, float32: torch.var_mean takes 6.6 ns a value, these three passes 0.9.
    """
    mean = values.mean(dim=-1, keepdim=True)
    centred = values - mean
    return mean, centred, centred.square().sum(dim=-1, keepdim=True) / (values.shape[-1] - 1)


def _by_pieces(function: Callable[[Tensor], Tensor], x: Tensor, axes: int) -> Tensor:
    """`function` of x, which works along the last `axes` axes; on a CPU a few rows at a time."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.numel() <= _PIECE:
        return function(x)
    rows, out = x.flatten(0, -1 - axes), torch.empty(x.numel(), dtype=torch.float32)
    out = out.view(len(rows), -1)  # (rows, P)
    at_once = max(1, _PIECE // out.shape[1])
    for piece, place in zip(rows.split(at_once), out.split(at_once), strict=True):
        place.copy_(function(piece))
    return out.view(*x.shape[:-axes], -1)


def patch_statistics(patches: Tensor, per_channel: bool = False, channels: int = 3) -> tuple[Tensor, Tensor]:
    """What `norm_pix_target` subtracts and divides by: mean and scale, each (..., 1), or (..., channels)."""
    if not per_channel:
        mean, _, var = _moments(patches.float())
        return mean, (var + 1e-6).sqrt()
    mean, _, var = _moments(patches.float().unflatten(-1, (-1, channels)).mT)
    return mean[..., 0], var[..., 0].sqrt() + 1e-6


def undo_norm_pix(target: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Inverse of `norm_pix_target` under the statistics (..., 1) or (..., channels) of each patch."""
    pixels = target.unflatten(-1, (-1, mean.shape[-1]))  # (..., P / channels, channels)
    return (pixels * scale[..., None, :] + mean[..., None, :]).flatten(-2)


def masked_mse(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean squared error of each token, summed over the tokens that count.

    Args:
        prediction: (B, M, P), at the masked tokens.
        target: (B, M, P).
        valid: bool (B, M), True = the token counts; None = all do.

    Returns:
        sum over tokens of the mean over P, and the number of tokens; float32 scalars.
    """
    prediction, target = prediction.float(), target.float()
    if valid is None:
        total = F.mse_loss(prediction, target, reduction="sum") / target.shape[-1]
        return total, torch.full((), target.shape[:-1].numel(), dtype=torch.float32, device=target.device)
    error = F.mse_loss(prediction, target, reduction="none").mean(dim=-1)  # (B, M)
    return (error * valid).sum(), valid.sum().float()


def info_nce(
    queries: Tensor, keys: Tensor, scale: Tensor, first: int = 0, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding each query's own key among all of them (van den Oord et al. 2018, arXiv 1807.03748).

    Computed in float32, whatever the inputs are and under autocast too.

    Args:
        queries: (B, E), of unit length.
        keys: (M, E), of unit length; the key of query b is key first + b.
        scale: scalar, what the cosines are multiplied with: one over the temperature.
        valid: bool (M,), False for pairs that are not there: they are neither positives nor negatives; None = all are.

    Returns:
        sum over the valid queries, and their number; float32 scalars.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = scale.float() * (queries.float() @ keys.float().mT)  # (B, M)
    return _find_own(logits, first, valid)


def _find_own(logits: Tensor, first: int, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits (B, M) with the column first + b for row b, over the pairs that are there."""
    place = torch.arange(first, first + len(logits), device=logits.device)
    if valid is None:
        count = torch.full((), len(logits), dtype=torch.float32, device=logits.device)
        return F.cross_entropy(logits, place, reduction="sum"), count
    logits = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)  # finite: without any pair nothing is NaN
    own = valid[place]
    loss = F.cross_entropy(logits, place, reduction="none")  # (B,)
    return torch.where(own, loss, 0.0).sum(), own.sum().float()


def bilinear_logits(queries: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
    """CURL's logits q W k^T (Laskin et al. 2020, arXiv 2004.04136), each row less its own maximum: float32 (B, M).

    The maximum is taken away for the range of exp alone: it changes neither cross-entropy nor gradient.

    Args:
        queries: (B, E), of any length.
        keys: (M, E).
        weight: (E, E).
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries.float() @ (weight.float() @ keys.float().mT)  # (B, M)
    return logits - logits.detach().amax(1, keepdim=True)


def bilinear_info_nce(
    queries: Tensor, keys: Tensor, weight: Tensor, first: int = 0, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `info_nce`, by `bilinear_logits`: without a temperature, and vectors have any length."""
    return _find_own(bilinear_logits(queries, keys, weight), first, valid)


def mean_over_samples(error: Tensor, counted: Tensor) -> Tensor:
    """Mean over what counts of each sample, then over the samples of which anything does; 0 where nothing does.

    Args:
        error: (B, ...).
        counted: bool, broadcast to `error`, True = the value counts.
    """
    counted = counted.expand_as(error).flatten(1)
    count = counted.sum(1)  # (B,)
    mean = (error.float().flatten(1) * counted).sum(1) / count.clamp(min=1)
    return mean.sum() / (count > 0).sum().clamp(min=1)


def one_against_others(positive: Tensor, negatives: Tensor, eps: float = 1e-8) -> Tensor:
    """R3M's -log(eps + e^p / (eps + e^p + sum of e^n)) of each row (Nair et al. 2022, arXiv 2203.12601): float32 (B,).

    Computed by logarithms, so that no exponential overflows and none that is small loses its gradient.

    Args:
        positive: (B,), of any range.
        negatives: (B, N); -inf for one that is not there.
    """
    positive, floor = positive.float()[:, None], math.log(eps)
    logits = torch.cat([positive, negatives.float(), torch.full_like(positive, floor)], dim=1)
    share = positive[:, 0] - logits.logsumexp(1)
    return -torch.logaddexp(share, torch.full_like(share, floor))


def time_contrast(
    to_first: Tensor, to_last: Tensor, apart: Tensor, others_first: Tensor, others_last: Tensor
) -> Tensor:
    """R3M's time-contrastive loss: of three frames in their order neighbours are more alike than the outer two: (B,).

    Args:
        to_first: (B,) similarity of the middle frame and the first.
        to_last: (B,) of the last frame and the middle.
        apart: (B,) of the last frame and the first.
        others_first: (B, K) of the first frame and that of other clips; -inf for one that is not there.
        others_last: (B, K) of the last frame and that of other clips.
    """
    late = one_against_others(to_last, torch.cat([apart[:, None], others_last], dim=1))
    early = one_against_others(to_first, torch.cat([apart[:, None], others_first], dim=1))
    return (late + early) / 2
