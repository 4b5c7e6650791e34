"""Arrays for a run's figures: what the model reconstructs, and its patch features."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmssl.errors import MmsslError
from mmssl.evaluation.features import encoded


def feature_pictures(encoder: nn.Module, random: nn.Module, dataset: Any, count: int = 8) -> dict[str, np.ndarray]:
    """Images and patch features of samples spread evenly over a dataset, for a picture coloured by PCA.

    Returns:
        image: uint8 (n, H, W, 3); tokens, random: float32 (n, h, w, D), of the encoder and of a random one.
    """
    if len(dataset) == 0:
        raise MmsslError(f"the dataset {dataset.name!r} has no samples in this split.")
    few = dataset.subset(torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().long())
    images = [few[i][few.modality] for i in range(len(few))]
    images = [x if x.dtype == torch.uint8 else (x * 255).round().byte() for x in images]
    maps = {
        name: torch.cat([features.map().float().cpu() for features, _ in encoded(model, few, len(few))]).numpy()
        for name, model in (("tokens", encoder), ("random", random))
    }
    return {"image": torch.stack(images).permute(0, 2, 3, 1).numpy(), **maps}


def save_arrays(run: Path, name: str, arrays: dict[str, np.ndarray]) -> Path:
    """Write `RUN/figures/<name>.npz`."""
    path = Path(run) / "figures" / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path
