"""What a caller of MTM says is known of a trajectory: patterns by name, masks, or steps. True = known."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import MmsslError, unknown_name
from mmssl.trajectory_masking import STEPS, kind_of, known_steps


def pattern_steps(
    pattern: str, name: str, length: int, step: int | None = None, way: Iterable[int] = (), device: Any = None
) -> Tensor:
    """Steps of one modality that are known, bool (length,), for prediction.

    Args:
        pattern: one of STEPS (`known_steps`).
        name: of the modality.
        step: the present; by default the last step, of forward dynamics the one before it, of a goal the first.
        way: steps of the way-points, besides the first and the last.
    """
    if pattern not in STEPS:
        raise unknown_name("pattern of what is known", pattern, STEPS)
    first = {"goal": 0, "forward_dynamics": max(length - 2, 0)}.get(pattern, length - 1)
    step, way = first if step is None else step, list(way)
    if not 0 <= step < length or not all(0 <= place < length for place in way):
        raise MmsslError(f"step {step} and way {way} must lie in a window of {length} steps, 0 to {length - 1}.")
    places = torch.zeros(1, length, dtype=torch.bool, device=device)
    places[:, way] = True
    now, last = torch.tensor([step], device=device), torch.tensor([length - 1], device=device)
    return known_steps(pattern, kind_of(name), length, now, places, last)[0]


def known_of(
    known: Any,
    modalities: Sequence[str],
    given: Sequence[str],
    like: Tensor,
    pattern: Callable[..., dict[str, Tensor]],
    where: dict[str, Any],
) -> dict[str, Tensor]:
    """What a caller says is known, as modality -> bool (B, T) of every modality.

    Args:
        known: the name of a pattern, a mapping modality -> bool (T,) or (B, T), or steps.
        modalities: the model's.
        given: those of them that the trajectory has; others are not known.
        like: any modality of the trajectory, (B, T, ...).
        pattern: makes a pattern by its name, a length and `where`.
    """
    batch, length = like.shape[:2]
    if where and not isinstance(known, str):
        raise MmsslError(f"{', '.join(where)} is of patterns by name; known says already which steps are known.")
    if isinstance(known, str):
        steps = pattern(known, length, **where)
    elif isinstance(known, Mapping):
        steps = _named_steps(known, modalities, given)
    else:
        everything = _steps(known, length)
        steps = dict.fromkeys(given, everything)
    found = {}
    for name in modalities:
        wanted = torch.as_tensor(steps[name]) if name in steps and name in given else torch.zeros(length)
        if wanted.shape not in ((length,), (batch, length)):
            raise MmsslError(
                f"known of {name!r} must have the shape ({length},) or ({batch}, {length}), got {tuple(wanted.shape)}."
            )
        found[name] = wanted.to(like.device, torch.bool).expand(batch, length)
    return found


def _named_steps(known: Mapping[str, Any], modalities: Sequence[str], given: Sequence[str]) -> Mapping[str, Any]:
    for name, steps in known.items():
        if name not in modalities:
            raise unknown_name("modality of what is known", name, modalities)
        if name not in given and bool(torch.as_tensor(steps).any()):
            raise MmsslError(f"{name!r} is said to be known and the trajectory lacks it; it has {list(given)}.")
    return known


def _steps(known: Any, length: int) -> Tensor:
    """Steps -> bool (length,)."""
    places, found = [int(step) for step in known], torch.zeros(length, dtype=torch.bool)
    if not all(0 <= place < length for place in places):
        raise MmsslError(f"known steps must lie in a window of {length} steps, 0 to {length - 1}, got {places}.")
    found[places] = True
    return found
