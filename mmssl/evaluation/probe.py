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
from mmssl.evaluation.features import POOLINGS, EvaluatorConfig, Splits, device_of, mean_and_spread
from mmssl.evaluation.folds import Folds, fold_numbers, through_folds
from mmssl.evaluation.frames import FrameEncoder, fit_to
from mmssl.evaluation.modalities import ChosenEncoder, label_of_inputs
from mmssl.evaluation.run_reconstruction import reconstruct_and_draw
from mmssl.evaluation.scores import Score, table, to_scores, write_scores
from mmssl.evaluation.sources import DataChoice, load_encoder
from mmssl.evaluation.views import label_of_views
from mmssl.registry import EVALUATORS


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
    modalities: tuple[str, ...] = (),
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
        evaluators: names, also with a pooling: ridge:grid4 knn attentive logistic linear finetune segmentation depth.
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
        modalities: what an encoder of several is shown, e.g. image depth; by default all that the data have too.
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
    settings = {"target": target, "camera": camera, "limit": limit, **needs_of(questions)}
    choice = DataChoice.for_encoder(encoder, weights, data, clip, modalities, **settings)
    ask = partial(judge, questions=questions, random_seeds=random_seeds, pixels=pixels, quiet=quiet)
    draw = partial(reconstruct_and_draw, device=device, quiet=quiet) if reconstruction else None
    return _judge_run(Path(weights), choice.reader(encoder), choice, folds, ask, draw)


def _judge_run(
    run: Path,
    encoder: nn.Module,
    choice: DataChoice,
    folds: Folds | None,
    ask: Callable[..., list[Score]],
    draw: Callable[..., None] | None,
) -> list[Score]:
    """Scores; those of a run folder are kept in it, and its reconstructions drawn."""
    is_run = (run / "config.yaml").is_file()
    draws, keep = is_run and draw is not None, partial(write_scores, run) if is_run else None
    rows, encoder, splits = judge_folds(
        encoder, choice, folds, ask, keep, needs_labels=not (draws and len(choice.modalities) > 1)
    )
    if draws:
        draw(run, encoder, choice, splits)
    return rows


Keep = Callable[[Sequence[Score]], Any] | None


def judge_folds(
    encoder: nn.Module,
    choice: DataChoice,
    folds: Folds | None,
    ask: Callable[..., list[Score]],
    keep: Keep = None,
    needs_labels: bool = True,
) -> tuple[list[Score], nn.Module, Splits]:
    """Scores on the test part, or on every fold and their mean; the encoder as it fits the data, and the last parts.

    Args:
        ask: (encoder, splits, keep=...) -> scores, as `judge`.
        keep: called with scores as soon as they are there.
        needs_labels: data without labels are an error; else no question is asked of them.
    """
    if folds is None:
        if not needs_labels and not choice.part("train", cache="none").targets:
            splits = dataclasses.replace(choice, labelled=False).splits()
            print(f"the data {splits.train.name!r} have no labels: no probe, only what the run reconstructs.")
            return [], fit_to(encoder, splits.train), splits
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
    def plane(self) -> str | None:
        """What it asks for at every pixel, "depth" or "segmentation", None for a question about the whole sample."""
        return getattr(EVALUATORS.get(self.name), "plane", None)

    @property
    def label(self) -> str:
        """What a table calls it: its name, and the settings that make it another question."""
        pools = self.plane is None and self.name not in ("attentive", "finetune")
        words = [" ".join([self.name, *([self.config.pooling] if pools and self.config.pooling != "mean" else [])])]
        words += self.config.words
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


def needs_of(questions: Sequence[Question]) -> dict[str, Any]:
    """What questions ask of a `DataChoice`: the planes that they predict at every pixel, and labels or none."""
    also = tuple(dict.fromkeys(question.plane for question in questions if question.plane))
    return {"also": also, "labelled": not also or any(question.plane is None for question in questions)}


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
    contestants = {"pretrained": [encoder], "random": [random_like(encoder, seed) for seed in range(random_seeds)]}
    raw = raw_inputs(encoder, splits.train.modality) if pixels else {}
    contestants |= {name: [model.to(device_of(encoder))] for name, model in raw.items()}
    rows: list[Score] = []
    bar = tqdm(total=len(questions) * len(contestants), disable=None if not quiet else True, unit="probe")
    for question in questions:
        evaluator, answers = EVALUATORS.get(question.name), []
        label, target = label_of(question, encoder, splits), question.plane or splits.train.target or "label"
        for name, models in contestants.items():
            bar.set_description(f"{label}, {name}")
            if name not in raw or getattr(evaluator, "takes_pixels", True):
                found = [evaluator(model, splits, question.config) for model in models]
                joined = mean_and_spread([{k: v for k, v in f.items() if "/" not in k} for f in found])
                answers += to_scores(label, target, name, found[0] if len(found) == 1 else joined)
            bar.update()
        if question.plane is not None:
            found = evaluator.constant(encoder, splits, question.config, question.plane)
            answers += to_scores(label, target, "constant", found)
        if keep is not None:
            keep(answers)
        rows += answers
    bar.close()
    if not quiet:
        print(table(rows))
    return rows


def label_of(question: Question, encoder: nn.Module, splits: Splits) -> str:
    """What a table calls a question: with the modalities that an encoder of several is shown, and the views judged."""
    evaluator, names = EVALUATORS.get(question.name), ()
    shown = encoder.encoder if isinstance(encoder, FrameEncoder) else encoder
    if isinstance(shown, ChosenEncoder):
        names = shown.modalities
        if question.plane is not None:
            names = evaluator.inputs(encoder, question.config, question.plane)
    return label_of_views(label_of_inputs(question.label, names), splits.test)
