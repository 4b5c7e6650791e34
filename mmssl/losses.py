"""Losses: pure functions of tensors. A loss is a pair (sum, count), so that uneven batches weigh right when joined."""

import torch
from torch import Tensor


def norm_pix_target(patches: Tensor, per_channel: bool = False, channels: int = 3) -> Tensor:
    """Patches (..., P) standardised each by itself: MAE's norm-pix target.

    MAE: over all P values, (t - mean) / sqrt(var + 1e-6). With `per_channel` (VideoMAE): over the values of each
    channel (channel fastest in a patch), (t - mean) / (sqrt(var) + 1e-6). The variance is the unbiased one in both.
    """
    patches = patches.float()
    if not per_channel:
        var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (var + 1e-6).sqrt()
    pixels = patches.unflatten(-1, (-1, channels))  # (..., P / channels, channels)
    var, mean = torch.var_mean(pixels, dim=-2, keepdim=True)
    return ((pixels - mean) / (var.sqrt() + 1e-6)).flatten(-2)


def masked_mse(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean squared error of each token, summed over the tokens that count.

    Args:
        prediction: (B, M, P), at the masked tokens.
        target: (B, M, P).
        valid: bool (B, M), True = the token counts; None = all do.

    Returns:
        sum over tokens of the mean over P, and the number of tokens; float32 scalars.
    """
    error = (prediction.float() - target.float()).square().mean(dim=-1)  # (B, M)
    if valid is None:
        return error.sum(), torch.full((), error.numel(), dtype=torch.float32, device=error.device)
    return (error * valid).sum(), valid.sum().float()
