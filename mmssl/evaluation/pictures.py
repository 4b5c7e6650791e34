"""Arrays for a run's figures: what the model reconstructs, and its patch features."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmssl.errors import MmsslError
from mmssl.evaluation.frames import FrameEncoder
from mmssl.training.pictures import feature_arrays


def feature_pictures(encoder: nn.Module, random: nn.Module, dataset: Any, count: int = 8) -> dict[str, np.ndarray]:
    """Pictures and patch features of samples spread evenly over a dataset, as `training.pictures.feature_arrays` says.

    Raises an `MmsslError` where the dataset has no samples.
    """
    if len(dataset) == 0:
        raise MmsslError(f"the dataset {dataset.name!r} has no samples in this split.")
    models = [model.encoder if isinstance(model, FrameEncoder) else model for model in (encoder, random)]
    return feature_arrays(*models, dataset.fetch(torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long()))


def save_arrays(run: Path, name: str, arrays: dict[str, np.ndarray]) -> Path:
    """Write `RUN/figures/<name>.npz`."""
    path = Path(run) / "figures" / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path
