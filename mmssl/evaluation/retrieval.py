"""Recall at K, of captions for images and of images for captions, by the cosine in a joint space."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.evaluation.features import device_of
from mmssl.evaluation.joint_space import embed_images, embed_texts
from mmssl.methods.base import Method

AT = (1, 5, 10)
"""Numbers of answers that are looked at."""
TIE = 1e-6
"""Cosines that differ by no more are equal: so much is rounding."""
_ROWS, _COLUMNS = 1024, 8192  # cosines that are in memory at once


def recalls(queries: Tensor, gallery: Tensor, own: Tensor, whose: Tensor, at: Sequence[int] = AT) -> dict[int, float]:
    """Share of the queries that have an answer of their own among the K nearest.

    Where answers are as near as the nearest right one (`TIE`), the value is the probability under a random order of
    these: a method that gives one vector to everything has the recall of chance, not 0 or 1.

    Args:
        queries: float (N, E), of unit length.
        gallery: float (M, E), of unit length.
        own: int64 (N,), what a query belongs to.
        whose: int64 (M,), what an answer belongs to; those with a query's number are right.
        at: values of K.

    Raises:
        MmsslError: a query without a right answer, or vectors that are not finite.
    """
    if not bool(queries.isfinite().all() and gallery.isfinite().all()):
        raise MmsslError("the vectors are not finite: the weights are damaged, or their training diverged.")
    hits = torch.zeros(len(at), dtype=torch.float64)
    for rows in torch.arange(len(queries), device=queries.device).split(_ROWS):
        above, wrong, right = (count.cpu() for count in _standing(queries[rows], gallery, own[rows], whose))
        if not bool((right > 0).all()):
            raise MmsslError("a query has no right answer in the gallery; leave it out.")
        hits += torch.stack([_found(above, wrong, right, k).sum() for k in at])
    return {k: hits[i].item() / len(queries) for i, k in enumerate(at)}


def _standing(queries: Tensor, gallery: Tensor, own: Tensor, whose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each query, int64 (n,): answers nearer than its nearest right one, wrong ones as near, right ones as near."""
    best = torch.full((len(queries),), -torch.inf, device=queries.device)
    blocks = list(zip(gallery.split(_COLUMNS), whose.split(_COLUMNS), strict=True))
    for answers, theirs in blocks:
        cosine = (queries @ answers.T).masked_fill(own[:, None] != theirs, -torch.inf)  # (n, m)
        best = torch.maximum(best, cosine.amax(1))
    counts = [torch.zeros(len(queries), dtype=torch.int64, device=queries.device) for _ in range(3)]
    for answers, theirs in blocks:
        ahead, right = queries @ answers.T - best[:, None], own[:, None] == theirs
        tied = ahead.abs() <= TIE
        for count, found in zip(counts, (ahead > TIE, tied & ~right, tied & right), strict=True):
            count += found.sum(1)
    return tuple(counts)


def _found(above: Tensor, wrong: Tensor, right: Tensor, k: int) -> Tensor:
    """Probability float64 (n,) that one of `right` equal answers is among the first k, behind `above` others.

    It is one less the probability that all places that are left go to the `wrong` ones, drawn one after the other.
    """
    missed = torch.ones(len(above), dtype=torch.float64)
    for place in range(k):
        chance = ((wrong - place) / (wrong + right - place).clamp(min=1)).clamp(min=0)
        missed *= torch.where(place < k - above, chance.double(), 1.0)
    return 1 - missed


def chance(own: Tensor, whose: Tensor, at: Sequence[int] = AT) -> dict[int, float]:
    """The recalls of a random order of the gallery, exactly."""
    right = (torch.bincount(whose, minlength=int(own.max()) + 1))[own]
    found = [_found(torch.zeros_like(right), len(whose) - right, right, k) for k in at]
    return {k: value.mean().item() for k, value in zip(at, found, strict=True)}


class Pairs:
    """The images of a dataset that have captions, and these; an image may have several.

    Args:
        dataset: images with captions.
        places: int64 (N,), of the samples that have a readable image.

    Attributes:
        places: those that have captions too.
        captions: all of them, one after the other.
        image: int64 (len(captions),), the place of each one's image in the dataset.

    Raises:
        MmsslError: no captions.
    """

    def __init__(self, dataset: Any, places: Tensor):
        found = {place: dataset.caption(place) for place in places.tolist()}
        self.places = torch.tensor([place for place, captions in found.items() if captions], dtype=torch.int64)
        self.captions = [caption for captions in found.values() for caption in captions]
        self.image = torch.tensor([place for place, captions in found.items() for _ in captions], dtype=torch.int64)
        if not self.captions:
            raise MmsslError(
                f"the dataset {dataset.name!r} has no captions to retrieve: give images with captions, or --prompts "
                "for classes, e.g. 'a photo of a {}'."
            )


def judge_retrieval(
    method: Method, dataset: Any, batch_size: int = 256, workers: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores "image to text R@K" and "text to image R@K" of a dataset with captions; and the same of a random order.

    Raises:
        MmsslError: no captions, no images, or a method without a joint space.
    """
    vectors, places = embed_images(method, dataset, batch_size, workers)
    pairs, device = Pairs(dataset, places), device_of(method)
    images = vectors[torch.isin(places, pairs.places)].to(device)
    texts, own, whose = embed_texts(method, pairs.captions, batch_size).to(device), pairs.places, pairs.image
    by_chance = _named(chance(own, whose), chance(whose, own))
    own, whose = own.to(device), whose.to(device)
    return _named(recalls(images, texts, own, whose), recalls(texts, images, whose, own)), by_chance


def _named(to_text: dict[int, float], to_image: dict[int, float]) -> dict[str, float]:
    found = {f"image to text R@{k}": value for k, value in to_text.items()}
    return found | {f"text to image R@{k}": value for k, value in to_image.items()}
