"""Pictures of what a pretrained method does, as arrays in the run's `figures/`, for the report."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.loading import DataConfig
from mmssl.errors import MmsslError
from mmssl.methods.base import Method

_GREY = 0.5


@torch.no_grad()
def save_pictures(method: Method, data: DataConfig, folder: Path, count: int = 8) -> None:
    """Write `reconstruction.npz` (original, masked, reconstructed: uint8 (n, H, W, 3)) and `features.npz` (image, and
    patch features `tokens` and `random`, (n, h, w, D), of the encoder and of a fresh one) of held-out images.

    A method without reconstruction, or one that does not read images, gets the pictures that it can have.
    """
    batch = _some_samples(data, count)
    if "image" not in batch or set(method.encoder.modalities) != {"image"}:
        return
    folder.mkdir(parents=True, exist_ok=True)
    original = _pixels(_floats(batch["image"]))
    with contextlib.suppress(MmsslError):  # not every method has something to show
        _save(folder / "reconstruction.npz", original=original, **_reconstruction(method, batch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = type(method.encoder)(method.encoder.config).eval()
    tokens, random = (encoder(batch).map("image").float().numpy() for encoder in (method.encoder, fresh))
    _save(folder / "features.npz", image=original, tokens=tokens, random=random)


def _some_samples(data: DataConfig, count: int) -> dict[str, Tensor]:
    """`count` samples spread over the held-out part, or over the training part where nothing is held out."""
    try:
        dataset = data.open(split="test")
    except MmsslError:
        dataset = data.open()
    if len(dataset) == 0:
        dataset = data.open()
    places = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long()
    return dataset.fetch(places)


def _reconstruction(method: Method, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
    found = method.reconstruct(batch)
    height, width = batch["image"].shape[-2:]
    rows, columns = method.encoder.grids["image"]
    hidden = found["mask"].view(-1, 1, rows, columns)  # (n, 1, h, w)
    hidden = hidden.repeat_interleave(height // rows, 2).repeat_interleave(width // columns, 3)  # (n, 1, H, W)
    masked = torch.where(hidden, torch.tensor(_GREY), _floats(batch["image"]))
    return {"masked": _pixels(masked), "reconstructed": _pixels(found["prediction"])}


def _floats(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image


def _pixels(image: Tensor) -> np.ndarray:
    """(n, 3, H, W) in [0, 1] -> uint8 (n, H, W, 3)."""
    return (image.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _save(path: Path, **arrays: Any) -> None:
    np.savez_compressed(path, **arrays)
