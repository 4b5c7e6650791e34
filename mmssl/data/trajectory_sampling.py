"""Which windows of which recorded episodes make samples, and what is in them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmssl.data.returns import ReturnKind
from mmssl.errors import MmsslError, unknown_name

VECTORS = ("state", "proprio", "features", "action", "reward", "return")
"""Modalities of a step that are vectors; frames are `video`, or `video/<camera>` of several cameras."""


@dataclass(frozen=True)
class TrajectorySampling:
    """Which windows of which episodes, and what is in them.

    Args:
        length: steps of a window.
        modalities: of state, proprio, action, reward, return, features, and video for the frames of the camera, or
            video/<camera> of several.
        stride: a window begins at every so manieth step.
        returns: what a return is: MTM's `average` reward over the steps that are left until the horizon, the
            `discounted` sum, or the `sum`.
        discount: of the discounted sum.
        horizon: steps of a whole episode, for the average.
        short: an episode that is shorter than a window is filled up with steps that are not `valid` (`pad`), left out
            (`skip`), or an error.
        actions: `taken`, or what the policy wanted before noise was added (`clean`).
        fraction: share of the episodes that training uses; a smaller share is a part of every larger one.
        without_action: share of the training episodes that lack their actions.
        features: what `mmssl embed` wrote of the frames of the same recordings, a .safetensors file.
    """

    length: int = 4
    modalities: tuple[str, ...] = ("state", "action", "return")
    stride: int = 1
    returns: ReturnKind = "average"
    discount: float = 0.99
    horizon: int = 1000
    short: Literal["pad", "skip", "error"] = "pad"
    actions: Literal["taken", "clean"] = "taken"
    fraction: float = 1.0
    without_action: float = 0.0
    features: Path | None = None

    def __post_init__(self) -> None:
        if min(self.length, self.stride, self.horizon) < 1:
            raise MmsslError(
                f"length, stride and horizon of trajectories must be 1 or more, got {self.length}, {self.stride} and "
                f"{self.horizon}."
            )
        if not self.modalities:
            raise MmsslError(f"a trajectory needs at least one modality, of {', '.join(VECTORS)} and video.")
        for name in self.modalities:
            if name not in VECTORS and not is_frames(name):
                raise unknown_name("modality of a trajectory", name, (*VECTORS, "video"))
        if len(set(self.modalities)) < len(self.modalities):
            raise MmsslError(f"each modality of a trajectory is named once, got {', '.join(self.modalities)}.")
        if not 0 < self.fraction <= 1 or not 0 <= self.without_action <= 1:
            raise MmsslError(
                f"fraction must lie in (0, 1] and without_action in [0, 1], got {self.fraction} and "
                f"{self.without_action}."
            )
        if not 0 < self.discount <= 1:
            raise MmsslError(f"discount must lie in (0, 1], got {self.discount}.")
        if "features" in self.modalities and self.features is None:
            raise MmsslError(
                "the features of a trajectory's frames are read from a file; write it with `mmssl embed`, and set "
                "trajectory.features to its path."
            )

    @property
    def vectors(self) -> tuple[str, ...]:
        """Those of the modalities that are vectors."""
        return tuple(name for name in self.modalities if name in VECTORS)

    @property
    def frames(self) -> tuple[str, ...]:
        """Those of the modalities that are frames."""
        return tuple(name for name in self.modalities if is_frames(name))


def is_frames(name: str) -> bool:
    """True for `video` and `video/<camera>`."""
    return name == "video" or name.startswith("video/")
