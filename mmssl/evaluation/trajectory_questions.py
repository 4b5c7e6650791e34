"""What a masked trajectory model is asked, each question by a mask alone, and how well it answers on held-out windows.

Errors are squared, in variances of the held-out steps, so that they mean the same whatever a model was trained on: 1 is
what the best constant gives.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.data.trajectories import TrajectoryWindows
from mmssl.errors import MmsslError
from mmssl.methods.mtm import MTM
from mmssl.trajectory_masking import OBSERVED, kind_of

QUESTIONS = {
    "bc": "behaviour cloning",
    "rcbc": "behaviour cloning for a return",
    "forward_dynamics": "forward dynamics",
    "inverse_dynamics": "inverse dynamics",
}
_STILL = 1e-6  # standard deviation of a number that never changes


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        name: of QUESTIONS.
        target: modality that is asked.
        place: step of the window that is asked.
        known: modality -> bool (T,), True = known.
    """

    name: str
    target: str
    place: int
    known: dict[str, Tensor]

    def needed(self) -> list[str]:
        """Modalities that a window must have: what is known, and what is asked."""
        return [name for name, steps in self.known.items() if steps.any() or name == self.target]


def questions_of(model: MTM, past_actions: bool = False) -> list[Question]:
    """The questions that a model can be asked: those of whose modalities it has, and for which its windows are long
    enough.

    Args:
        past_actions: whether a policy knows its own earlier actions; without them it cannot copy them.

    Raises:
        MmsslError: a model without actions or without observations of vectors.
    """
    widths, length = model.config.widths, model.config.length
    observed = [name for name in widths if kind_of(name) == OBSERVED]
    if "action" not in widths or not observed:
        raise MmsslError(f"this model knows {', '.join(widths)}; it is judged by observations and actions.")
    asked = {"bc": ("action", length - 1)}
    if "return" in widths:
        asked["rcbc"] = ("action", length - 1)
    if length > 1:
        asked |= {"forward_dynamics": (observed[0], length - 1), "inverse_dynamics": ("action", length - 2)}
    questions = []
    for name, (target, place) in asked.items():
        known = {key: steps for key, steps in model.known(name).items() if key in widths}
        if name in ("bc", "rcbc") and not past_actions:
            known["action"] = torch.zeros(length, dtype=torch.bool)
        questions.append(Question(name, target, place, known))
    return questions


def held_out(dataset: TrajectoryWindows, names: list[str], most: int) -> dict[str, Tensor]:
    """At most so many windows, evenly spread, whole ones that have all these modalities: name -> (B, T, D).

    Raises:
        MmsslError: there is none.
    """
    places = torch.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().long().unique()
    batch = dataset.fetch(places)
    kept = usable(batch, names)
    if not kept.any():
        raise MmsslError(
            f"the {dataset.split} part of {dataset.name!r} has no whole window with {', '.join(names)}; record longer "
            "episodes, or train with a smaller method.length."
        )
    return {name: batch[name][kept] for name in names}


def usable(batch: dict[str, Tensor], names: list[str]) -> Tensor:
    """Rows of a batch without padding that have all these modalities, bool (B,)."""
    kept = batch["valid"].all(1)
    for name in names:
        if f"present/{name}" in batch:
            kept = kept & batch[f"present/{name}"]
    return kept


def answer(model: MTM, question: Question, batch: dict[str, Tensor], rows: int = 2048) -> Tensor:
    """What the model says, (B, D) in raw units; of what is not known it sees nothing."""
    device, said = next(model.parameters()).device, []
    given = {name: batch[name] for name in question.needed()}
    known = {name: steps for name, steps in question.known.items() if name in given}
    for part in zip(*(x.split(rows) for x in given.values()), strict=True):
        trajectory = {name: x.to(device) for name, x in zip(given, part, strict=True)}
        said.append(model.predict(trajectory, known)[question.target][:, question.place].cpu())
    return torch.cat(said)


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation, float64 (D,), of a modality over all steps of a dataset."""

    mean: Tensor
    std: Tensor

    @property
    def moving(self) -> Tensor:
        """bool (D,): numbers that change at all; the others are not judged."""
        return self.std > _STILL

    def standardised(self, x: Tensor) -> Tensor:
        """x (..., D), float32; zeros where nothing ever changes."""
        std = torch.where(self.moving, self.std, torch.ones_like(self.std))
        return torch.where(self.moving, (x.double() - self.mean) / std, 0.0).float()


def scales_of(dataset: TrajectoryWindows) -> dict[str, Scale]:
    """Modality -> its scale over this part of the data."""
    rows = {name: dataset.rows(name) for name in dataset.widths}
    return {name: Scale(x.mean(0), x.std(0, correction=0)) for name, x in rows.items()}


def judge(
    question: Question,
    batch: dict[str, Tensor],
    scale: Scale,
    mean: Tensor,
    answers: dict[str, Callable[[dict[str, Tensor]], Tensor]],
) -> dict[str, list[float]]:
    """Who answers -> mean squared error of each number that moves, in variances of `scale`, the held-out part's.

    Beside `answers` stand `copy`, what was there a step before (of an action the one before it, whether or not that is
    known), and `mean`, that of the training steps, (D,).
    """
    truth = batch[question.target][:, question.place]
    said = {name: give(batch) for name, give in answers.items()}
    if question.place > 0:
        said["copy"] = batch[question.target][:, question.place - 1]
    said["mean"] = mean.float().expand_as(truth)
    wanted = scale.standardised(truth)
    found = {name: (scale.standardised(x) - wanted).square().mean(0)[scale.moving] for name, x in said.items()}
    return {name: errors.tolist() for name, errors in found.items()}
