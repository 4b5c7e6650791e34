"""What a trajectory model fills in of whole episodes under different masks, beside what was there."""

import numpy as np
import torch
from torch import Tensor

from mmssl.data.trajectory_files import Trajectory
from mmssl.evaluation.trajectory_questions import Question, answer
from mmssl.methods.mtm import MTM
from mmssl.trajectory_masking import OBSERVED, kind_of


def fill_in(model: MTM, episode: Trajectory, questions: list[Question], steps: int = 60) -> dict[str, np.ndarray]:
    """The first steps of an episode as they were and as they are filled in, float32 (S, D).

    Keys: `truth/<modality>`, and `<mask>/<modality>` with NaN where a mask asks nothing. Masks are the questions, each
    answered step by step from the true steps before it; `open_loop`: as forward dynamics, after the first steps from
    what it filled in itself; `waypoints`: the steps between two known observations that lie a window apart.
    """
    names = [name for name in model.config.widths if name in episode.arrays]
    whole = {name: torch.from_numpy(episode.arrays[name][:steps]) for name in names}
    length = model.config.length
    found = {f"truth/{name}": x for name, x in whole.items()}
    if len(next(iter(whole.values()))) >= length:
        windows = {name: x.unfold(0, length, 1).transpose(1, 2) for name, x in whole.items()}  # (S - T + 1, T, D)
        for question in questions:
            if all(name in windows for name in question.needed()):
                said, like = answer(model, question, windows), whole[question.target]
                found[f"{question.name}/{question.target}"] = _placed(said, like, question.place)
        seen = [name for name in names if kind_of(name) == OBSERVED]
        if length > 1 and "action" in whole:
            found |= {f"open_loop/{name}": x for name, x in _open_loop(model, whole, seen).items()}
        if length > 2:
            found |= {f"waypoints/{name}": x for name, x in _between(model, windows, whole, seen).items()}
    return {name: x.numpy().astype(np.float32) for name, x in found.items()}


def _placed(said: Tensor, like: Tensor, first: int) -> Tensor:
    """Values (n, D) from a first step on, NaN elsewhere, in the shape of `like` (S, D)."""
    whole = torch.full_like(like, torch.nan)
    whole[first : first + len(said)] = said
    return whole


def _predict(model: MTM, trajectory: dict[str, Tensor], known: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    said = model.predict({name: x.to(device) for name, x in trajectory.items()}, known)
    return {name: x.cpu() for name, x in said.items()}


def _open_loop(model: MTM, whole: dict[str, Tensor], seen: list[str]) -> dict[str, Tensor]:
    """Observations from the first T - 1 and all actions; these first ones are NaN."""
    length, steps = model.config.length, len(whole["action"])
    dream = {name: whole[name].clone() for name in seen}
    place = torch.arange(length)
    known = {**dict.fromkeys(seen, place < length - 1), "action": place < length}
    for now in range(length - 1, steps):
        window = slice(now - length + 1, now + 1)
        trajectory = {**{name: dream[name][None, window] for name in seen}, "action": whole["action"][None, window]}
        said = _predict(model, trajectory, known)
        for name in seen:
            dream[name][now] = said[name][0, -1]
    return {name: _placed(x[length - 1 :], x, length - 1) for name, x in dream.items()}


def _between(model: MTM, windows: dict[str, Tensor], whole: dict[str, Tensor], seen: list[str]) -> dict[str, Tensor]:
    """Observations between way-points that lie T - 1 steps apart; NaN at these."""
    length = model.config.length
    chosen = {name: windows[name][:: length - 1] for name in seen}
    ends = torch.zeros(length, dtype=torch.bool)
    ends[[0, -1]] = True
    said, found = _predict(model, chosen, dict.fromkeys(seen, ends)), {}
    for name in seen:
        found[name] = torch.full_like(whole[name], torch.nan)
        for k, window in enumerate(said[name]):
            at = k * (length - 1)
            found[name][at + 1 : at + length - 1] = window[1:-1]
    return found
