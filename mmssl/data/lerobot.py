"""LeRobot data sets (v3) as trajectories: low-dimensional data from parquet, cameras from mp4.

    meta/info.json                              rate, columns, patterns of the paths below
    meta/stats.json                             statistics of all episodes
    meta/tasks.parquet                          what the robot is told
    meta/episodes/chunk-000/file-000.parquet    a row an episode: its rows, its files, where it begins in its videos
    data/chunk-000/file-000.parquet             a row a step, several episodes to a file
    videos/<camera>/chunk-000/file-000.mp4      frames, several episodes to a file

`state` is observation.state with observation.environment_state beside it; `proprio` is observation.state alone, the
robot's own; `reward` is next.reward. A row of these data holds what was seen and what was done then, so that every row
is a step, and what was seen after the last one is not known.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl.data import video
from mmssl.data.trajectory_files import Trajectory, TrajectoryFile, check_finite
from mmssl.errors import MmsslError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("mmssl.data")

INFO = Path("meta") / "info.json"
_COLUMNS = {
    "state": ("observation.state", "observation.environment_state"),
    "proprio": ("observation.state",),
    "action": ("action",),
    "reward": ("next.reward",),
}
_ENDS = ("next.success", "next.terminated")


def is_lerobot(folder: Path) -> bool:
    """True for the folder of one LeRobot data set, of any version."""
    if not (folder / INFO).is_file():
        return False
    try:
        return "codebase_version" in json.loads((folder / INFO).read_text())
    except (OSError, ValueError):
        return False


def read_lerobot(folder: Path) -> TrajectoryFile:
    """All episodes of a LeRobot v3 folder; frames are read when they are asked for.

    Raises:
        MmsslError: another version; a missing or damaged file; a part that is not there, as of a download that was cut
            off; values that are not finite (with episode and step).
    """
    info = _info(folder)
    rows = _table(sorted(folder.glob("meta/episodes/*/*.parquet")), folder / "meta" / "episodes")
    about = sorted(_records(rows), key=lambda row: row["episode_index"])
    wanted = {name for columns in _COLUMNS.values() for name in columns} | {"episode_index", *_ENDS}
    steps = _table(sorted(folder.glob("data/*/*.parquet")), folder / "data", wanted)
    _check_statistics(folder, steps)
    arrays, ends = _arrays(steps, info), {name: _column(steps, name) for name in _ENDS if name in steps.column_names}
    number, tasks = _column(steps, "episode_index")[:, 0].astype(np.int64), _tasks(folder)
    order = np.argsort(number, kind="stable")
    bounds = np.searchsorted(number[order], [[row["episode_index"], row["episode_index"] + 1] for row in about])
    episodes = []
    for row, (first, stop) in zip(about, bounds, strict=True):
        own, name = order[first:stop], f"{folder} episode {row['episode_index']}"
        if len(own) != row["length"]:
            raise MmsslError(
                f"{name} has {len(own)} of its {row['length']} steps below {folder / 'data'}; load it again."
            )
        parts = {key: x[own] for key, x in arrays.items()}
        check_finite(parts, name)
        said = (row.get("tasks") or [tasks.get(row.get("task_index"), folder.name)])[0]
        over = {key: bool(x[own].any()) for key, x in ends.items()}
        terminated, success = over.get("next.terminated", False), over.get("next.success")
        episodes.append(Trajectory(parts, {}, str(said), int(row["episode_index"]), name, terminated, success))
    if not episodes:
        raise MmsslError(f"{folder} holds no episode; load it again.")
    frames = LeRobotFrames(folder, info, about)
    return TrajectoryFile(folder, folder.name, info["fps"], episodes, tuple(frames.keys), frames)


def _info(folder: Path) -> dict[str, Any]:
    try:
        info = json.loads((folder / INFO).read_text())
        version = str(info["codebase_version"])
        info = {**info, "fps": float(info["fps"]), "features": dict(info["features"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MmsslError(f"{folder / INFO} cannot be read ({error!r}); it is part of every LeRobot data set.") from None
    if not version.startswith("v3"):
        raise MmsslError(
            f"{folder} is a LeRobot data set of version {version}, and v3.0 is read; convert it with LeRobot's own "
            "convert_dataset_v21_to_v30."
        )
    return info


def _table(files: list[Path], folder: Path, columns: set[str] | None = None) -> "pa.Table":
    """Some columns of several files, one after the other."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MmsslError('LeRobot data need pyarrow; install it with `pip install "mmssl[hub]"`.') from None
    if not files:
        raise MmsslError(f"there is no parquet file below {folder}; load the data set again.")
    parts = []
    for file in files:
        try:
            there = pq.read_schema(file).names
            chosen = [n for n in there if not n.startswith("stats/") and (columns is None or n in columns)]
            parts.append(pq.read_table(file, columns=chosen, partitioning=None))
        except (OSError, pa.ArrowException) as error:
            raise MmsslError(f"{file} cannot be read ({error}); load the data set again.") from None
    return pa.concat_tables(parts, promote_options="permissive")


def _records(table: "pa.Table") -> list[dict[str, Any]]:
    return table.to_pylist()


def _arrays(steps: "pa.Table", info: dict[str, Any]) -> dict[str, np.ndarray]:
    """Modality -> float32 (N, D)."""
    there = set(steps.column_names) & set(info["features"])
    found = {}
    for key, columns in _COLUMNS.items():
        if parts := [_column(steps, name) for name in columns if name in there]:
            found[key] = np.concatenate(parts, 1).astype(np.float32)
    if not found:
        raise MmsslError(f"the data set has none of the columns {', '.join(sorted(sum(_COLUMNS.values(), ())))}.")
    return found


def _column(steps: "pa.Table", name: str) -> np.ndarray:
    """(N, D) of a column of numbers, or of lists of D numbers, nested or not."""
    import pyarrow as pa

    values = steps[name].combine_chunks()
    rows = len(values)
    while (
        pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type)
    ):
        values = values.flatten()
    x = values.to_numpy(zero_copy_only=False)
    if x.dtype == object or rows == 0 or len(x) % rows:
        raise MmsslError(f"the column {name} holds no vectors of one length; load the data set again.")
    return x.reshape(rows, -1)


def _check_statistics(folder: Path, steps: "pa.Table") -> None:
    """Say so where `meta/stats.json` is not of these data. Nothing is standardised by it: it counts all episodes, those
    that are held out too.
    """
    try:
        stored = json.loads((folder / "meta" / "stats.json").read_text())["action"]["mean"]
        mean = _column(steps, "action").mean(0)
        spread = _column(steps, "action").std(0)
    except (OSError, ValueError, KeyError, MmsslError):
        return
    if len(stored) != len(mean) or (np.abs(mean - stored) > 0.05 * spread + 1e-3).any():
        log.warning(
            "meta/stats.json of %s is not of its data (the mean action is %s there, %s in the data); the data count",
            folder, np.round(stored, 3).tolist(), np.round(mean, 3).tolist(),
        )  # fmt: skip


def _tasks(folder: Path) -> dict[int, str]:
    """Number of a task -> what the robot is told."""
    file = folder / "meta" / "tasks.parquet"
    if not file.is_file():
        return {}
    rows = _records(_table([file], file.parent))
    return {row["task_index"]: str(row.get("task", row.get("__index_level_0__", ""))) for row in rows}


class LeRobotFrames:
    """`ReadFrames` of a LeRobot data set: the mp4 files of its cameras, in which episodes lie one after the other.

    Attributes:
        keys: name of a camera, without what all names begin with -> its column, e.g. observation.images.top.
    """

    def __init__(self, folder: Path, info: dict[str, Any], episodes: list[dict[str, Any]]):
        self.folder, self.fps = folder, info["fps"]
        self.pattern = info.get("video_path") or "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        named = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
        self.keys = {key.removeprefix("observation.").removeprefix("images."): key for key in named}
        wanted = [f"videos/{key}/{name}" for key in named for name in ("chunk_index", "file_index", "from_timestamp")]
        self.episodes = {row["episode_index"]: {n: row[n] for n in wanted if n in row} for row in episodes}

    def __call__(self, episode: int, camera: str, steps: list[int]) -> np.ndarray:
        key, about = self.keys[camera], self.episodes[episode]
        if f"videos/{key}/file_index" not in about:
            raise MmsslError(f"{self.folder} does not say in which file the frames of {camera} lie; load it again.")
        chunk, number = (about[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index"))
        file = self.folder / self.pattern.format(video_key=key, chunk_index=chunk, file_index=number)
        first = round(about[f"videos/{key}/from_timestamp"] * self.fps)
        return video.read_clips(file, lambda facts: [[first + step for step in steps]])[0][0]
