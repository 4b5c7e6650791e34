"""Samples that lack a modality, in a batch: zeros stand in their rows, and `present/<modality>` says which have it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import MmsslError


def fill_missing(
    rows: list[dict[str, np.ndarray]], lacks: Sequence[str], size: tuple[int, int] | None
) -> dict[str, Tensor]:
    """Put zeros, in place, where a row lacks one of the planes `lacks`.

    Args:
        rows: image uint8 (H, W, 3), depth (H, W) or segmentation (H, W) of each sample, by modality.
        lacks: modalities that any sample of the dataset may lack; "text" is no plane, and not dealt with here.
        size: (H, W) of the planes; None takes that of the first row that has one, or else that of another plane.

    Returns:
        `present/<modality>` bool (B,) for each of `lacks`.

    Raises:
        MmsslError: no row has it and no size is known.
    """
    planes = [key for key in lacks if key != "text"]
    size = size or next((row[key].shape[:2] for row in rows for key in planes if key in row), None)
    present = {f"present/{key}": torch.tensor([key in row for row in rows]) for key in planes}
    for key in planes:
        there = next((row[key] for row in rows if key in row), None)
        if there is None and size is None:
            raise MmsslError(f"no sample of a batch has {key!r}, so that its size is not known; give image_size.")
        empty = _nothing(key, size) if there is None else np.zeros_like(there)
        for row in rows:
            row.setdefault(key, empty)
    return present


def _nothing(key: str, size: tuple[int, int]) -> np.ndarray:
    kind = key.split("/")[0]
    if kind == "image":
        return np.zeros((*size, 3), np.uint8)
    return np.zeros(size, np.float32 if kind == "depth" else np.int32)
