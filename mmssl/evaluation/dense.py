"""Semantic segmentation and depth from an encoder's patch tokens, frozen or trained along.

A linear patch probe or a light convolutional head (`dense_heads.py`) reads the tokens of the picture; scores are at
full resolution. The encoder is shown its image alone, unless told otherwise, and never the plane it is to predict.
"""

import dataclasses

import torch
from torch import Tensor, nn

from mmssl.encoder import PICTURES
from mmssl.errors import MmsslError
from mmssl.evaluation.dense_config import DenseConfig, Task
from mmssl.evaluation.dense_maps import collect
from mmssl.evaluation.dense_model import fit_frozen, tune
from mmssl.evaluation.dense_tasks import VOID, DepthTask, SegmentationTask, segmentation_task
from mmssl.evaluation.features import FeatureSet, Splits, device_of, over_draws
from mmssl.evaluation.fitting import apply_head
from mmssl.evaluation.frames import FrameEncoder, is_image
from mmssl.evaluation.modalities import ChosenEncoder, bare, in_order_of
from mmssl.registry import register_evaluator


@dataclasses.dataclass(frozen=True)
class SegmentationConfig(DenseConfig):
    """Settings of semantic segmentation."""

    ignore: tuple[int, ...] = (254, 255)  # ids that are no class, besides those below 0

    def plane(self, target: Tensor) -> Tensor:
        return torch.where(torch.isin(target, torch.tensor(self.ignore, device=target.device)), VOID, target).short()

    def counted(self, target: Tensor) -> Tensor:
        return SegmentationTask.counted(target)

    def task(self, data: Splits, train: Tensor, test: Tensor) -> Task:
        root = getattr(data.train, "root", data.train)
        return segmentation_task(getattr(root, "segmentation_classes", None), train, test)


@dataclasses.dataclass(frozen=True)
class DepthConfig(DenseConfig):
    """Settings of depth."""

    def plane(self, target: Tensor) -> Tensor:
        return target[:, 0].float()

    def counted(self, target: Tensor) -> Tensor:
        return DepthTask.counted(target)

    def task(self, data: Splits, train: Tensor, test: Tensor) -> Task:
        return DepthTask.of(train)


@register_evaluator("segmentation")
def segmentation(
    encoder: nn.Module, data: Splits, config: SegmentationConfig = SegmentationConfig()
) -> dict[str, float]:
    """miou and pixel_accuracy on the test part, see `SegmentationTask`."""
    return _judge(encoder, data, config, "segmentation")


@register_evaluator("depth")
def depth(encoder: nn.Module, data: Splits, config: DepthConfig = DepthConfig()) -> dict[str, float]:
    """delta1, rmse and abs_rel on the test part, see `DepthTask`."""
    return _judge(encoder, data, config, "depth")


def inputs_of(encoder: nn.Module, config: DenseConfig, target: str) -> tuple[str, ...]:
    """The modalities that an encoder is shown: those of the settings, else those asked for, else its images.

    One that reads no image is shown all but the target.

    Raises:
        MmsslError: one that it does not read, the target among them, or none that is a picture.
    """
    if isinstance(encoder, FrameEncoder):
        raise MmsslError(f"{target} is judged on single pictures, and the data give clips; give --clip none.")
    inside, reads = bare(encoder), tuple(encoder.modalities)
    if getattr(inside, "without_positions", False):  # raw pixels: those of what the encoder is shown
        names = tuple(name for name in reads if name in (config.inputs or reads))
    elif config.inputs:
        names = in_order_of(inside, config.inputs)
    else:
        names = reads
    if not config.inputs and not getattr(encoder, "asked", False):
        others = tuple(name for name in names if name.split("/")[0] != target)
        names = tuple(name for name in names if is_image(name)) or others or names
    if not config.show_target and any(name.split("/")[0] == target for name in names):
        raise MmsslError(
            f"{target} is what is to be predicted, and the encoder is shown it ({', '.join(names)}): leave it out of "
            f"--modalities, or set {target}.show_target=true."
        )
    if not any(name.split("/")[0] in PICTURES for name in names):
        raise MmsslError(f"{target} is read off the tokens of a picture; the encoder is shown {', '.join(names)}.")
    return names


def _judge(encoder: nn.Module, data: Splits, config: DenseConfig, plane: str) -> dict[str, float]:
    names = inputs_of(encoder, config, plane)
    reader, inside, device = ChosenEncoder(bare(encoder), names), bare(encoder), device_of(encoder)
    shown = None if config.train_encoder else reader
    train, test = (collect(part, config, plane, names, shown) for part in (data.train, data.test))
    task = config.task(data, train.labels, test.labels)

    def judge(picked: FeatureSet, seed: int) -> dict[str, float]:
        if not config.train_encoder:
            return task.score(fit_frozen(picked, task, config, seed, device)(test.features), test.labels)
        model = tune(inside, names, data.train.subset(picked.index), task, config, plane, seed)
        tuned = collect(data.test, config, plane, names, ChosenEncoder(model.encoder, names))
        return task.score(apply_head(model.head, task, tuned.features, device, task.at_once), tuned.labels)

    return over_draws(train, plane, config, judge)


def constant(encoder: nn.Module, data: Splits, config: DenseConfig, plane: str) -> dict[str, float]:
    """What needs no features: at each place the most frequent class, or the median depth, of the training part.

    Where a camera stands still that is much of the answer. The encoder says whose camera is meant, if it has several.
    """
    names = inputs_of(encoder, config, plane)
    train, test = (collect(part, config, plane, names, None) for part in (data.train, data.test))
    task = config.task(data, train.labels, test.labels)

    def judge(picked: FeatureSet, seed: int) -> dict[str, float]:
        return task.score(task.constant(picked.labels).expand_as(test.labels), test.labels)

    return over_draws(train, plane, config, judge)


for _evaluator, _plane in ((segmentation, "segmentation"), (depth, "depth")):
    _evaluator.plane = _plane  # what the data must give beside the encoder's inputs, and the target in tables
    _evaluator.constant = constant
    _evaluator.inputs = inputs_of
