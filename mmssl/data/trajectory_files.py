"""Whole episodes of any Minari dataset as arrays: our own recordings, with or without pictures, and those of others."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.episodes import decoded
from mmssl.data.recording_file import RecordingFile
from mmssl.errors import MmsslError

ReadFrames = Callable[[int, str, list[int]], np.ndarray]
"""(id of an episode, camera, steps in increasing order) -> uint8 (n, H, W, 3) of what was seen before these steps."""


@dataclass(frozen=True)
class Trajectory:
    """One episode, a row a step: the observation, and the action that was taken there.

    Attributes:
        arrays: modality -> float32 (T, D): `state`, `proprio`, `action`, `reward`, as far as they are there; all that
            is known of the observation after the last step is `last`.
        last: observed modality -> float32 (D,), what was seen after the last step.
        task: "suite/task", or the id of the dataset.
        episode: its id in the file.
        name: for messages.
        terminated: whether it came to a true end, and not to a time limit.
        success: whether the task was done at any time; None where nobody judged that.
    """

    arrays: dict[str, np.ndarray]
    last: dict[str, np.ndarray]
    task: str
    episode: int
    name: str
    terminated: bool = False
    success: bool | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def total(self) -> float:
        """Sum of the rewards."""
        return float(self.arrays["reward"].sum()) if "reward" in self.arrays else 0.0


@dataclass(frozen=True)
class TrajectoryFile:
    """All episodes of one dataset.

    Attributes:
        task: "suite/task", or the id of the dataset.
        control_hz: steps a second; None where the dataset does not say.
        episodes: in the order of their ids.
        cameras: names of the cameras that saw them.
        read_frames: reads their frames; None without cameras.
    """

    path: Path
    task: str
    control_hz: float | None
    episodes: list[Trajectory]
    cameras: tuple[str, ...] = ()
    read_frames: ReadFrames | None = field(default=None, compare=False)


def read_minari(folder: Path, clean_actions: bool = False, frames: bool = False) -> TrajectoryFile:
    """The low-dimensional part of a Minari dataset's folder (HDF5); pictures are left where they are.

    Of a dict of observations that are not ours, all vectors side by side, in the order of their names, are the state;
    so it is with a dict of actions.

    Args:
        folder: the one with `data/main_data.hdf5`.
        clean_actions: take what the policy wanted in place of what was done, where noise was added (`mmssl record
            --noise`).
        frames: let the frames be read too.

    Raises:
        MmsslError: a damaged file, no episode, values that are not finite (with episode and step).
    """
    path = folder / "data" / "main_data.hdf5"
    about = _metadata(folder / "data" / "metadata.json")
    task = _task(about, folder)
    try:
        import h5py
    except ImportError:
        raise MmsslError('reading recordings needs h5py; install it with `pip install "mmssl[sim]"`.') from None
    try:
        with h5py.File(path, "r") as file:
            ids = sorted(int(n.removeprefix("episode_")) for n in file if n.startswith("episode_"))
            found = [_episode(file[f"episode_{e}"], e, task, f"{path} episode {e}", clean_actions) for e in ids]
    except (OSError, KeyError) as error:
        raise MmsslError(f"{path} cannot be read ({error}); record or download it again.") from None
    episodes = [episode for episode in found if len(episode)]
    if not episodes:
        raise MmsslError(f"{path} holds no episode with a step; record some.")
    cameras, read = _frames(folder) if frames else ((), None)
    return TrajectoryFile(path, task, about.get("fps") or None, episodes, cameras, read)


def _metadata(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.read_text())
        return {**about, **about.get("mmssl", {})}
    except (OSError, ValueError) as error:
        raise MmsslError(f"{file} cannot be read ({error}); it is part of every Minari dataset.") from None


def _task(about: dict[str, Any], folder: Path) -> str:
    if "suite" in about and "task" in about:
        return f"{about['suite']}/{about['task']}"
    return str(about.get("dataset_id", folder.name))


class _RecordedFrames:
    """`ReadFrames` of a recording; it can be pickled."""

    def __init__(self, file: RecordingFile):
        self.file = file

    def __call__(self, episode: int, camera: str, steps: list[int]) -> np.ndarray:
        return np.stack([decoded(self.file.frame(episode, f"rgb/{camera}", step)) for step in steps])


def _frames(folder: Path) -> tuple[tuple[str, ...], ReadFrames | None]:
    file = RecordingFile(folder)
    return tuple(file.cameras), _RecordedFrames(file) if file.cameras else None


def _episode(group: Any, episode: int, task: str, name: str, clean: bool) -> Trajectory:
    actions = _vectors(group["actions"])
    steps = len(actions)
    seen = _observations(group["observations"])
    for key, x in seen.items():
        if len(x) < steps:
            raise MmsslError(f"{key} of {name} has {len(x)} rows for {steps} actions; record or download it again.")
    last = {key: x[steps] for key, x in seen.items() if len(x) > steps}
    arrays = {key: x[:steps] for key, x in seen.items()}
    infos = group.get("infos")
    if clean and infos is not None and "policy_action" in infos:
        actions = _vectors(infos["policy_action"])[-steps:]  # infos have a row for the reset too
    arrays["action"] = actions
    arrays["reward"] = np.asarray(group["rewards"], np.float32).reshape(steps, 1)
    check_finite(arrays, name)
    check_finite({key: x[None] for key, x in last.items()}, name, steps)
    success = bool(np.any(infos["success"])) if infos is not None and "success" in infos else None
    return Trajectory(arrays, last, task, episode, name, _ended(group), success)


def _ended(group: Any) -> bool:
    return bool(np.any(group["terminations"])) if "terminations" in group else False


def _observations(stored: Any) -> dict[str, np.ndarray]:
    """modality -> (T + 1, D): `state` and `proprio`; all vectors of others' datasets are the state."""
    own = [name for name in ("state", "proprio") if hasattr(stored, "keys") and name in stored]
    if own:
        return {name: np.asarray(stored[name], np.float32) for name in own}
    joined = _vectors(stored)
    return {"state": joined} if joined.shape[1] else {}


def _vectors(stored: Any) -> np.ndarray:
    """float32 (T, D): numbers and vectors of an array, or of a dict side by side; D = 0 where there are only others.

    Several vectors for one row, as of a step that holds several actions, stand one after the other.
    """
    if hasattr(stored, "keys"):
        parts = [stored[name] for name in sorted(stored) if not hasattr(stored[name], "keys")]
        parts = [np.asarray(x, np.float32).reshape(len(x), -1) for x in parts if x.ndim <= 2 and x.dtype.kind in "biuf"]
        return np.concatenate(parts, 1) if parts else np.zeros((0, 0), np.float32)
    if stored.ndim > 3 or stored.dtype.kind not in "biuf":
        return np.zeros((len(stored), 0), np.float32)
    return np.asarray(stored, np.float32).reshape(len(stored), -1)


def check_finite(arrays: dict[str, np.ndarray], name: str, first: int = 0) -> None:
    """Raise an `MmsslError` where a value (T, D) is NaN or infinite, with episode and step, counted from `first`."""
    for key, values in arrays.items():
        bad = ~np.isfinite(values).all(1)
        if bad.any():
            raise MmsslError(
                f"{key} of {name} holds NaN or infinite values in {int(bad.sum())} steps, first at step "
                f"{first + int(bad.argmax())}; mend the data, or leave the episode or {key} out."
            )
