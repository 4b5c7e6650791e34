"""Can a masked model tell one modality from another: depth from the image, words from the picture, a view from a view?

For each ordered pair the one is shown whole and all of the other is hidden, and what the model fills in is compared
with the truth of held-out samples:

- pictures and depth: the share of the variance explained, 1 - error / error of the mean picture of the training part,
  in the units that the model predicts (depth standardised);
- segmentation: pixel accuracy and mIoU, beside the most frequent class at each place;
- text: of three quarters of the words, chosen at random and hidden, the share that comes first among the model's
  guesses, beside the same with the other modality hidden too, and the most frequent word.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.evaluation.dense_tasks import SegmentationTask
from mmssl.evaluation.features import device_of, in_order
from mmssl.evaluation.modalities import given, only
from mmssl.evaluation.reconstruction import spread_evenly
from mmssl.evaluation.scores import Score
from mmssl.keys import sample_keys, uniform

WORDS_HIDDEN = 0.75
_STREAM = 3000  # of the words' draw


def judge_cross_modal(
    method: nn.Module, train: Any, test: Any, *, samples: int = 256, batch_size: int = 64, seed: int = 0
) -> list[Score]:
    """Scores of each ordered pair of modalities, `target` being the one that is predicted.

    Args:
        method: one whose `reconstruct` gives `prediction/<modality>` of several.
        train: dataset from which the constant answers are taken; `samples` of it are used, spread evenly.
        test: held-out dataset, likewise.
        batch_size: samples in one pass of the model; changes the time, never the score.
        seed: of the words that are hidden.

    Raises:
        MmsslError: fewer than two modalities that the method and the data share.
    """
    has, predicted = given(test), predicted_by(method, test)
    sources = [name for name in method.encoder.modalities if name in has]
    targets = [name for name in predicted if name in has]
    if not any(source != target for source in sources for target in targets):
        raise MmsslError(
            f"one modality is predicted from another: this model reads {', '.join(method.encoder.modalities)} and "
            f"predicts {', '.join(predicted)}, and the data {test.name!r} give {', '.join(has)}."
        )
    train, test = spread_evenly(train, samples), spread_evenly(test, samples)
    was_training, rows = method.training, []
    method.eval()
    for target in targets:
        known = torch.cat([_truth(method, target, b)[_has(b, [target])] for b in in_order(train, batch_size)])
        if target == "text":
            known = known[torch.cat([_real(b)[_has(b, ["text"])] for b in in_order(train, batch_size)])]
        if not len(known):
            continue  # no training sample has it
        judge = _JUDGES.get(target.split("/")[0], _judge_pictures)
        for source in sources:
            if source != target:
                asked = _Pair(method, test, source, target, batch_size, seed)
                rows += judge(asked, known)
    method.train(was_training)
    return rows


@torch.no_grad()
def predicted_by(method: nn.Module, data: Any) -> list[str]:
    """The modalities that a method predicts, those that the data lack included.

    Raises an `MmsslError` where it reconstructs nothing.
    """
    batch = data.fetch(torch.tensor([0]))
    batch = {key: x.to(device_of(method)) for key, x in batch.items() if key != "label"}
    return [key.removeprefix("prediction/") for key in method.reconstruct(batch) if key.startswith("prediction/")]


class _Pair:
    """One modality predicted from another, on the samples that have both."""

    def __init__(self, method: nn.Module, data: Any, source: str, target: str, batch_size: int, seed: int):
        self.method, self.data, self.source, self.target = method, data, source, target
        self.batch_size, self.seed = batch_size, seed

    @torch.no_grad()
    def answers(self, shown: bool = True) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(prediction, truth, mask of tokens) of each batch, on the CPU; with `shown` False the source is left out."""
        for batch in in_order(self.data, self.batch_size):
            rows = _has(batch, [self.source, self.target])
            if not bool(rows.any()):
                continue
            batch = {key: x[rows].to(device_of(self.method)) for key, x in batch.items()}
            inputs = only(batch, [self.source, self.target] if shown else [self.target])
            masks = self._masks(inputs, batch["index"])
            found = self.method.reconstruct(inputs, masks=masks)
            hidden = masks.get(self.target, torch.empty(0))
            yield tuple(x.cpu() for x in (found[f"prediction/{self.target}"], found[f"target/{self.target}"], hidden))

    def _masks(self, inputs: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        masks = {}
        for name in (self.source, self.target):
            if name in inputs and name in self.method.encoder.modalities:
                size = torch.Size(self.method.encoder.tokenizer(name).grid_of(inputs[name])).numel()
                masks[name] = torch.full((len(index), size), name == self.target, device=index.device)
        if self.target == "text":
            noise = uniform(sample_keys(self.seed, 0, 0, index), masks["text"].shape[1], _STREAM)
            masks["text"] = (noise < WORDS_HIDDEN) & _real(inputs)
        return masks

    def scores(self, encoder: str, found: dict[str, float]) -> list[Score]:
        """Rows of a table: `encoder` is the model, or what it is compared with."""
        return [Score(f"from {self.source}", self.target, encoder, name, value) for name, value in found.items()]


def _judge_pictures(pair: _Pair, known: Tensor) -> list[Score]:
    mean = known.double().mean(0)
    errors = torch.zeros(2, dtype=torch.float64)
    for prediction, truth, _ in pair.answers():
        truth = truth.double()
        errors += torch.stack([(guess - truth).square().sum() for guess in (prediction.double(), mean)])
    explained = 1 - (errors[0] / errors[1].clamp_min(1e-300)).item()
    return pair.scores("pretrained", {"explained": explained}) + pair.scores("constant", {"explained": 0.0})


def _judge_segmentation(pair: _Pair, known: Tensor) -> list[Score]:
    parts = list(pair.answers())
    guess, truth = (torch.cat([part[k] for part in parts]) for k in (0, 1))
    task = SegmentationTask(1 + int(max(known.max(), guess.max(), truth.max())))
    constant = task.constant(known).expand_as(truth)
    return pair.scores("pretrained", task.score(guess, truth)) + pair.scores("constant", task.score(constant, truth))


def _judge_text(pair: _Pair, known: Tensor) -> list[Score]:
    word = known.mode().values
    contestants = {"pretrained": True, "alone": False}
    right = {name: torch.zeros(2, dtype=torch.int64) for name in (*contestants, "constant")}
    for name, shown in contestants.items():
        for prediction, truth, hidden in pair.answers(shown):
            truth, guess = truth[hidden], prediction[hidden]
            right[name] += torch.stack([(guess == truth).sum(), hidden.sum()])
            if shown:
                right["constant"] += torch.stack([(truth == word).sum(), hidden.sum()])
    rows = []
    for name, (hits, count) in right.items():
        rows += pair.scores(name, {"accuracy": (hits / count.clamp_min(1)).item()})
    return rows


_JUDGES = {"segmentation": _judge_segmentation, "text": _judge_text}


def _tokenizer(method: nn.Module, name: str) -> nn.Module:
    """What cuts a modality into tokens: the encoder's, or the method's own of what it only predicts."""
    return method.tokenizer(name) if callable(getattr(method, "tokenizer", None)) else method.encoder.tokenizer(name)


def _truth(method: nn.Module, name: str, batch: dict[str, Tensor]) -> Tensor:
    """What a method is to predict, as its `reconstruct` has it, on the CPU."""
    tokenizer = _tokenizer(method, name)
    with torch.no_grad():
        return tokenizer.picture(tokenizer.target(batch[name].to(device_of(method)))).cpu()


def _has(batch: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    """Which rows of a batch have all of these modalities, bool (B,)."""
    rows = torch.ones(len(batch["index"]), dtype=torch.bool)
    for name in names:
        rows = rows & batch.get(f"present/{name}", rows)
        if name == "text":
            rows = rows & _real(batch).any(1)
    return rows


def _real(batch: dict[str, Tensor]) -> Tensor:
    """Real tokens of the texts, bool (B, L)."""
    return batch.get("text_mask", torch.ones_like(batch["text"], dtype=torch.bool))
