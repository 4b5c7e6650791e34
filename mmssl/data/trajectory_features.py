"""Features of recorded frames, as `mmssl embed` wrote them, brought back to the steps of their episodes."""

import json
from pathlib import Path

import numpy as np

from mmssl.errors import MmsslError


class FeatureFile:
    """What `mmssl embed` wrote of the frames of recordings: a row a frame, with the number of its episode.

    Args:
        path: the .safetensors file; the .json beside it says of which split it is.

    Raises:
        MmsslError: no such file, or one that does not hold one vector of each recorded frame.
    """

    def __init__(self, path: Path):
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        self.path = Path(path).expanduser()
        try:
            stored = load_file(self.path)
        except (OSError, SafetensorError) as error:
            raise MmsslError(f"{self.path} cannot be read ({error}); write it with `mmssl embed`.") from None
        if "groups" not in stored or stored["features"].ndim != 2:
            raise MmsslError(
                f"{self.path} must hold one vector of every recorded frame; write it with `mmssl embed --data "
                "RECORDINGS --clip none` and a pooling that gives one vector."
            )
        self._about = self._read_about()
        order = np.lexsort((stored["index"], stored["groups"]))
        self._features, groups = stored["features"][order].astype(np.float32), stored["groups"][order]
        numbers, first, counts = np.unique(groups, return_index=True, return_counts=True)
        self._rows = {int(n): (int(f), int(c)) for n, f, c in zip(numbers, first, counts, strict=True)}

    def _read_about(self) -> dict[int, str]:
        """Number of an episode -> name of one of its frames."""
        try:
            rows = json.loads(self.path.with_suffix(".json").read_text())["rows"]
        except (OSError, ValueError, KeyError):
            return {}
        return {row["group"]: row["name"] for row in rows if "group" in row}

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self._features.shape[1]

    def of(self, number: int, name: str, steps: int) -> np.ndarray:
        """float32 (steps, F): what an encoder made of the frames before each step of an episode.

        Args:
            number: of the episode, counted over all recordings and splits.
            name: of the episode, `.../<dataset>/data/main_data.hdf5 episode <id>`.
            steps: of the episode; a recording has one frame more.

        Raises:
            MmsslError: the file is of other episodes.
        """
        first, count = self._rows.get(number, (0, 0))
        frame = self._about.get(number)
        other = frame is not None and not _tail(frame).startswith(f"{_tail(name)} ")
        if count not in (steps, steps + 1) or other:
            found = f"holds {count} frames of its place" if not other else f"has {frame} in its place"
            raise MmsslError(
                f"the features in {self.path} are not those of {name}, which has {steps} steps: the file {found}; "
                "embed the frames of the same recordings, in the same order, with --split all --clip none."
            )
        return self._features[first : first + steps]


def _tail(name: str) -> str:
    """From the folder of the dataset on: a recording may have moved since."""
    return "/".join(name.split("/")[-3:])
