"""Does a masked model reconstruct better than interpolation from what it could see?

Masked patches of held-out images are filled in by the model and by every filler of `interpolation.py`, from the same
visible patches. Two scores:

- squared error on masked patches in pixels of [0, 1] (lower is better). A model of norm-pix targets does not predict a
  patch's mean and contrast. They are never read from the masked patches: the contrast is estimated from the visible
  ones by the method, and the mean is that of the interpolation that did best on training images ("model"), or the
  method's own estimate ("model_own_statistics");
- in the space of the norm-pix target, the share of the variance explained, 1 - error / variance (higher is better).
  There every contestant's patches are normalised too, and scaled by one factor chosen on training images.

What has a setting (a bandwidth, that factor) is tuned on training images. "The best interpolation" is the one with the
best held-out score, so that the choice can only favour it.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.data.loading import Loader
from mmssl.errors import MmsslError
from mmssl.evaluation.features import device_of
from mmssl.evaluation.interpolation import Filler, paste, patch_fillers, tune
from mmssl.keys import sample_keys
from mmssl.losses import norm_pix_target


@dataclasses.dataclass
class Reconstruction:
    """What `judge_reconstruction` found.

    Attributes:
        mse: "model", "best_interpolation", every filler, "mean_frame" (of the training images), and for a norm-pix
            model "model_own_statistics" -> squared error on masked patches, pixels in [0, 1].
        explained: the same names -> share of the norm-pix target's variance that is explained.
        best: name of the best interpolation by `mse`.
        pictures: original, masked, reconstructed, interpolated: uint8 (n, H, W, 3), of clips (n, T, H, W, 3).
    """

    mse: dict[str, float]
    explained: dict[str, float]
    best: str
    pictures: dict[str, np.ndarray]


@dataclasses.dataclass
class _Filled:
    """Images with the model's filling and what hides what; float64 on the CPU."""

    images: Tensor  # (B, C, H, W) in [0, 1]
    model: Tensor  # (B, C, H, W) in [0, 1]
    normalised: Tensor | None  # (B, N, P) a norm-pix model's own prediction
    mask: Tensor  # bool (B, N), True = masked
    visible: Tensor  # bool (B, H, W)
    own: Tensor | None = None  # (B, C, H, W) a norm-pix model's filling with its own guess of each patch's mean

    def rows(self, count: int) -> "_Filled":
        """At most `count` images, spread evenly."""
        n = len(self.images)
        picked = torch.linspace(0, n - 1, min(count, n)).round().long()
        return _Filled(*(None if x is None else x[picked] for x in vars(self).values()))


_Contestant = Callable[[_Filled], Tensor]  # -> images (B, C, H, W) with the hidden pixels filled in


def judge_reconstruction(
    method: nn.Module,
    train: Any,
    test: Any,
    *,
    images: int = 256,
    pictures: int = 8,
    batch_size: int = 64,
    seed: int = 0,
) -> Reconstruction:
    """Compare a masked model with interpolation on held-out images.

    Args:
        method: a method with `reconstruct` and one image modality.
        train: dataset on which settings are tuned; `images` of it are used, spread evenly.
        test: held-out dataset, likewise.
        pictures: number of test images whose pictures are returned.
        batch_size: images in one pass of the model; changes the time, never the score.
        seed: of the masks.

    Raises:
        MmsslError: a method that does not reconstruct, or empty datasets.
    """
    tokenizer = dict(method.encoder.tokenizers.items()).get(test.modality)
    if tokenizer is None or len(tokenizer.grid) != 2:
        raise MmsslError(
            f"reconstruction is judged on images; this model reads {', '.join(method.encoder.modalities)}."
        )
    tuning = _fill(method, spread_evenly(train, min(images, 64)), tokenizer, batch_size, seed)
    held_out = _fill(method, spread_evenly(test, images), tokenizer, batch_size, seed)
    fillers = tune(patch_fillers(round(sum(tokenizer.config.patch_size) / 2)), tuning.images, tuning.visible)
    contestants: dict[str, _Contestant] = {name: partial(_interpolate, filler) for name, filler in fillers.items()}
    contestants["model"] = lambda data: data.model
    if held_out.normalised is not None:
        usual = min(fillers, key=lambda name: _masked_mse(contestants[name](tuning), tuning))
        for data in (tuning, held_out):
            data.own, data.model = data.model, _recentre(data.model, contestants[usual](data), data, tokenizer)
        contestants["model_own_statistics"] = lambda data: data.own
    mean_frame = _images_of(spread_evenly(train, images), batch_size, tokenizer).mean(0)
    contestants["mean_frame"] = lambda data: paste(data.images, mean_frame.expand_as(data.images), data.visible)

    mse, explained = {}, {}
    for name, fill in contestants.items():
        filled, of_model = fill(held_out), name.startswith("model")
        mse[name] = _masked_mse(filled, held_out)
        explained[name] = _explained(fill(tuning), filled, tuning, held_out, tokenizer, of_model)
    best = min(fillers, key=mse.__getitem__)
    mse["best_interpolation"] = mse[best]
    explained["best_interpolation"] = max(explained[name] for name in fillers)
    return Reconstruction(mse, explained, best, _pictures(held_out.rows(pictures), contestants[best]))


def spread_evenly(dataset: Any, count: int) -> Any:
    """`count` samples spread evenly over a dataset."""
    if len(dataset) == 0:
        raise MmsslError(f"the dataset {dataset.name!r} has no samples in this split.")
    return dataset.subset(torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().long())


def _batches(dataset: Any, batch_size: int) -> Iterator[dict[str, Tensor]]:
    return Loader(dataset, min(batch_size, len(dataset)), shuffle=False, drop_last=False).epoch(0)


@torch.no_grad()
def _fill(method: nn.Module, dataset: Any, tokenizer: nn.Module, batch_size: int, seed: int) -> _Filled:
    """Run the model over a dataset with masks that depend on the seed and the sample's place alone."""
    device, was_training = device_of(method), method.training
    method.eval()
    results: list[dict[str, Tensor]] = []
    for batch in _batches(dataset, batch_size):
        keys = sample_keys(seed, 0, 0, batch["index"]).to(device)
        inputs = {tokenizer.modality: batch[tokenizer.modality].to(device)}
        found = method.reconstruct(inputs, keys=keys)
        results.append({k: found[k].cpu() for k in ("mask", "prediction", "target", "prediction_patches")})
    method.train(was_training)
    joined = {k: torch.cat([r[k] for r in results]) for k in results[0]}
    normalised = joined["prediction_patches"].double() if getattr(method.config, "norm_pix", False) else None
    visible = ~_to_pixels(joined["mask"], tokenizer)
    target = joined["target"].double()
    return _Filled(target, paste(target, joined["prediction"].double(), visible), normalised, joined["mask"], visible)


def _to_pixels(mask: Tensor, tokenizer: nn.Module) -> Tensor:
    """Mask of patches (B, N) -> of pixels, bool (B, H, W)."""
    p, q = tokenizer.config.patch_size
    return mask.unflatten(1, tokenizer.grid).repeat_interleave(p, 1).repeat_interleave(q, 2)


def _images_of(dataset: Any, batch_size: int, tokenizer: nn.Module) -> Tensor:
    """float64 (N, C, H, W) in [0, 1]: all images of a dataset."""
    parts = [batch[tokenizer.modality] for batch in _batches(dataset, batch_size)]
    return torch.cat([x.double() / (255 if x.dtype == torch.uint8 else 1) for x in parts])


def _recentre(model: Tensor, interpolated: Tensor, data: _Filled, tokenizer: nn.Module) -> Tensor:
    """The model's filling with the mean of each masked patch taken from an interpolation.

    The mean is over all values of a patch as the norm-pix target has it, in the space of the tokenizer's pixels.
    """
    mean, std = tokenizer.mean.cpu().double(), tokenizer.std.cpu().double()
    patches, wanted = (tokenizer.patchify((x - mean) / std) for x in (model, interpolated))  # (B, N, P)
    patches = patches - patches.mean(-1, keepdim=True) + wanted.mean(-1, keepdim=True)
    return paste(data.images, (tokenizer.unpatchify(patches) * std + mean).clamp(0, 1), data.visible)


def _masked_mse(filled: Tensor, data: _Filled) -> float:
    hidden = (~data.visible)[:, None].expand_as(filled)
    return (filled - data.images)[hidden].square().mean().item()


def _explained(
    tuned: Tensor, filled: Tensor, tuning: _Filled, test: _Filled, tokenizer: nn.Module, of_model: bool
) -> float:
    """Share of the norm-pix target's variance that a filling explains on masked patches of the test images."""
    guess, answer = _normalised(tuned, tuning, tokenizer, of_model)
    scale = (guess * answer).sum() / guess.square().sum().clamp_min(1e-12)
    guess, answer = _normalised(filled, test, tokenizer, of_model)
    return (1 - (scale * guess - answer).square().sum() / answer.square().sum().clamp_min(1e-12)).item()


def _normalised(filled: Tensor, data: _Filled, tokenizer: nn.Module, of_model: bool) -> tuple[Tensor, Tensor]:
    """Guess and target (M, P) of the masked patches in norm-pix space, where a norm-pix model predicts anyway."""
    mean, std = tokenizer.mean.cpu().double(), tokenizer.std.cpu().double()
    answer = norm_pix_target(tokenizer.patchify((data.images - mean) / std)).double()
    if of_model and data.normalised is not None:
        guess = data.normalised
    else:
        guess = norm_pix_target(tokenizer.patchify((filled - mean) / std)).double()
    return guess[data.mask], answer[data.mask]


def _interpolate(filler: Filler, data: _Filled) -> Tensor:
    """A filler's images, a few at a time, since some fillers need much memory."""
    pieces = zip(data.images.split(16), data.visible.split(16), strict=True)
    return torch.cat([filler(images, visible) for images, visible in pieces])


def _pictures(data: _Filled, interpolate: _Contestant) -> dict[str, np.ndarray]:
    """uint8 (n, H, W, 3) arrays for a figure: original, masked (grey), reconstructed, interpolated."""
    shown = {
        "original": data.images,
        "masked": paste(data.images, torch.full_like(data.images, 0.5), data.visible),
        "reconstructed": data.model,
        "interpolated": interpolate(data),
    }
    return {name: (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy() for name, x in shown.items()}
