"""One recorded dataset on disk: Minari's HDF5 layout, opened once a process and read a frame at a time."""

import json
import os
import re
from pathlib import Path

import numpy as np

from mmssl.errors import MmsslError

_PLANES = ("rgb", "depth", "segmentation")


def _h5py():
    try:
        import h5py
    except ImportError:
        raise MmsslError('reading recordings needs h5py; install it with `pip install "mmssl[sim]"`.') from None
    return h5py


class RecordingFile:
    """The folder of one Minari dataset.

    Attributes:
        path: `main_data.hdf5`.
        task: "suite/task".
        instruction: the sentence that says what the robot is to do.
        episodes: ids of the episodes; `lengths` their numbers of frames.
        columns: names of the vectors that come with every frame ("state", "proprio", "reward", "success").
        planes: "rgb" / "depth" / "segmentation" -> names of the cameras that have it.

    Raises:
        MmsslError: the file is damaged, or holds no episode.
    """

    def __init__(self, folder: Path):
        self.path = folder / "data" / "main_data.hdf5"
        metadata = self._read_metadata(folder / "data" / "metadata.json")
        self.metadata = {**metadata, **metadata.get("mmssl", {})}
        self.task = re.sub(r"^mmssl/|-v\d+$", "", metadata.get("dataset_id", folder.name))
        self.instruction = str(self.metadata.get("instruction", self.task.split("/")[-1].replace("-", " ")))
        self._pid: int | None = None
        try:
            with _h5py().File(self.path, "r") as file:
                self._survey(file)
        except OSError as error:
            raise MmsslError(f"{self.path} cannot be opened ({error}); record it again.") from None

    @staticmethod
    def _read_metadata(file: Path) -> dict:
        try:
            return json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise MmsslError(f"{file} cannot be read ({error}); it is part of every recording, record again.") from None

    def _survey(self, file) -> None:
        ids = sorted(int(name.removeprefix("episode_")) for name in file if "observations" in file[name])
        if not ids:
            raise MmsslError(f"{self.path} holds no finished episode; record some.")
        first = file[f"episode_{ids[0]}"]
        observations = first["observations"]
        self._flat = not hasattr(observations, "keys")  # a picture as the whole observation
        self.planes = {
            plane: sorted(observations[plane]) if not self._flat and plane in observations else [] for plane in _PLANES
        }
        if self._flat:
            self.planes["rgb"] = ["image"] if observations.ndim == 4 else []
        names = [] if self._flat else [n for n in ("state", "proprio") if n in observations]
        judged = self.metadata.get("has_success", True) and "infos" in first and "success" in first["infos"]
        self.columns = [*names, "reward", *(["success"] if judged else [])]
        self.episodes = ids
        probe = f"rgb/{self.cameras[0]}" if self.cameras else (names[0] if names else None)
        self.lengths = [int(self._dataset(file, e, probe).shape[0]) if probe else 0 for e in ids]

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras, in the order in which they were recorded."""
        order = list(self.metadata.get("cameras", {}))
        found = self.planes["rgb"]
        return [c for c in order if c in found] + [c for c in found if c not in order]

    def _dataset(self, file, episode: int, path: str):
        group = file[f"episode_{episode}"]
        return group["observations"] if self._flat else group[f"observations/{path}"]

    def _open(self):
        """This process's own handle; a handle must not cross a fork."""
        if self._pid != os.getpid():
            # Frames are visited in random order: a chunk cache would keep up to a megabyte an episode for nothing.
            self._handle = _h5py().File(self.path, "r", rdcc_nbytes=0)
            self._known: dict = {}
            self._pid = os.getpid()
        return self._handle

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_handle", "_known")} | {"_pid": None}

    def frame(self, episode: int, path: str, time: int) -> np.ndarray:
        """One frame of one plane, e.g. uint8 (H, W, 3) of "rgb/corner"."""
        file = self._open()
        known = self._known.get((episode, path))
        if known is None:
            known = self._known[episode, path] = self._dataset(file, episode, path)
        return known[time]

    def column(self, episode: int, path: str) -> np.ndarray:
        """All frames of an episode."""
        return self._dataset(self._open(), episode, path)[()]

    def vector(self, episode: int, name: str) -> np.ndarray:
        """float (T, K): one row a frame. Reward comes with the frame that the action led to; the first has 0."""
        group = self._open()[f"episode_{episode}"]
        if name in ("state", "proprio"):
            return self.column(episode, name)
        values = np.asarray(group["rewards"] if name == "reward" else group["infos/success"], dtype=np.float32)
        frames = self.lengths[self.episodes.index(episode)]
        return np.concatenate([np.zeros(max(0, frames - len(values)), np.float32), values[:frames]])[:, None]

    def shape(self, path: str) -> tuple[tuple[int, ...], np.dtype]:
        """(shape of one frame, dtype)."""
        known = self._dataset(self._open(), self.episodes[0], path)
        return known.shape[1:], known.dtype

    def frame_size(self, camera: str) -> tuple[int, int] | None:
        """(H, W), or None for frames that are stored as JPEG bytes."""
        shape, _ = self.shape(f"rgb/{camera}")
        return (int(shape[0]), int(shape[1])) if len(shape) == 3 else None
