"""What a trajectory model fills in of held-out expert episodes under different masks, beside what was there.

Each mask makes the model another thing: a policy, a model of the world, an inverse one, a planner between way-points.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmssl.data.loading import DataConfig
    from mmssl.data.trajectory_files import Trajectory
    from mmssl.methods.mtm import MTM

MASKS = {"policy": "action", "forward": "state", "inverse": "action", "waypoints": "state", "dream": "state"}
"""Mask -> what it fills in."""


def fill_episode(model: "MTM", episode: "Trajectory") -> dict[str, np.ndarray]:
    """`state` (S, D) and `action` (S, A) as they were, and of each mask what was filled in, NaN where nothing was.

    `policy` (S, A): the action from the states up to now. `forward` (S, D): the state from those before it and the
    actions. `inverse` (S, A): the action from the states, the next one too. `waypoints` (S, D): the states between the
    first and the last one of each stretch. `dream` (S, D): as `forward`, from its own states, beginning at the first.
    """
    states, actions = (torch.from_numpy(episode.arrays[name]) for name in ("state", "action"))
    length, steps = model.config.length, len(states)
    s, a = (x.unfold(0, length, 1).transpose(1, 2) for x in (states, actions))  # (S - T + 1, T, D)
    early, late, last = torch.arange(length) < length - 1, torch.arange(length) >= 0, length - 1
    found = {
        "policy": _said(model, s, a, late, torch.zeros_like(late))["action"][:, last],
        "forward": _said(model, s, a, early, late)["state"][:, last],
        "inverse": _said(model, s, a, late, torch.zeros_like(late))["action"][:, last - 1],
    }
    placed = {name: _placed(x, steps, last - (name == "inverse")) for name, x in found.items()}
    placed["waypoints"] = _between(model, s, a, steps)
    placed["dream"] = _dreamt(model, states, actions)
    arrays = {"state": states, "action": actions, **placed}
    return {name: x.numpy().astype(np.float32) for name, x in arrays.items()}


def _said(model: "MTM", s: Tensor, a: Tensor, states: Tensor, actions: Tensor) -> dict[str, Tensor]:
    return model.predict({"state": s, "action": a}, {"state": states, "action": actions})


def _placed(x: Tensor, steps: int, first: int) -> Tensor:
    """Values (n, D) in an episode of so many steps, from a first step on, NaN elsewhere."""
    whole = torch.full((steps, x.shape[1]), torch.nan)
    whole[first : first + len(x)] = x
    return whole


def _between(model: "MTM", s: Tensor, a: Tensor, steps: int) -> Tensor:
    """States between way-points that lie T - 1 steps apart, NaN at these."""
    length = s.shape[1]
    ends = torch.zeros(length, dtype=torch.bool)
    ends[[0, -1]] = True
    chosen = slice(0, None, length - 1)
    said = _said(model, s[chosen], a[chosen], ends, torch.zeros_like(ends))["state"]
    whole = torch.full((steps, s.shape[2]), torch.nan)
    for k, window in enumerate(said):
        at = k * (length - 1)
        whole[at + 1 : at + length - 1] = window[1:-1]
    return whole


def _dreamt(model: "MTM", states: Tensor, actions: Tensor) -> Tensor:
    """All states from the first one and the actions: each is filled in from those that were filled in before it."""
    length, dream = model.config.length, [states[0]]
    while len(dream) < len(states):
        now = min(len(dream), length - 1)  # states that are known in this window
        begin = len(dream) - now
        s = torch.zeros(1, length, states.shape[1])
        s[0, :now] = torch.stack(dream[begin:])
        a = torch.zeros(1, length, actions.shape[1])
        a[0, : now + 1] = actions[begin : begin + now + 1]
        place = torch.arange(length)
        batch = {"state": s, "action": a, "valid": (place <= now)[None]}
        said = model.predict(batch, {"state": place < now, "action": place <= now})
        dream.append(said["state"][0, now])
    return torch.stack(dream)


def write_fillings(run: Path, data: "DataConfig", path: Path) -> dict[str, Any]:
    """Fill in the first held-out episode of each task and keep it in an npz, `<task>/<name>`.

    Returns the root mean squared error of each mask over all of them, in standard deviations of what it filled in, and
    that of a guess beside it: the mean action, and the state of the step before.
    """
    import mmssl

    model, dataset = mmssl.load_method(str(run)), data.open(split="test", target="none")
    model.eval()
    chosen = {episode.task: episode for episode in reversed(dataset.episodes)}
    arrays: dict[str, np.ndarray] = {}
    errors: dict[str, list[np.ndarray]] = {}
    for task in dataset.tasks:
        filled = fill_episode(model, chosen[task])
        arrays |= {f"{task}/{name}": x for name, x in filled.items()}
        scales = {name: model.encoder.tokenizer(name).std.numpy() for name in ("state", "action")}
        mean = model.encoder.tokenizer("action").mean.numpy()
        guesses = {"mean action": np.broadcast_to(mean, filled["action"].shape), "state held": _before(filled["state"])}
        for name, truth in (*MASKS.items(), ("mean action", "action"), ("state held", "state")):
            said = filled[name] if name in filled else guesses[name]
            errors.setdefault(name, []).append(np.square((said - filled[truth]) / scales[truth]))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return {"errors": {name: float(np.sqrt(np.nanmean(np.concatenate(rows)))) for name, rows in errors.items()}}


def _before(states: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full_like(states[:1], np.nan), states[:-1]])
