"""`mmssl probe`: how good are frozen features, beside those of a random encoder and the raw pixels or spectrograms?"""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from tqdm import tqdm

from mmssl.config import from_dict
from mmssl.errors import MmsslError, unknown_name
from mmssl.evaluation.baselines import random_like, raw_inputs
from mmssl.evaluation.clip_reconstruction import judge_clips
from mmssl.evaluation.features import POOLINGS, EvaluatorConfig, Splits, device_of, mean_and_spread
from mmssl.evaluation.folds import Folds, fold_numbers, through_folds
from mmssl.evaluation.frames import fit_to, is_video
from mmssl.evaluation.pictures import feature_pictures, save_arrays
from mmssl.evaluation.reconstruction import Reconstruction, judge_reconstruction
from mmssl.evaluation.scores import Score, table, to_scores, write_scores
from mmssl.evaluation.sources import DataChoice, choose_device, load_encoder, own_audio, own_clip
from mmssl.evaluation.spectrogram_reconstruction import judge_spectrograms
from mmssl.evaluation.views import label_of_views
from mmssl.registry import EVALUATORS
from mmssl.weights.load import load_method


def probe(
    weights: str,
    *,
    data: tuple[str, ...] = (),
    target: str | None = None,
    evaluators: tuple[str, ...] = ("ridge", "knn", "attentive"),
    pooling: str = "mean",
    labels_per_class: int | None = None,
    labels: int | None = None,
    draws: int = 1,
    random_seeds: int = 1,
    pixels: bool = True,
    reconstruction: bool = True,
    options: tuple[str, ...] = (),
    camera: str | None = None,
    clip: tuple[str, ...] = (),
    folds: Folds | None = None,
    limit: int | None = None,
    batch_size: int = 256,
    workers: int = 0,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> list[Score]:
    """Judge frozen features on held-out data; print a table, and add it to `scores.json` if a run folder was given.

    Args:
        weights: a run folder, an exported folder, a published checkpoint, or a hub or timm name.
        data: what to judge on: a card's name, a folder, or recorded datasets; by default the run's own data.
        target: which label to predict, e.g. task or state of a recorded dataset.
        evaluators: names, each perhaps with a pooling of its own: ridge:grid4 knn attentive logistic linear finetune.
        pooling: for evaluators that name none: mean, cls, max, grid4 (tokens in 4x4 cells), bands (sound), flat.
        labels_per_class: few-label probe: so many labels for each class.
        labels: few-label probe: so many labels in all.
        draws: random draws of the few labels; mean and spread are shown.
        random_seeds: random encoders to compare with; mean and spread are shown.
        pixels: compare with the raw pixels too; of sound with log-mel statistics and with the small spectrogram.
        reconstruction: for a run of a masked model, judge its reconstructions too, and save pictures.
        options: settings of evaluators, e.g. knn.k=[5,10] attentive.steps=500.
        camera: which camera of a recorded dataset.
        clip: how clips are sampled, e.g. how=dense frames=8 stride=2, or none; of sound seconds=5; as the run did.
        folds: of data in folds (ESC-50): all, or the numbers of those that are tested, one after the other.
        limit: at most so many samples of the training and of the test part, spread evenly.
        batch_size: images, or frames of clips, in one pass of the encoder; never changes the scores.
        workers: processes that read images or clips.
        seed: of draws, held-out parts and heads.
        device: auto, cpu, cuda or mps.
        quiet: no progress and no table.
    """
    shared = {"labels_per_class": labels_per_class, "labels": labels, "draws": draws, "seed": seed, "pooling": pooling}
    shared |= {"batch_size": batch_size, "workers": workers}
    questions = [parse_question(name, shared, options) for name in evaluators]
    encoder = load_encoder(weights, device)
    choice = DataChoice.for_encoder(encoder, weights, data, clip, target=target, camera=camera, limit=limit)
    run = Path(weights) if (Path(weights) / "config.yaml").is_file() else None
    ask = partial(judge, questions=questions, random_seeds=random_seeds, pixels=pixels, quiet=quiet)
    rows, encoder, splits = judge_folds(encoder, choice, folds, ask, partial(write_scores, run) if run else None)
    if run and reconstruction:
        reconstruct_and_draw(run, encoder, choice, splits, device, quiet)
    return rows


Keep = Callable[[Sequence[Score]], Any] | None


def judge_folds(
    encoder: nn.Module, choice: DataChoice, folds: Folds | None, ask: Callable[..., list[Score]], keep: Keep = None
) -> tuple[list[Score], nn.Module, Splits]:
    """Scores on the test part, or on every fold and their mean; the encoder as it fits the data, and the last parts.

    Args:
        ask: (encoder, splits, keep=...) -> scores, as `judge`.
        keep: called with scores as soon as they are there.
    """
    if folds is None:
        splits = choice.splits()
        encoder = fit_to(encoder, splits.train)
        return ask(encoder, splits, keep=keep), encoder, splits
    whole, seen = choice.part("all"), []

    def test_fold(number: int) -> list[Score]:
        seen.append(dataclasses.replace(choice, fold=number).splits())
        return ask(fit_to(encoder, seen[-1].train), seen[-1])

    rows = through_folds(fold_numbers(folds, whole), whole.folds, test_fold, keep)
    print(table([row for row in rows if "folds" in row.evaluator]))
    return rows, fit_to(encoder, seen[-1].train), seen[-1]


@dataclasses.dataclass(frozen=True)
class Question:
    """An evaluator with its settings."""

    name: str
    config: EvaluatorConfig

    @property
    def label(self) -> str:
        """What a table calls it: its name, and the settings that make it another question."""
        uses_pooling = self.config.pooling != "mean" and self.name not in ("attentive", "finetune")
        words = [f"{self.name} {self.config.pooling}" if uses_pooling else self.name]
        if self.config.labels_per_class is not None:
            words.append(f"{self.config.labels_per_class} per class")
        if self.config.labels is not None:
            words.append(f"{self.config.labels} labels")
        return ", ".join(words)


def parse_question(text: str, shared: dict, options: Sequence[str] = ()) -> Question:
    """`ridge`, `ridge:grid4` and settings such as `ridge.folds=3` -> a question.

    Raises:
        MmsslError: an unknown evaluator, pooling or setting, or a wrong value.
    """
    name, _, pooling = text.partition(":")
    evaluator = EVALUATORS.get(name)
    if pooling and pooling not in POOLINGS:
        raise unknown_name("pooling", pooling, POOLINGS)
    settings = {**shared, **({"pooling": pooling} if pooling else {})}
    for option in options:
        key, equals, value = option.partition("=")
        owner, dot, field = key.partition(".")
        if not (equals and dot):
            raise MmsslError(f"an option is written EVALUATOR.SETTING=VALUE, e.g. knn.k=[5,10]; got {option!r}.")
        EVALUATORS.get(owner)
        if owner == name:
            settings[field] = yaml.safe_load(value)
    return Question(name, from_dict(config_class(evaluator), settings, f"the settings of {name!r}"))


def config_class(evaluator: Callable) -> type[EvaluatorConfig]:
    """The dataclass of an evaluator's settings, read from its signature."""
    return typing.get_type_hints(evaluator)["config"]


def judge(
    encoder: nn.Module,
    splits: Splits,
    questions: Sequence[Question],
    *,
    random_seeds: int = 1,
    pixels: bool = True,
    quiet: bool = False,
    keep: Keep = None,
) -> list[Score]:
    """Put every question to the encoder, to random encoders of its shape, and to the raw pixels or spectrograms.

    Args:
        random_seeds: number of random encoders; their mean and spread make one score.
        quiet: show no progress and print no table.
        keep: called with the scores of each question as soon as they are there, so that an interruption loses little.
    """
    if random_seeds < 1:
        raise MmsslError(f"random_seeds must be at least 1, got {random_seeds}.")
    target = splits.train.target or "label"
    contestants = {"pretrained": [encoder], "random": [random_like(encoder, seed) for seed in range(random_seeds)]}
    raw = raw_inputs(encoder, splits.train.modality) if pixels else {}
    contestants |= {name: [model.to(device_of(encoder))] for name, model in raw.items()}
    rows: list[Score] = []
    bar = tqdm(total=len(questions) * len(contestants), disable=None if not quiet else True, unit="probe")
    for question in questions:
        evaluator, answers = EVALUATORS.get(question.name), []
        label = label_of_views(question.label, splits.test)
        for name, models in contestants.items():
            bar.set_description(f"{label}, {name}")
            if name not in raw or getattr(evaluator, "takes_pixels", True):
                found = [evaluator(model, splits, question.config) for model in models]
                joined = mean_and_spread([{k: v for k, v in f.items() if "/" not in k} for f in found])
                answers += to_scores(label, target, name, found[0] if len(found) == 1 else joined)
            bar.update()
        if keep is not None:
            keep(answers)
        rows += answers
    bar.close()
    if not quiet:
        print(table(rows))
    return rows


def reconstruct_and_draw(
    run: Path, encoder: nn.Module, choice: DataChoice, splits: Splits, device: str, quiet: bool
) -> None:
    """Save what the report draws, judge the reconstructions and print a table, or a sentence where there are none."""
    if pictures := feature_pictures(encoder, random_like(encoder), splits.test):
        save_arrays(run, "features", pictures)
    try:
        method = load_method(run).to(choose_device(device)).eval()
        train, test = _as_in_training(run, choice, splits)
        found = _judge_of(train.modality)(method, train, test)
    except MmsslError as error:  # a fine-tuned run, or a method that reconstructs nothing
        if not quiet:
            print(f"no reconstructions to judge: {error}")
        return
    if found.pictures:
        save_arrays(run, "reconstruction", found.pictures)
    write_scores(run, [], found.mse, found.explained)
    if not quiet:
        print(reconstruction_table(found, "dB squared" if _is_sound(test.modality) else "MSE in [0, 1]"))


def _judge_of(modality: str) -> Callable[..., Reconstruction]:
    if _is_sound(modality):
        return judge_spectrograms
    return judge_clips if is_video(modality) else judge_reconstruction


def _is_sound(modality: str) -> bool:
    return modality.split("/")[0] == "audio"


def _as_in_training(run: Path, choice: DataChoice, splits: Splits) -> tuple[Any, Any]:
    """Both parts with the clips and cameras that the run learned from: a run of pairs is probed on images, say."""
    clip, audio = own_clip(run), own_audio(run) or choice.audio
    if (clip, audio) == (choice.clip, choice.audio) and getattr(splits.test, "views", 1) == 1:
        return splits.train, splits.test
    choice = dataclasses.replace(choice, clip=clip, audio=audio, several=True)
    return choice.part("train"), choice.part("test")


def reconstruction_table(found: Reconstruction, unit: str = "MSE in [0, 1]") -> str:
    """Aligned text: the error of the model and of each baseline on masked patches."""
    width = max(map(len, found.mse))
    lines = [f"{'masked patches':<{width}}  {unit:>13}  variance explained (norm-pix)"]
    for name, value in sorted(found.mse.items(), key=lambda item: item[1]):
        note = f"  = {found.best}" if name == "best_interpolation" else ""
        lines.append(f"{name:<{width}}  {value:13.6f}  {found.explained[name]:28.3f}{note}")
    return "\n".join(lines)
