"""`mmssl retrieve`: find captions by images and images by captions, or classes by prompts, in a joint space.

"random" are the same towers without training, "chance" is a random order of the answers.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmssl.errors import MmsslError
from mmssl.evaluation.baselines import random_like
from mmssl.evaluation.features import mean_and_spread
from mmssl.evaluation.retrieval import judge_retrieval
from mmssl.evaluation.scores import Score, table, to_scores, write_scores
from mmssl.evaluation.sources import DataChoice, choose_device, image_size_of
from mmssl.evaluation.zero_shot import check_prompts, judge_zero_shot
from mmssl.methods.base import Method
from mmssl.training.asked import text_encoding
from mmssl.weights.load import load_method


def retrieve(
    weights: str,
    *,
    data: tuple[str, ...] = (),
    prompts: tuple[str, ...] = (),
    target: str | None = None,
    split: str = "test",
    limit: int | None = None,
    random_seeds: int = 1,
    batch_size: int = 256,
    workers: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> list[Score]:
    """Recall at 1, 5 and 10 between images and captions, or with prompts the accuracy of zero-shot classification.

    A run folder gets the scores in its `scores.json`.

    Args:
        weights: a run folder, one of its checkpoints, a transformers CLIP folder or hub name, or a CLIP file.
        data: images with captions, or with classes: a card's name or a folder; by default the run's own data.
        prompts: texts with {} where the name of a class goes, e.g. 'a photo of a {}'; their mean stands for the class.
        target: which label the prompts are about; by default the data's own.
        split: train, test or all.
        limit: at most so many samples, spread evenly.
        random_seeds: untrained towers to compare with; mean and spread are shown.
        batch_size: images or texts in one pass; never changes the scores beyond rounding.
        workers: processes that read images.
        device: auto, cpu, cuda or mps.
        quiet: no table.
    """
    if random_seeds < 1:
        raise MmsslError(f"random_seeds must be at least 1, got {random_seeds}.")
    if prompts:
        check_prompts(prompts)
    method = load_method(weights, device=choose_device(device)).requires_grad_(False)
    choice = DataChoice(weights, data, image_size_of(method.encoder), target=target, limit=limit)
    options = {"batch_size": batch_size, "workers": workers}
    if prompts:
        dataset = choice.part(split)
        question = f"zero-shot, {len(prompts)} prompt{'s' * (len(prompts) > 1)}"
        ask = partial(judge_zero_shot, dataset=dataset, prompts=prompts, **options)
        rows = _judge(question, dataset.target or "class", method, ask, random_seeds)
    else:
        dataset = choice.part(split, text=text_encoding(method, None))
        ask = partial(judge_retrieval, dataset=dataset, **options)
        rows = _judge("retrieval", "captions", method, ask, random_seeds)
    if (Path(weights) / "config.yaml").is_file():
        write_scores(Path(weights), rows)
    if not quiet:
        print(table(rows))
    return rows


def _judge(
    question: str,
    target: str,
    method: Method,
    ask: Callable[[Method], tuple[dict[str, float], dict[str, float]]],
    random_seeds: int,
) -> list[Score]:
    """Scores of the method, of untrained ones like it, and of chance; `ask` gives those of a method and of chance."""
    own, chance = ask(method)
    untrained = mean_and_spread([ask(random_like(method, seed))[0] for seed in range(random_seeds)])
    found = {"pretrained": own, "random": untrained, "chance": chance}
    return [score for name, scores in found.items() for score in to_scores(question, target, name, scores)]
