"""Does a masked video model reconstruct better than interpolation in space and time, or than standing still?

As `reconstruction.py` does for images: masked patches of held-out clips are filled in by the model and by every filler
of `clip_interpolation.py`, from the same visible pixels. Two scores: squared error in pixels of [0, 1], and the share
of the variance of standardised patches (norm-pix) that is explained. A model of norm-pix targets does not predict a
patch's mean and contrast, and never reads them from masked patches: the contrast is the method's own estimate, and so
is the mean in "model_own_statistics"; for "model" the mean is that of the filler which did best on training clips.

For pairs of frames (SiamMAE) the past is visible, the future is judged, and the baseline to beat is "copy_past".
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.evaluation.clip_interpolation import clip_fillers
from mmssl.evaluation.features import device_of, in_order
from mmssl.evaluation.frames import is_video
from mmssl.evaluation.interpolation import paste, tune
from mmssl.evaluation.reconstruction import Reconstruction, spread_evenly
from mmssl.keys import sample_keys
from mmssl.losses import norm_pix_target


class Lattice(NamedTuple):
    """The patches of a reconstruction (B, C, T, H, W): those of its frames from `first` on."""

    first: int  # 1 for a pair, whose first frame is the past
    block: tuple[int, int, int]  # frames, rows and columns of a patch
    grid: tuple[int, int, int]

    def patches(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, N, P), channel fastest."""
        (t, h, w), (u, p, q) = self.grid, self.block
        x = clips[:, :, self.first :].reshape(len(clips), -1, t, u, h, p, w, q)
        return x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(len(clips), t * h * w, -1)

    def clips(self, patches: Tensor, clips: Tensor) -> Tensor:
        """`clips` with other patches: the inverse of `patches`."""
        (t, h, w), (u, p, q) = self.grid, self.block
        x = patches.reshape(len(patches), t, h, w, u, p, q, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return torch.cat([clips[:, :, : self.first], x.reshape(len(clips), -1, t * u, h * p, w * q)], dim=2)

    def visible(self, mask: Tensor, frames: int) -> Tensor:
        """Mask of patches (B, N) -> which pixels are visible, bool (B, T, H, W)."""
        hidden = mask.unflatten(1, self.grid)
        for axis, size in enumerate(self.block, start=1):
            hidden = hidden.repeat_interleave(size, axis)
        past = hidden.new_zeros(len(mask), frames - hidden.shape[1], *hidden.shape[2:])
        return ~torch.cat([past, hidden], dim=1)


def lattice_of(grid: tuple[int, ...], shape: tuple[int, ...]) -> Lattice:
    """The lattice of a reconstruction of `shape` (B, T, C, H, W) by an encoder whose tokens are a `grid`."""
    frames, (height, width) = shape[1], shape[-2:]
    first = frames - 1 if len(grid) == 2 else 0
    grid = (1, *grid) if len(grid) == 2 else grid
    lengths = (frames - first, height, width)
    return Lattice(first, tuple(n // g for n, g in zip(lengths, grid, strict=True)), grid)


class _Filled(NamedTuple):
    """Clips with the model's filling and what hides what; float32 on the CPU."""

    clips: Tensor  # (B, C, T, H, W) in [0, 1]
    model: Tensor  # the same, masked patches filled in
    mask: Tensor  # bool (B, N), True = masked
    visible: Tensor  # bool (B, T, H, W)
    guess: Tensor  # (B, N, P) in the space of the loss
    answer: Tensor  # (B, N, P) in the space of the loss
    own: Tensor  # the model's filling with its own guess of each patch's mean

    def part(self, rows: slice | Tensor) -> "_Filled":
        return _Filled(*(x[rows] for x in self))


_Contestant = Callable[[_Filled], Tensor]  # -> clips (B, C, T, H, W) with the hidden pixels filled in


def judge_clips(
    method: nn.Module,
    train: Any,
    test: Any,
    *,
    clips: int = 48,
    pictures: int = 4,
    batch_size: int = 64,
    seed: int = 0,
) -> Reconstruction:
    """Compare a masked video model with interpolation on held-out clips.

    Args:
        method: a method whose `reconstruct` gives clips, or pairs of a past and a future frame.
        train: dataset on which settings are tuned; a third of `clips` are used, spread evenly.
        test: held-out dataset; `clips` of it are used.
        pictures: number of test clips whose pictures are returned: uint8 (n, T, H, W, 3).
        batch_size: frames in one pass of the model; changes the time, never the score.
        seed: of the masks.

    Raises:
        MmsslError: a method that does not reconstruct clips, or empty datasets.
    """
    if not is_video(test.modality):
        raise MmsslError(f"clips are needed here, and {test.name!r} gives {test.modality!r}.")
    tuning, lattice = _fill(method, spread_evenly(train, max(1, clips // 3)), batch_size, seed)
    held_out, _ = _fill(method, spread_evenly(test, clips), batch_size, seed)
    fillers = tune(clip_fillers(lattice.block, pair=lattice.first > 0), tuning.clips, tuning.visible)
    contestants: dict[str, _Contestant] = {name: partial(_interpolate, filler) for name, filler in fillers.items()}
    contestants["model"] = lambda data: data.model
    judge = _Judge(lattice, getattr(method.config, "norm_pix", False), _space(method))
    if judge.norm_pix:
        usual = min(fillers, key=lambda name: judge.mse(contestants[name], tuning))
        tuning, held_out = (judge.recentred(data, contestants[usual]) for data in (tuning, held_out))
        contestants["model_own_statistics"] = lambda data: data.own
    mean_frame = tuning.clips.mean((0, 2), keepdim=True)
    contestants["mean_frame"] = lambda data: paste(data.clips, mean_frame.expand_as(data.clips), data.visible)

    mse = {name: judge.mse(fill, held_out) for name, fill in contestants.items()}
    explained = {name: judge.explained(name, fill, tuning, held_out) for name, fill in contestants.items()}
    best = min(fillers, key=mse.__getitem__)
    mse["best_interpolation"] = mse[best]
    explained["best_interpolation"] = max(explained[name] for name in fillers)
    shown = torch.linspace(0, len(held_out.clips) - 1, min(pictures, len(held_out.clips))).round().long()
    return Reconstruction(mse, explained, best, _pictures(held_out.part(shown), contestants[best]))


@torch.no_grad()
def _fill(method: nn.Module, dataset: Any, batch_size: int, seed: int) -> tuple[_Filled, Lattice]:
    """Run the model over a dataset with masks that depend on the seed and the sample's place alone."""
    device, was_training = device_of(method), method.training
    method.eval()
    results: list[dict[str, Tensor]] = []
    for batch in in_order(dataset, batch_size):
        keys = sample_keys(seed, 0, 0, batch["index"]).to(device)
        found = method.reconstruct({k: v.to(device) for k, v in batch.items() if is_video(k)}, keys=keys)
        wanted = ("mask", "prediction", "target", "prediction_patches", "target_patches")
        results.append({k: found[k].cpu() for k in wanted})
    method.train(was_training)
    joined = {k: torch.cat([r[k] for r in results]) for k in results[0]}
    if joined["target"].dim() != 5:
        raise MmsslError(f"the method {method.config.name!r} reconstructs images and not clips.")
    lattice = lattice_of(next(iter(method.encoder.grids.values())), joined["target"].shape)
    clips, model = (joined[k].transpose(1, 2).float() for k in ("target", "prediction"))  # (B, C, T, H, W)
    visible = lattice.visible(joined["mask"], clips.shape[2])
    model = paste(clips, model, visible)
    guess, answer = joined["prediction_patches"].float(), joined["target_patches"].float()
    return _Filled(clips, model, joined["mask"], visible, guess, answer, model), lattice


def _space(method: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C, 1, 1, 1) with which the method's tokenizer normalises pixels."""
    tokenizer = next(iter(method.encoder.tokenizers.values()))
    return tokenizer.mean.cpu().view(-1, 1, 1, 1), tokenizer.std.cpu().view(-1, 1, 1, 1)


class _Judge:
    """Scores of fillings on masked patches, a few clips at a time."""

    def __init__(self, lattice: Lattice, norm_pix: bool, space: tuple[Tensor, Tensor]):
        self.lattice, self.norm_pix = lattice, norm_pix
        self.mean, self.std = space

    def mse(self, fill: _Contestant, data: _Filled) -> float:
        """Mean squared error of the hidden pixels."""
        total, count = 0.0, 0
        for part in _pieces(data):
            hidden = (~part.visible)[:, None].expand_as(part.clips)
            error = (fill(part) - part.clips)[hidden].double()
            total, count = total + error.square().sum().item(), count + error.numel()
        return total / max(count, 1)

    def explained(self, name: str, fill: _Contestant, tuning: _Filled, test: _Filled) -> float:
        """Share of the variance of standardised masked patches that a filling explains, scaled as suits training."""
        own = self.norm_pix and name.startswith("model")  # what the decoder says, before mean and contrast
        product, square, _ = self._moments(fill, tuning, own)
        scale = product / max(square, 1e-12)
        product, square, answer = self._moments(fill, test, own)
        return 1 - (scale**2 * square - 2 * scale * product + answer) / max(answer, 1e-12)

    def _moments(self, fill: _Contestant, data: _Filled, own: bool) -> tuple[float, float, float]:
        """Sums over masked patches of guess * answer, guess squared, answer squared."""
        sums = torch.zeros(3, dtype=torch.float64)
        per_channel = self.per_channel(data)
        for part in _pieces(data):
            answer = part.answer if self.norm_pix else self._standardised(part.clips, per_channel)
            guess = part.guess if own else self._standardised(fill(part), per_channel)
            guess, answer = guess[part.mask].double(), answer[part.mask].double()
            sums += torch.stack([(guess * answer).sum(), guess.square().sum(), answer.square().sum()])
        return tuple(sums.tolist())

    def _standardised(self, clips: Tensor, per_channel: bool) -> Tensor:
        return norm_pix_target(self.lattice.patches((clips - self.mean) / self.std), per_channel, clips.shape[1])

    def per_channel(self, data: _Filled) -> bool:
        """Whether the method standardises each channel by itself (VideoMAE), or all of a patch together (MAE)."""
        colour = data.answer.unflatten(-1, (-1, data.clips.shape[1])).mean(-2)  # (B, N, C), 0 if each by itself
        return self.norm_pix and colour.abs().max().item() < 1e-3

    def recentred(self, data: _Filled, fill: _Contestant) -> _Filled:
        """The model's filling with the mean of each masked patch taken from another filling."""
        per_channel, pieces = self.per_channel(data), []
        for part in _pieces(data):
            model, wanted = (self.lattice.patches((x - self.mean) / self.std) for x in (part.model, fill(part)))
            shift = (wanted - model).unflatten(-1, (-1, part.clips.shape[1]))  # (B, N, P / C, C)
            shift = shift.mean(2 if per_channel else (2, 3), keepdim=True).expand_as(shift).flatten(2)
            moved = self.lattice.clips(model + shift, part.model) * self.std + self.mean
            pieces.append(paste(part.clips, moved.clamp(0, 1), part.visible))
        return data._replace(own=data.model, model=torch.cat(pieces))


def _pieces(data: _Filled, at_once: int = 4) -> list[_Filled]:
    return [data.part(slice(i, i + at_once)) for i in range(0, len(data.clips), at_once)]


def _interpolate(filler: Callable[[Tensor, Tensor], Tensor], data: _Filled) -> Tensor:
    return filler(data.clips, data.visible)


def _pictures(data: _Filled, interpolate: _Contestant) -> dict[str, np.ndarray]:
    """uint8 (n, T, H, W, 3) arrays for a figure: original, masked (grey), reconstructed, interpolated."""
    shown = {
        "original": data.clips,
        "masked": paste(data.clips, torch.full_like(data.clips, 0.5), data.visible),
        "reconstructed": data.model,
        "interpolated": interpolate(data),
    }
    return {name: (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 4, 1).numpy() for name, x in shown.items()}
