"""Recorded episodes on disk, in the layout of a Minari HDF5 dataset.

Each episode is first a file of its own in the hidden folder `.episodes`, renamed into place when it is whole; the
finished ones are then gathered into `data/main_data.hdf5` (their compressed chunks are copied as they are). So an
interruption, at any moment, costs at most the episodes that were being recorded, and a reader never sees half of one.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.errors import MmsslError

MAIN, METADATA = "main_data.hdf5", "metadata.json"
# Measured on 64 and 224 pixel frames: gzip level 1 is 15 to 30 % smaller than lzf, level 4 only 2 to 9 % smaller again
# for up to 1.7 times the writing time; the byte shuffle pays for float16 depth alone (docs/recording.md has the table).
_PICTURES = {"compression": "gzip", "compression_opts": 1}
_FILTERS = {"rgb": {}, "depth": {"shuffle": True}, "segmentation": {}}


class EpisodeWriter:
    """Writes one episode to `path` as it is recorded; nothing is at `path` until `finish`.

    Args:
        path: the finished file.
        capacity: number of observations at most.
    """

    def __init__(self, path: Path, capacity: int):
        import h5py

        self.path, self.capacity = path, capacity
        self._temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._file = h5py.File(self._temporary, "w", rdcc_nbytes=0)  # whole chunks are written once, never cached
        self._group = self._file.create_group("episode")
        self._frames: dict[str, Any] = {}
        self.frames = 0

    def add_pictures(self, pictures: dict[str, dict[str, np.ndarray]]) -> None:
        """Append the pictures of one observation: kind -> camera -> (H, W, ...)."""
        for kind, filters in _FILTERS.items():
            for camera, frame in pictures.get(kind, {}).items():
                key = f"observations/{kind}/{camera}"
                if key not in self._frames:
                    self._frames[key] = self._group.create_dataset(
                        key, (self.capacity, *frame.shape), frame.dtype, chunks=(1, *frame.shape),
                        maxshape=(None, *frame.shape), **_PICTURES, **filters,
                    )  # fmt: skip
                self._frames[key][self.frames] = frame
        self.frames += 1

    def finish(self, arrays: dict[str, np.ndarray], attributes: dict[str, Any]) -> None:
        """Add the small arrays (by their path inside the episode) and the attributes, and put the file in its place."""
        for dataset in self._frames.values():
            dataset.resize(self.frames, axis=0)
        for key, array in arrays.items():
            self._group.create_dataset(key, data=array, chunks=True if array.nbytes > 4096 else None, **(
                _PICTURES if array.nbytes > 4096 else {}))  # fmt: skip
        self._group.attrs.update(attributes)
        self._file.close()
        _settle(self._temporary, self.path)

    def discard(self) -> None:
        """Give up: leave nothing behind."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _settle(temporary: Path, path: Path) -> None:
    """Move a whole file into its place so that even a power cut leaves the old one or the new one."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: dict) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1))
    _settle(temporary, path)


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MmsslError(f"{path} cannot be read ({error}); delete {path.parent} and record again.") from None


class RecordingFolder:
    """The folder of one recorded task, `<root>/mmssl/<suite>/<task>-v<version>`."""

    def __init__(self, path: Path):
        self.path, self.data, self.parts = path, path / "data", path / ".episodes"
        self._lock_file: Any = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_lock_file": None}  # the lock is the parent's

    def part(self, episode: int) -> Path:
        return self.parts / f"episode_{episode:06d}.hdf5"

    def recipe(self) -> dict | None:
        """What the folder was recorded with, or None for a new folder."""
        for file in (self.data / METADATA, self.parts / "recipe.json"):
            if file.is_file():
                content = read_json(file)
                return content.get("recipe") if file.name == METADATA else content
        return None

    def begin(self, recipe: dict) -> None:
        """Open the working folder; an `MmsslError` where another process is recording into it."""
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MmsslError(f"{self.path} cannot be made ({error.strerror}); choose another --out.") from None
        self._lock()
        for stale in (*self.parts.glob("*.tmp"), *self.data.glob("*.tmp")):
            stale.unlink(missing_ok=True)
        write_json(self.parts / "recipe.json", recipe)

    def _lock(self) -> None:
        """Held until `release`, or until this process ends in whatever way."""
        try:
            import fcntl
        except ImportError:  # not a POSIX system
            return
        self._lock_file = open(self.parts / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MmsslError(
                f"another process is recording into {self.path}; wait for it or use another --out."
            ) from None

    def release(self) -> None:
        """Let others record into this folder."""
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def gathered(self) -> int:
        """Number of episodes in the dataset itself."""
        import h5py

        if not (self.data / MAIN).is_file():
            return 0
        with h5py.File(self.data / MAIN, "r") as file:
            return len(file.keys())

    def finished(self) -> set[int]:
        """Numbers of all finished episodes, gathered or not."""
        waiting = {int(p.stem.removeprefix("episode_")) for p in self.parts.glob("episode_*.hdf5")}
        return waiting | set(range(self.gathered()))

    def gather(self) -> int:
        """Bring the finished episodes, up to the first missing one, into the dataset. Returns how many it now holds.

        The dataset's metadata is what `metadata.json` in the working folder says, with the counts.
        """
        import h5py

        if not self.parts.is_dir():
            return self.gathered()
        have, finished = self.gathered(), self.finished()
        total = next(i for i in range(len(finished) + 1) if i not in finished)
        if total > have:
            self.data.mkdir(exist_ok=True)
            temporary = self.data / f"{MAIN}.{os.getpid()}.tmp"
            with h5py.File(temporary, "w", track_order=True) as new:
                if have:
                    with h5py.File(self.data / MAIN, "r") as old:
                        _copy(old, new, ((f"episode_{i}", f"episode_{i}") for i in range(have)))
                for i in range(have, total):
                    with h5py.File(self.part(i), "r") as part:
                        _copy(part, new, [("episode", f"episode_{i}")])
            _settle(temporary, self.data / MAIN)
        if total:
            self._write_metadata(total)
        for i in range(total):
            self.part(i).unlink(missing_ok=True)
        return total

    def _write_metadata(self, total: int) -> None:
        """Counts as the data file has them, even where an interruption came between the two files."""
        import h5py

        known, own = self.data / METADATA, self.parts / METADATA
        content = read_json(own if own.is_file() else known)
        with h5py.File(self.data / MAIN, "r") as file:
            steps = sum(int(file[f"episode_{i}"].attrs["total_steps"]) for i in range(total))
        size = round((self.data / MAIN).stat().st_size / 1e6, 1)
        write_json(known, {**content, "total_episodes": total, "total_steps": steps, "dataset_size": size})

    def close(self) -> None:
        """Remove the working folder if nothing waits in it."""
        if self.parts.is_dir() and not any(self.parts.glob("episode_*.hdf5")):
            for file in self.parts.iterdir():
                file.unlink()
            self.parts.rmdir()


def _copy(source: Any, target: Any, names: Iterable[tuple[str, str]]) -> None:
    for old, new in names:
        source.copy(old, target, name=new)
