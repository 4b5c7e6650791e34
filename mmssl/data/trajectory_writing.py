"""Episodes of any origin as a Minari dataset, which `minari.load_dataset` and everything here opens."""

import importlib.metadata
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.trajectory_files import Trajectory
from mmssl.errors import MmsslError

_NO_OBSERVATION = ("action", "reward", "return", "features")


def write_trajectories(
    folder: Path, trajectories: Sequence[Trajectory], dataset_id: str, control_hz: float | None = None
) -> Path:
    """Write episodes as a Minari dataset: `folder`/`dataset_id`, which `minari.load_dataset` opens by its id.

    Observations are a dict of all vectors but action, reward, return and features; where an episode has no `last`, the
    last observation stands there twice. The task of the episodes is kept, if it is one for all.

    Args:
        folder: the one that MINARI_DATASETS_PATH names, for Minari to find it.
        dataset_id: of Minari's kind, e.g. `own/reach-v0`.
        control_hz: steps a second; None where that is not known.

    Returns:
        The folder of the dataset.

    Raises:
        MmsslError: no episode; episodes without action or reward, or that differ in their modalities or dimensions;
            there is a dataset of this name already.
    """
    import h5py

    widths = _widths(trajectories)
    place = Path(folder).expanduser() / dataset_id
    if (place / "data").exists():
        raise MmsslError(f"{place} is there already; delete it, or write to another id.")
    temporary = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    data = temporary / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w", track_order=True) as file:
        for number, t in enumerate(trajectories):
            _write_episode(file.create_group(f"episode_{number}"), number, t, list(widths))
    about = _about(dataset_id, trajectories, widths, (data / "main_data.hdf5").stat().st_size)
    (data / "metadata.json").write_text(json.dumps({**about, **({"fps": control_hz} if control_hz else {})}, indent=1))
    temporary.rename(place)
    return place


def _widths(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """Observed modality -> its width, which all episodes have alike."""
    if not trajectories:
        raise MmsslError("there is no trajectory to write.")
    each = [{n: x.shape[1] for n, x in t.arrays.items() if n not in ("return", "features")} for t in trajectories]
    for t, widths in zip(trajectories, each, strict=True):
        if widths != each[0]:
            raise MmsslError(
                f"all trajectories must have the same modalities and dimensions, got {each[0]} of "
                f"{trajectories[0].name} and {widths} of {t.name}; write them apart."
            )
    if not {"action", "reward"} <= each[0].keys():
        raise MmsslError(f"a trajectory needs action and reward to be written, got {', '.join(each[0])}; add zeros.")
    return {name: width for name, width in each[0].items() if name not in _NO_OBSERVATION}


def _about(dataset_id: str, trajectories: Sequence[Trajectory], widths: dict[str, int], size: int) -> dict[str, Any]:
    """Minari's metadata, and the task, where it is one for all episodes."""
    import gymnasium as gym
    from minari.serialization import serialize_space

    def box(width: int) -> gym.Space:
        return gym.spaces.Box(-np.inf, np.inf, (width,), np.float32)

    tasks = {t.task for t in trajectories}
    suite, _, task = tasks.pop().rpartition("/") if len(tasks) == 1 else ("", "", "")
    return {
        "dataset_id": dataset_id,
        "minari_version": importlib.metadata.version("minari"),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": serialize_space(gym.spaces.Dict({name: box(width) for name, width in widths.items()})),
        "action_space": serialize_space(box(trajectories[0].arrays["action"].shape[1])),
        "env_spec": None,
        "requirements": [],
        "algorithm_name": "",
        "description": "Written by mmssl.",
        "total_episodes": len(trajectories),
        "total_steps": sum(map(len, trajectories)),
        "dataset_size": round(size / 1e6, 1),
        **({"suite": suite, "task": task} if suite else {}),
    }


def _write_episode(group: Any, number: int, t: Trajectory, seen: list[str]) -> None:
    steps = len(t)
    for name in seen:
        rows = t.arrays[name]
        last = t.last.get(name, rows[-1])
        group[f"observations/{name}"] = np.concatenate([rows, last[None]]).astype(np.float32)
    ends = np.zeros((2, steps), np.bool_)
    ends[0 if t.terminated else 1, -1] = True
    group["actions"] = t.arrays["action"].astype(np.float32)
    group["rewards"] = t.arrays["reward"][:, 0].astype(np.float32)
    group["terminations"], group["truncations"] = ends
    if t.success is not None:
        success = np.zeros(steps + 1, np.bool_)
        success[-1] = t.success
        group["infos/success"] = success
    group.attrs.update({"id": number, "seed": 0, "total_steps": steps})
