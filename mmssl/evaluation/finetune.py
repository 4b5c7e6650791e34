"""Fine-tuning: the whole encoder and a new head learn one target (He et al. 2022, appendix A.1).

`mmssl finetune RECIPE` runs a recipe. As an evaluator it runs a short one on the data of a probe, from the given
weights and from random ones alike.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from mmssl.config import save_config
from mmssl.data.clips import ClipSampling
from mmssl.data.loading import DataConfig, Dataset
from mmssl.data.vetting import vet_once
from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.evaluation.features import EvaluatorConfig, FeatureSet, Splits, device_of, labels_of, over_draws
from mmssl.evaluation.finetune_audio import set_to_sound
from mmssl.evaluation.finetune_model import FinetuneModel, HeadConfig, build_model, mixer
from mmssl.evaluation.folds import Folds, fold_numbers, through_folds
from mmssl.evaluation.frames import fit_to, frames_of
from mmssl.evaluation.metrics import score
from mmssl.evaluation.modalities import ChosenEncoder, choose, label_of_inputs
from mmssl.evaluation.scores import Score, table, to_scores, write_scores
from mmssl.evaluation.sources import image_size_of
from mmssl.evaluation.views import label_of_views, views_at_test
from mmssl.paths import runs_dir
from mmssl.registry import register_evaluator
from mmssl.tokenizers.audio import audio_tokenizer
from mmssl.training.checkpoint import RunFolder
from mmssl.training.lock import is_main_process
from mmssl.training.logging import say
from mmssl.training.loop import LoopConfig, fit
from mmssl.training.optim import OptimConfig
from mmssl.weights.load import load


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning recipe."""

    data: DataConfig
    loop: LoopConfig
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    init: str | None = None
    """weights to start from, anything that `mmssl.load` reads; `--init` on the command line wins"""
    modalities: tuple[str, ...] = ()
    """what an encoder of several modalities is shown, e.g. [image, depth]; by default all that the data have too"""
    frames: int | None = None
    """sound: frames of the spectrogram that the encoder is set to; null for those of the data's clips"""
    statistics: tuple[float, float] | None = None
    """sound: mean and standard deviation of the data's raw log-mel values; null keeps the tokenizer's"""
    folds: Folds | None = None
    """data in folds: all, or the numbers of those that are tested one after the other, each by what was learned from
    the rest; each has a run folder of its own below the run"""

    def __post_init__(self) -> None:
        if self.folds is not None and self.data.fold is not None:
            raise MmsslError(f"give folds or data.fold ({self.data.fold}), not both; set the other one to null.")


def finetune(config: FinetuneConfig, run: Path | None = None, overwrite: bool = False, init: str | None = None) -> Path:
    """Run a fine-tuning recipe, score it on the test split, and write the run folder; the same call resumes.

    Args:
        config: the recipe.
        run: the run folder; by default `finetune` in the folder of runs.
        overwrite: start again in a folder that holds a run.
        init: weights to start from, in place of the recipe's `init`.
    """
    source = init or config.init
    if source is None:
        raise MmsslError("fine-tuning starts from weights: give --init a run, a folder, a file or a name.")
    config = dataclasses.replace(config, init=str(source))
    encoder = load(source, image_size=config.data.image_size)
    data = with_clips_for(encoder, config.data)
    data = set_to_sound(encoder, data, config.frames, config.statistics)
    encoder, config = show_some(encoder, dataclasses.replace(config, data=data))
    folder = RunFolder(run or runs_dir() / "finetune")
    if config.folds is None:
        _tune(encoder, config, folder, overwrite)
    else:
        _tune_folds(encoder, config, folder, overwrite)
    return folder.path


def _tune_folds(encoder: Encoder, config: FinetuneConfig, folder: RunFolder, overwrite: bool) -> None:
    """One run a fold, in `fold-1`, `fold-2` ... below the run folder, whose scores.json gets all of their scores."""
    whole = config.data.open(image_size=image_size_for(encoder))
    numbers = fold_numbers(config.folds, whole)

    def tune_fold(number: int) -> list[Score]:
        say(f"fold {number} of {whole.folds}: in {folder.path / f'fold-{number}'}.")
        part = dataclasses.replace(config, folds=None, data=dataclasses.replace(config.data, fold=number))
        return _tune(encoder, part, RunFolder(folder.path / f"fold-{number}"), overwrite)

    with folder.lock():
        folder.start(overwrite)
        save_config(config, folder.config)
        rows = through_folds(numbers, whole.folds, tune_fold, partial(write_scores, folder.path))
    print(table(rows))


def _tune(encoder: Encoder, config: FinetuneConfig, folder: RunFolder, overwrite: bool) -> list[Score]:
    """Train and score in one run folder; the given encoder is not changed."""
    train, test = open_parts(config.data, image_size_for(encoder))
    model = build_model(fit_to(encoder, train), train, config.head, config.loop.seed)
    with folder.lock():
        folder.start(overwrite)
        save_config(config, folder.config)
        if config.data.vet:
            vet_once(train, folder.skipped, config.loop.workers or None, say, is_main_process())
        result = fit(
            model,
            train,
            config.loop,
            config.optim,
            config.data.augmentation,
            folder,
            transform=mixer(config.head, model.head.fc.out_features, train.task, model.encoder),
            label="finetune",
        )
        result.leave()
        return _finish(folder, model, test, config, train.target or "label")


def show_some(encoder: Encoder, config: FinetuneConfig) -> tuple[nn.Module, FinetuneConfig]:
    """An encoder of several modalities as it is shown some of them, and the recipe with these and what they need."""
    if len(encoder.modalities) == 1 and "/" not in encoder.modalities[0] and not config.modalities:
        return encoder, config

    def open_test(**fields: Any) -> Dataset:
        return config.data.open(split="test", image_size=image_size_for(encoder), cache="none", **fields)

    names, fields = choose(encoder, open_test, config.modalities)
    config = dataclasses.replace(config, modalities=names, data=dataclasses.replace(config.data, **fields))
    return ChosenEncoder(encoder, names), config


def image_size_for(encoder: nn.Module) -> tuple[int, int] | None:
    """(H, W) of the pictures that an encoder takes, None for one of sound."""
    return None if audio_tokenizer(encoder) is not None else image_size_of(encoder)


def with_clips_for(encoder: Encoder, data: DataConfig) -> DataConfig:
    """The data with clips as a video encoder reads them; an encoder is resized, and says so, to those of a recipe."""
    frames = frames_of(encoder)
    if frames is None or (data.clip is not None and data.clip.frames == frames):
        return data
    if data.clip is None:
        return dataclasses.replace(data, clip=ClipSampling(frames=frames, stride=4))
    say(f"the weights are of clips of {frames} frames; their positions are changed to the recipe's {data.clip.frames}.")
    encoder.resize(frames=data.clip.frames)
    return data


def open_parts(data: DataConfig, image_size: tuple[int, int] | None) -> tuple[Dataset, Dataset]:
    """Training part, and test part with all views of a video or sound that its sampling names."""
    train = data.open(split="train", image_size=image_size, views=False)
    return train, data.open(split="test", image_size=image_size, views=views_at_test(data.clip, data.audio) > 1)


def _finish(folder: RunFolder, model: FinetuneModel, test: Any, config: FinetuneConfig, target: str) -> list[Score]:
    """Score on the test split; write scores.json and export/ (the encoder, and the head beside it)."""
    predictions, labels = model.predict(test, config.loop.batch_size, config.loop.workers)
    found = score(model.task, predictions, labels)
    label = label_of_views(label_of_inputs("finetune", config.modalities), test)
    rows = to_scores(label, target, "pretrained", found)
    write_scores(folder.path, rows)
    model.encoder.save_pretrained(folder.export)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if not k.startswith("encoder.")}
    save_file(state, folder.export / "head.safetensors")
    print(table(rows))
    return rows


@dataclasses.dataclass(frozen=True)
class FinetuneProbeConfig(EvaluatorConfig):
    """Settings of fine-tuning as an evaluator: a short run without augmentation."""

    steps: int = 500
    train_batch: int = 64  # samples in a step, cut to the training samples
    lr: float = 5e-4
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "train_batch", "lr"):
            if getattr(self, name) <= 0:
                raise MmsslError(f"{name} must be above 0, got {getattr(self, name)}.")


@register_evaluator("finetune")
def finetune_probe(
    encoder: nn.Module, data: Splits, config: FinetuneProbeConfig = FinetuneProbeConfig()
) -> dict[str, float]:
    """Score (accuracy, map or r2) of the whole encoder after a short fine-tuning; the given encoder is not changed."""
    every = FeatureSet(
        torch.arange(len(data.train))[:, None], labels_of(data.train), None, torch.arange(len(data.train))
    )

    def judge(picked: FeatureSet, seed: int) -> dict[str, float]:
        train = data.train.subset(picked.index)
        head = HeadConfig(drop_path=config.drop_path)
        model = build_model(encoder, train, head, seed).to(device_of(encoder))
        batch = min(config.train_batch, len(train))
        device = device_of(encoder).type
        loop = LoopConfig(steps=config.steps, batch_size=batch, seed=seed, clip_grad=1.0, device=device)
        optim = OptimConfig(
            lr=config.lr,
            betas=(0.9, 0.999),
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            warmup_steps=max(1, config.steps // 20),
        )
        fit(model, train, loop, optim, quiet=True).leave()
        predictions, labels = model.predict(data.test, config.batch_size, config.workers)
        return score(data.task, predictions, labels)

    return over_draws(every, data.task, config, judge)


finetune_probe.takes_pixels = False  # there is no encoder to tune
