"""Frozen features of a dataset, extracted once and shared by every probe that asks for them."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.loading import Loader
from mmssl.errors import MmsslError, unknown_name
from mmssl.evaluation.selection import few
from mmssl.evaluation.views import videos_of

POOLINGS = ("mean", "cls", "max", "grid2", "grid4", "grid8", "bands", "flat")


@dataclasses.dataclass(frozen=True)
class EvaluatorConfig:
    """What every evaluator can be told. Each adds its own fields in a subclass."""

    pooling: str = "mean"  # of patch tokens, see `pool`: mean | cls | max | grid2, grid4, grid8 | bands | flat
    labels_per_class: int | None = None  # few-label probe: labels for each class of a single_label target
    labels: int | None = None  # few-label probe: labels in all, for any target
    draws: int = 1  # random draws of the few labels; the score is their mean, its spread their standard deviation
    seed: int = 0  # of the draws, the held-out part and the head
    batch_size: int = 256  # images, or frames of clips, in one pass of the encoder; changes the time, never the score
    workers: int = 0  # processes that read images or clips

    @property
    def words(self) -> tuple[str, ...]:
        """What else makes it another question than by default, for tables."""
        return ()

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise unknown_name("pooling", self.pooling, POOLINGS)
        for name in ("draws", "batch_size", "labels_per_class", "labels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MmsslError(f"{name} must be at least 1, got {value}.")


@dataclasses.dataclass
class FeatureSet:
    """Features of one dataset on the CPU, row by row in its order."""

    features: Tensor  # float32 (N, D)
    labels: Tensor | None  # int64 (N,) or float32 (N, K)
    groups: Tensor | None  # int64 (N,)
    index: Tensor  # int64 (N,) place in the dataset
    views: int = 1  # rows of each video (clips x crops), which share their group and are judged as one

    def __len__(self) -> int:
        return len(self.features)

    def subset(self, rows: Tensor) -> "FeatureSet":
        """The rows in an index tensor."""
        picked = (None if x is None else x[rows] for x in (self.features, self.labels, self.groups, self.index))
        return FeatureSet(*picked, self.views)


def pool(features: Any, how: str) -> Tensor:
    """(B, D') from an encoder's `Features`.

    Args:
        how: "mean" and "max" of all patch tokens (of a clip: over space and time); "cls", the cls token; "grid2",
            "grid4", "grid8": the means of K x K cells, joined (of a clip: each over the whole time; of sound: cells of
            time and frequency); "bands": of sound, the mean over time of each band of frequencies, joined (Niizumi et
            al. 2022, arXiv 2204.12260); "flat": every token, joined.

    Raises:
        MmsslError: an unknown name, a cls token that the encoder lacks, or a grid of tokens that are no lattice.
    """
    if how == "flat":
        return real_tokens(features).flatten(1)  # (B, N * D)
    if how == "bands":
        if list(features.grid) != ["audio"]:
            raise MmsslError(f"pooling 'bands' is for sound, and these are features of {', '.join(features.grid)}.")
        return features.map().mean(1).flatten(1)  # (B, T', M', D) -> (B, M' * D)
    if how.startswith("grid") and how in POOLINGS:
        cells = int(how.removeprefix("grid"))
        maps = features.map()
        maps = maps.mean(1) if maps.dim() == 5 else maps  # (B, t, h, w, D) -> (B, h, w, D)
        maps = maps.permute(0, 3, 1, 2)  # (B, D, h, w)
        size = (min(cells, maps.shape[2]), min(cells, maps.shape[3]))
        return F.adaptive_avg_pool2d(maps, size).flatten(2).transpose(1, 2).flatten(1)  # (B, cells * cells * D)
    if how not in POOLINGS:
        raise unknown_name("pooling", how, POOLINGS)
    return features.pooled(how)


def real_tokens(features: Any) -> Tensor:
    """Tokens (B, N, D), zeros where they are padding: of a short text, or of what a row lacks."""
    return features.tokens * features.valid[..., None]


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters or buffers live; the CPU if it has none."""
    for tensor in [*module.parameters(), *module.buffers()]:
        return tensor.device
    return torch.device("cpu")


@torch.no_grad()
def encoded(encoder: nn.Module, dataset: Any, batch_size: int, workers: int = 0) -> Iterator[tuple[Any, dict]]:
    """(Features, batch) of every batch of the dataset in its order; the encoder is in eval mode meanwhile."""
    if len(dataset) == 0:
        raise MmsslError(f"the dataset {dataset.name!r} has no samples in this split.")
    device, was_training = device_of(encoder), encoder.training
    encoder.eval()
    try:
        for number, batch in enumerate(in_order(dataset, batch_size, workers)):
            inputs = {k: v for k, v in batch.items() if k not in ("label", "keys")}
            if number == 0 and hasattr(encoder, "check"):
                encoder.check(inputs)
            yield encoder({k: v.to(device, non_blocking=True) for k, v in inputs.items()}), batch
    finally:
        encoder.train(was_training)


def in_order(dataset: Any, batch_size: int, workers: int = 0) -> Iterator[dict[str, Tensor]]:
    """The batches of a dataset in its order, in evaluation geometry; `batch_size` counts images or frames of clips."""
    clip = getattr(dataset, "clip", None)
    size = max(1, batch_size // (clip.frames if clip is not None else 1))
    return Loader(dataset, min(size, len(dataset)), shuffle=False, drop_last=False, workers=workers).epoch(0)


def extract(
    encoder: nn.Module,
    dataset: Any,
    pooling: str = "mean",
    *,
    batch_size: int = 256,
    workers: int = 0,
    max_gb: float = 16.0,
) -> FeatureSet:
    """Features of every readable sample of a dataset, in its order.

    Args:
        encoder: anything that maps a batch to `Features`; an attribute `pooling` of it overrules the argument.
        dataset: a `mmssl.data` dataset.
        pooling: one of `POOLINGS`, or "tokens" for all patch tokens, (N, tokens, D), zeros where they are padding.
        batch_size: images, or frames of clips, in one pass; the result does not depend on it beyond rounding.
        max_gb: memory that the features may take.

    Raises:
        MmsslError: an empty dataset, or more than `max_gb` of features.
    """
    how = pooling if pooling == "tokens" else getattr(encoder, "pooling", None) or pooling
    rows, index = [], []
    for features, batch in encoded(encoder, dataset, batch_size, workers):
        rows.append((real_tokens(features) if how == "tokens" else pool(features, how)).float().cpu())
        index.append(batch["index"].cpu())
        gigabytes = len(dataset) * rows[0][0].numel() * 4 / 2**30
        if gigabytes > max_gb:
            raise MmsslError(
                f"the features ({how}) of {dataset.name!r} take {gigabytes:.1f} GB, more than the limit of {max_gb:g}: "
                "choose another pooling or probe fewer samples."
            )
    index, rows = torch.cat(index), torch.cat(rows)
    first = index == torch.arange(len(index))  # an unreadable sample was replaced by the next, which is there already
    index, rows = index[first], rows[first]
    labels, groups = labels_of(dataset), groups_of(dataset)
    labels, groups = (None if values is None else values[index] for values in (labels, groups))
    return FeatureSet(rows, labels, groups, index, getattr(dataset, "views", 1))


def labels_of(dataset: Any) -> Tensor | None:
    """The dataset's labels as a tensor, None without labels."""
    if getattr(dataset, "task", None) is None:
        return None
    return torch.as_tensor(dataset.labels())


def groups_of(dataset: Any) -> Tensor | None:
    """int64 (N,) group (episode) of each sample, None where the dataset has no groups."""
    groups = getattr(dataset, "groups", None)
    return None if groups is None else torch.as_tensor(groups).long()


class Splits:
    """A training and a held-out dataset with the same labels, and the features already extracted from them.

    Args:
        labelled: False where no question needs a label, as those on every pixel.

    Raises:
        MmsslError: no labels, no samples, or labels that differ in kind, classes or length.
    """

    def __init__(self, train: Any, test: Any, labelled: bool = True):
        self.train, self.test = train, test
        self._cache: dict[tuple, tuple[nn.Module, tuple[FeatureSet, FeatureSet]]] = {}
        for part, dataset in (("training", train), ("test", test)):
            if labelled and getattr(dataset, "task", None) is None:
                raise MmsslError(
                    f"the {part} data {dataset.name!r} has no labels, so nothing can be probed: choose a target."
                )
            if len(dataset) == 0:
                raise MmsslError(f"the {part} data {dataset.name!r} has no samples.")
        if labelled:
            self._check_labels(train, test)

    @staticmethod
    def _check_labels(train: Any, test: Any) -> None:
        if train.task != test.task or list(train.classes or []) != list(test.classes or []):
            raise MmsslError("the training and the test data have different labels: they must share task and classes.")
        if train.task != "single_label" and labels_of(train).shape[1:] != labels_of(test).shape[1:]:
            raise MmsslError("the training and the test data have labels of different lengths.")
        if getattr(test, "views", 1) > 1:
            videos_of(groups_of(test), labels_of(test))  # better now than after all features are extracted

    @property
    def task(self) -> str:
        """single_label, multi_label or regression."""
        return self.train.task

    @property
    def classes(self) -> int:
        """Number of classes of a classification target, of dimensions of a regression target."""
        if self.task != "single_label":
            return labels_of(self.train).reshape(len(self.train), -1).shape[1]
        return max(len(self.train.classes or []), int(max(labels_of(self.train).max(), labels_of(self.test).max())) + 1)

    def features(self, encoder: nn.Module, config: EvaluatorConfig) -> tuple[FeatureSet, FeatureSet]:
        """Features of the training and the test part; extracted once for an encoder and a pooling."""
        key = (id(encoder), config.pooling)
        if key not in self._cache:  # the encoder is kept beside its features, so that its id stays its own
            options = {"batch_size": config.batch_size, "workers": config.workers}
            parts = (
                extract(encoder, self.train, config.pooling, **options),
                extract(encoder, self.test, config.pooling, **options),
            )
            self._cache[key] = (encoder, parts)
        return self._cache[key][1]

    def forget(self, encoder: nn.Module) -> None:
        """Free the features of one encoder."""
        self._cache = {k: v for k, v in self._cache.items() if v[0] is not encoder}


def over_draws(
    train: FeatureSet, task: str, config: EvaluatorConfig, judge: Callable[[FeatureSet, int], dict[str, float]]
) -> dict[str, float]:
    """Mean score over the draws of few labels; with several draws `<metric>/spread` holds their standard deviation.

    Args:
        train: the whole training part.
        judge: (the labelled samples of one draw, seed) -> scores.
    """
    scores = []
    for seed in range(config.seed, config.seed + config.draws):
        rows = few(task, train.labels, config.labels_per_class, config.labels, seed)
        scores.append(judge(train if len(rows) == len(train) else train.subset(rows), seed))
    return mean_and_spread(scores)


def mean_and_spread(scores: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every score, with `<metric>/spread`, the standard deviation (n - 1), where there are several."""
    result = {}
    for name in scores[0]:
        values = [s[name] for s in scores]
        result[name] = sum(values) / len(values)
        if len(values) > 1:
            result[f"{name}/spread"] = math.sqrt(sum((v - result[name]) ** 2 for v in values) / (len(values) - 1))
    return result
