"""Which training samples a probe sees: parts held out by group, and draws of few labels.

Frames of one episode look alike, so a validation part that shares episodes with the fitted part chooses too little
regularisation. Where the dataset knows its groups (episodes), whole groups are held out.
"""

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import MmsslError


def folds(n: int, groups: Tensor | None, labels: Tensor | None, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs (fit, validation) of index tensors over `n` samples.

    Args:
        groups: int (N,) group of each sample; all of a group falls on one side. None: every sample is its own group.
        labels: int (N,) classes: groups are dealt out class by class, so that each part holds every class if it can.
        count: number of parts; 1 gives one pair with a fifth of the groups held out.
    """
    if n < 2:
        raise MmsslError(f"a probe needs at least 2 training samples to hold one out, got {n}.")
    parts = 5 if count == 1 else count
    group = np.arange(n) if groups is None else np.unique(groups.cpu().numpy(), return_inverse=True)[1]
    if group.max() == 0:  # a single episode: hold out frames, there is nothing better
        group = np.arange(n)
    part = _deal(group, None if labels is None else labels.cpu().numpy(), min(parts, group.max() + 1), seed)[group]
    pairs = [
        (torch.from_numpy(np.flatnonzero(part != p)), torch.from_numpy(np.flatnonzero(part == p)))
        for p in range(part.max() + 1)
    ]
    return pairs[:1] if count == 1 else pairs


def _deal(group: np.ndarray, labels: np.ndarray | None, parts: int, seed: int) -> np.ndarray:
    """Part of every group: groups shuffled, put in order of their (first sample's) class, dealt like cards."""
    groups = group.max() + 1
    order = np.random.default_rng(seed).permutation(groups)
    if labels is not None:
        first = np.unique(group, return_index=True)[1]
        order = order[np.argsort(labels[first][order], kind="stable")]
    part = np.empty(groups, dtype=np.int64)
    part[order] = np.arange(groups) % parts
    return part


def few(task: str, labels: Tensor, per_class: int | None, total: int | None, seed: int) -> Tensor:
    """Index tensor of one random draw of few labels, sorted.

    Args:
        per_class: labels for each class (single_label only); classes with fewer give all they have.
        total: labels in all, for any task.
    """
    if per_class is not None and total is not None:
        raise MmsslError("give labels per class or the total number of labels, not both.")
    rng = np.random.default_rng(seed)
    if per_class is None:
        return _draw(rng, len(labels), total)
    if task != "single_label":
        raise MmsslError(
            f"labels per class needs a single_label target, and this one is {task}; give the total (labels)."
        )
    if per_class < 1:
        raise MmsslError(f"labels per class must be at least 1, got {per_class}.")
    values = labels.cpu().numpy()
    shuffled = rng.permutation(len(values))
    kept = [shuffled[values[shuffled] == c][:per_class] for c in np.unique(values)]
    return torch.from_numpy(np.sort(np.concatenate(kept)))


def _draw(rng: np.random.Generator, n: int, total: int | None) -> Tensor:
    if total is None:
        return torch.arange(n)
    if not 2 <= total <= n:
        raise MmsslError(f"the number of labels must be between 2 and the {n} training samples, got {total}.")
    return torch.from_numpy(np.sort(rng.permutation(n)[:total]))
