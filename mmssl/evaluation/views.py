"""Clips x crops: the views of one video are judged as one sample, by the mean of their predictions.

Classes are averaged as probabilities, as the published video models do (Tong et al. 2022, arXiv 2203.12602).
"""

from typing import Any

import torch
from torch import Tensor

from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.clips import ClipSampling
from mmssl.errors import MmsslError
from mmssl.evaluation.metrics import score


def views_at_test(clip: ClipSampling | None, audio: AudioSampling | None) -> int:
    """Views of each video (clips x crops) or sound (stretches) at test time; 1 for images."""
    if audio is not None:
        return audio.test_clips
    return 1 if clip is None else clip.test_clips * clip.test_crops


def average_views(
    task: str, prediction: Tensor, labels: Tensor, groups: Tensor, logits: bool = True
) -> tuple[Tensor, Tensor]:
    """Mean prediction (V, K) and label of every video, in the order of their numbers in `groups`.

    Args:
        task: single_label, multi_label or regression.
        prediction: (N, K), one row a view.
        labels: (N,) or (N, L), the same for all views of a video.
        groups: int64 (N,), the video of each view.
        logits: class scores become probabilities first (softmax, or a sigmoid each); False: they are averaged as they
            are.

    Raises:
        MmsslError: no groups, or views of one video with different labels.
    """
    values = probabilities(task, prediction.float()) if logits else prediction.float()
    place, first = videos_of(groups, labels)
    total = values.new_zeros(len(first), values.shape[1]).index_add(0, place, values)
    return total / torch.bincount(place)[:, None], labels[first]


def videos_of(groups: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Video of each view, counted from 0, int64 (N,), and the place of each video's first view, int64 (V,).

    Raises an `MmsslError` where there are no groups, or the views of a video have different labels.
    """
    if groups is None:
        raise MmsslError("the views of a video can be averaged only where the dataset says which belong together.")
    videos, place = torch.unique(groups, return_inverse=True)  # (V,), (N,)
    first = torch.full((len(videos),), len(place)).scatter_reduce(0, place, torch.arange(len(place)), "amin")
    if not torch.equal(labels[first][place], labels):
        raise MmsslError(
            "views of one video have different labels here; judge such a target with one view a video "
            "(clip.test_clips 1 and clip.test_crops 1)."
        )
    return place, first


def score_part(task: str, prediction: Tensor, part: Any, logits: bool) -> dict[str, float]:
    """The task's metric for predictions (N, K) of the `FeatureSet` `part`, over its videos where it holds views."""
    if part.views == 1:
        return score(task, prediction, part.labels)
    return score(task, *average_views(task, prediction, part.labels, part.groups, logits))


def label_of_views(label: str, dataset: Any) -> str:
    """What a table calls a question that is put to several views of each video: another one."""
    views = getattr(dataset, "views", 1)
    return label if views == 1 else f"{label}, {views} views"


def probabilities(task: str, logits: Tensor) -> Tensor:
    """Softmax of single_label scores (N, K), sigmoid of multi_label ones; regression values stay as they are."""
    if task == "single_label":
        return logits.softmax(1)
    return logits.sigmoid() if task == "multi_label" else logits
