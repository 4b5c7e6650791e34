"""Fine-tuning: the whole encoder and a new head learn one target (He et al. 2022, appendix A.1).

`mmssl finetune RECIPE` runs a recipe. As an evaluator it runs a short one on the data of a probe, from the given
weights and from random ones alike.
"""

import dataclasses
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
from mmssl.evaluation.finetune_model import FinetuneModel, HeadConfig, build_model, mixer
from mmssl.evaluation.frames import fit_to, frames_of
from mmssl.evaluation.metrics import score
from mmssl.evaluation.scores import table, to_scores, write_scores
from mmssl.evaluation.sources import image_size_of
from mmssl.evaluation.views import label_of_views
from mmssl.paths import runs_dir
from mmssl.registry import register_evaluator
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
    config = dataclasses.replace(config, data=with_clips_for(encoder, config.data))
    train, test = open_parts(config.data, image_size_of(encoder))
    model = build_model(fit_to(encoder, train), train, config.head, config.loop.seed)
    folder = RunFolder(run or runs_dir() / "finetune")
    with folder.lock():
        folder.start(overwrite)
        save_config(config, folder.config)
        if config.data.vet:
            vet_once(train, folder.skipped, config.loop.workers or None, say, is_main_process())
        transform = mixer(config.head, model.head.fc.out_features)
        result = fit(
            model,
            train,
            config.loop,
            config.optim,
            config.data.augmentation,
            folder,
            transform=transform,
            label="finetune",
        )
        result.leave()
        _finish(folder, model, test, config, train.target or "label")
    return folder.path


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


def open_parts(data: DataConfig, image_size: tuple[int, int]) -> tuple[Dataset, Dataset]:
    """Training part, and test part with all clips x crops that the clip sampling names."""
    several = data.clip is not None and data.clip.test_clips * data.clip.test_crops > 1
    train = data.open(split="train", image_size=image_size, views=False)
    return train, data.open(split="test", image_size=image_size, views=several)


def _finish(folder: RunFolder, model: FinetuneModel, test: Any, config: FinetuneConfig, target: str) -> None:
    """Score on the test split; write scores.json and export/ (the encoder, and the head beside it)."""
    predictions, labels = model.predict(test, config.loop.batch_size, config.loop.workers)
    found = score(model.task, predictions, labels)
    rows = to_scores(label_of_views("finetune", test), target, "pretrained", found)
    write_scores(folder.path, rows)
    model.encoder.save_pretrained(folder.export)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items() if not k.startswith("encoder.")}
    save_file(state, folder.export / "head.safetensors")
    print(table(rows))


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
