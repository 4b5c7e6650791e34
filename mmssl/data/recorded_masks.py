"""Recorded episodes as labelled videos: the simulator's own segmentation is an exact answer for every pixel.

Geoms of one body are one object (their names are `<body>#<number>`; a geom with a name of its own stands alone). What
is tracked is decided by the recording alone, never by a model: see `ObjectRule`.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mmssl.data.decode import open_picture, to_rgb
from mmssl.data.episodes import split_episodes
from mmssl.data.labelled_videos import LabelledVideo
from mmssl.data.recording_file import RecordingFile
from mmssl.errors import MmsslError, unknown_name

DEFAULT_SPLIT = "test"
_BACKGROUND = re.compile(r"floor|ground|wall|table|plane|arena|sky", re.IGNORECASE)


@dataclass(frozen=True)
class ObjectRule:
    """Which parts of a scene are objects to be tracked: those that are neither background nor specks, and that move.

    Args:
        min_share: an object covers at least this share of the first frame.
        max_share: what covers more of it is background; so is what is called floor, ground, wall, table, plane, arena
            or sky.
        still: what overlaps its own first mask by this (intersection over union) in every frame stands still and is
            background: holding the first labels fixed would be the right answer.
        most: so many objects at most, the largest in the first frame.
    """

    min_share: float = 0.0025
    max_share: float = 0.25
    still: float = 0.5
    most: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.min_share < self.max_share <= 1:
            raise MmsslError(
                f"objects cover between min_share and max_share of the first frame, two increasing numbers in [0, 1], "
                f"got {self.min_share} and {self.max_share}."
            )
        if self.most < 1:
            raise MmsslError(f"at least 1 object must be tracked, got {self.most}.")

    def choose(self, ids: np.ndarray, names: dict[int, str]) -> list[int]:
        """Ids of the objects in a sequence, the largest first.

        Args:
            ids: int (T, H, W), what each pixel shows; below 0 is nothing.
            names: id -> name.
        """
        first = _count(ids[0])
        smallest, largest = self.min_share * ids[0].size, self.max_share * ids[0].size
        found = [k for k, n in first.items() if k >= 0 and smallest <= n <= largest]
        found = [k for k in found if not _BACKGROUND.search(names.get(k, ""))]
        least = {k: 1.0 for k in found}  # intersection over union with the first mask, where it is smallest
        for now in ids[1:]:
            there, kept = _count(now), _count(ids[0][ids[0] == now])
            for k in found:
                both = kept.get(k, 0)
                least[k] = min(least[k], both / (first[k] + there.get(k, 0) - both))
        moving = [k for k in found if least[k] < self.still]
        return sorted(moving, key=lambda k: -first[k])[: self.most]


def _count(ids: np.ndarray) -> dict[int, int]:
    return dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True)), strict=True))


class RecordedMasks(LabelledVideo):
    """One episode seen by one camera.

    Attributes:
        classes: "background" and the names of the tracked objects, in the order of their ids 0, 1, 2, ...
    """

    def __init__(self, file: RecordingFile, episode: int, camera: str, rule: ObjectRule):
        super().__init__(f"{file.task}/{episode}", file.lengths[file.episodes.index(episode)])
        self.file, self.episode, self.camera, self.rule = file, episode, camera, rule

    @cached_property
    def _objects(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """(geom id + 1 -> label id, names of the labels)."""
        geoms = self.file.column(self.episode, f"segmentation/{self.camera}")  # (T, H, W), -1 = nothing
        body_of, names = _bodies(self.file.metadata.get("geoms") or [], int(geoms.max()) + 1)
        chosen = self.rule.choose(body_of[geoms + 1], names)
        label = np.zeros(len(body_of), np.uint8)
        for number, body in enumerate(chosen):
            label[body_of == body] = number + 1
        return label, ("background", *(names[body] for body in chosen))

    @property
    def classes(self) -> tuple[str, ...]:
        return self._objects[1]

    def _frame(self, time: int) -> np.ndarray:
        frame = self.file.frame(self.episode, f"rgb/{self.camera}", time)
        if frame.ndim == 1:  # JPEG bytes, as Minari itself writes pictures
            return np.asarray(to_rgb(open_picture(frame.tobytes())))
        return frame

    def _labels(self, time: int) -> np.ndarray:
        return self._objects[0][self.file.frame(self.episode, f"segmentation/{self.camera}", time) + 1]


def _bodies(geoms: list[str], count: int) -> tuple[np.ndarray, dict[int, str]]:
    """(geom id + 1 -> body id, with -1 for "nothing"; body id -> name); a geom without a name is a body by itself."""
    owners = [re.sub(r"#\d+$", "", geom) for geom in geoms] + [f"geom {i}" for i in range(len(geoms), count)]
    number = {owner: k for k, owner in enumerate(dict.fromkeys(owners))}
    body_of = np.array([-1, *(number[owner] for owner in owners)])
    return body_of, {k: owner for owner, k in number.items()}


def recorded_sequences(
    folder: Path,
    split: str = DEFAULT_SPLIT,
    camera: str | None = None,
    test_every: int = 5,
    rule: ObjectRule | None = None,
) -> list[LabelledVideo]:
    """The episodes of a split of one recording in which something moves.

    Args:
        folder: of one Minari dataset.
        split: "test" (every `test_every`-th episode, as everywhere), "train" or "all"; "val" is "test".
        camera: its name; None for the first that has a segmentation.

    Raises:
        MmsslError: no segmentation, an unknown camera or split.
    """
    file = RecordingFile(folder)
    seen = [name for name in file.cameras if name in file.planes["segmentation"]]
    if not seen:
        raise MmsslError(
            f"the recording of {file.task} has no segmentation, which is the answer here; "
            f"record it with `mmssl record {file.task} --segmentation`."
        )
    if camera is not None and camera not in seen:
        raise unknown_name("camera with a segmentation", camera, seen)
    kept = split_episodes(len(file.lengths), "test" if split == "val" else split, test_every, file.task)
    rule = rule or ObjectRule()
    videos = [RecordedMasks(file, file.episodes[k], camera or seen[0], rule) for k in kept if file.lengths[k] > 1]
    return [video for video in videos if len(video.classes) > 1]
