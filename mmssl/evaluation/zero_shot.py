"""Zero-shot classification by prompts: the class whose texts are nearest to an image (Radford et al. 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.evaluation.features import device_of, labels_of
from mmssl.evaluation.joint_space import embed_images, embed_texts
from mmssl.evaluation.retrieval import chance, recalls
from mmssl.methods.base import Method

PROMPT = "a photo of a {}"
"""CLIP's own."""


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise an `MmsslError` where there is no prompt, or one has no place for the name of a class."""
    for prompt in prompts:
        if "{}" not in prompt:
            raise MmsslError(f"a prompt needs {{}} where the name of a class goes, e.g. {PROMPT!r}; got {prompt!r}.")
    if not prompts:
        raise MmsslError(f"zero-shot classification needs a prompt, e.g. {PROMPT!r}.")


def class_vectors(
    method: Method, classes: Sequence[str], prompts: Sequence[str] = (PROMPT,), batch_size: int = 256
) -> Tensor:
    """A unit vector (C, E) for each class: the mean of its prompts' unit vectors, scaled to unit length again.

    Args:
        classes: their names; an underscore is read as a space.
        prompts: texts with {} where the name goes.
    """
    check_prompts(prompts)
    names = [name.replace("_", " ") for name in classes]
    texts = [prompt.replace("{}", name) for name in names for prompt in prompts]
    found = embed_texts(method, texts, batch_size).unflatten(0, (len(names), len(prompts)))  # (C, prompts, E)
    return F.normalize(found.mean(1), dim=-1)


def judge_zero_shot(
    method: Method, dataset: Any, prompts: Sequence[str] = (PROMPT,), batch_size: int = 256, workers: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores "accuracy", and "top 5" of more than five classes, of the nearest ones; and the same of a random guess.

    Equally near classes count as in `retrieval.recalls`.

    Raises:
        MmsslError: a dataset without named classes, a prompt without {}, or a method without a joint space.
    """
    check_prompts(prompts)
    if getattr(dataset, "task", None) != "single_label" or not dataset.classes:
        raise MmsslError(
            f"the dataset {dataset.name!r} has no named classes to tell apart; give a folder of class folders, or "
            "leave out --prompts to retrieve captions."
        )
    images, places = embed_images(method, dataset, batch_size, workers)
    vectors, device = class_vectors(method, dataset.classes, prompts, batch_size), device_of(method)
    labels, classes = labels_of(dataset)[places], torch.arange(len(dataset.classes))
    at = (1, 5) if len(classes) > 5 else (1,)
    found = recalls(images.to(device), vectors.to(device), labels.to(device), classes.to(device), at)
    return _named(found), _named(chance(labels, classes, at))


def _named(found: dict[int, float]) -> dict[str, float]:
    return {"accuracy" if k == 1 else f"top {k}": value for k, value in found.items()}
