"""JHMDB (Jhuang et al. 2013): 15 joints of a person in every frame of short videos.

<root>/Rename_Images/<action>/<video>/00001.png
<root>/joint_positions/<action>/<video>/joint_positions.mat     `pos_img` (2, 15, T): x and y, counted from 1
<root>/splits/<action>_test_split1.txt                          `<video>.avi 1` (train) or `2` (test), one a line
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmssl.data.dataset import Dataset
from mmssl.data.labelled_videos import LabelledFrames, LabelledVideo, PictureSequence, unreadable
from mmssl.errors import MmsslError, unknown_name
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

DEFAULT_SPLIT = "test"
_HOME = "http://jhmdb.is.tue.mpg.de"
_SUFFIX = "_test_split1"
JOINTS = (
    "neck", "belly", "face", "right shoulder", "left shoulder", "right hip", "left hip", "right elbow", "left elbow",
    "right knee", "left knee", "right wrist", "left wrist", "right ankle", "left ankle",
)  # fmt: skip


class JointSequence(PictureSequence):
    """Frames with the joints of one person; the end of a video that is longer than its annotation has no labels."""

    kind = "keypoints"
    classes = JOINTS

    def __init__(self, name: str, folder: Path, file: Path):
        numbered = [picture for picture in folder.glob("*.png") if picture.stem.isdigit()]
        super().__init__(name, folder, sorted(numbered, key=lambda picture: int(picture.stem)))
        self.file = file

    @cached_property
    def joints(self) -> np.ndarray:
        """float32 (T, 15, 2): x and y in pixels, counted from 0."""
        from scipy.io import loadmat

        try:
            found = loadmat(self.file)["pos_img"]  # (2, 15, T)
        except Exception as error:  # scipy raises anything for a damaged file
            raise unreadable(self.file, self.name, error) from None
        if found.ndim != 3 or found.shape[:2] != (2, len(JOINTS)):
            raise MmsslError(
                f"{self.file} holds pos_img of shape {found.shape}; it must be (2, {len(JOINTS)}, frames)."
            )
        return found.transpose(2, 1, 0).astype(np.float32) - 1

    def _labels(self, time: int) -> np.ndarray | None:
        return self.joints[time] if time < len(self.joints) else None


def is_jhmdb(root: Path) -> bool:
    return (root / "joint_positions").is_dir()


def jhmdb_sequences(root: Path, split: str = DEFAULT_SPLIT) -> list[LabelledVideo]:
    """The videos of a split of JHMDB, sorted by action and name.

    Args:
        root: the folder that holds Rename_Images, joint_positions and splits.
        split: "train" or "test" of the first of the three official splits ("val" is "test"), or "all" videos.

    Raises:
        MmsslError: a folder is missing, an unknown split, a video without frames.
    """
    pictures, joints = root / "Rename_Images", root / "joint_positions"
    for folder in (pictures, joints):
        if not folder.is_dir():
            raise MmsslError(f"there is no folder {folder}; get Rename_Images and joint_positions from {_HOME}.")
    wanted = {"train": "1", "test": "2", "val": "2", "all": None}
    if split not in wanted:
        raise unknown_name("split of JHMDB", split, wanted)
    chosen = None if split == "all" else _listed(root / "splits", wanted[split])
    files = sorted(joints.glob("*/*/joint_positions.mat"))
    files = [file for file in files if chosen is None or (file.parent.parent.name, file.parent.name) in chosen]
    if not files:
        raise MmsslError(f"{joints} holds no joint_positions.mat of the split {split!r}; unpack it again.")
    places = [file.parent.relative_to(joints) for file in files]
    return [JointSequence(p.as_posix(), pictures / p, f) for p, f in zip(places, files, strict=True)]


def _listed(folder: Path, code: str) -> set[tuple[str, str]]:
    """(action, video) of all lines of the first split that end with `code`."""
    lists = sorted(folder.glob(f"*{_SUFFIX}.txt"))
    if not lists:
        raise MmsslError(f"{folder} holds no list *{_SUFFIX}.txt; get splits from {_HOME}, or use split: all.")
    found = set()
    for file in lists:
        rows = (line.split() for line in file.read_text().splitlines() if line.strip())
        found |= {(file.stem.removesuffix(_SUFFIX), row[0].removesuffix(".avi")) for row in rows if row[-1] == code}
    return found


@register_dataset("jhmdb")
def open_jhmdb(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Dataset:
    """The frames of JHMDB as single images."""
    videos = [video for folder in folders for video in jhmdb_sequences(folder, config.split)]
    return LabelledFrames(card.name if card else "jhmdb", videos, config)
