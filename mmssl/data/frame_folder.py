"""A folder of numbered pictures as one video, and trees of such folders.

root/<class>/<video>/picture.jpg    class folders
root/<video>/picture.jpg            no classes
root/train/..., root/val/...        either of the two, already split
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmssl.data.decode import open_picture, to_rgb, upright_size
from mmssl.data.folders import IMAGES, Found
from mmssl.data.video import Choose, Size, VideoFacts, VideoUnreadable
from mmssl.errors import MmsslError


def frame_files(folder: str) -> list[str]:
    """Paths of the pictures of a folder in the order of the numbers in their names.

    Raises:
        VideoUnreadable: no folder, or no picture in it.
    """
    try:
        names = [entry.name for entry in os.scandir(folder) if IMAGES.matches(entry.name)]
    except OSError as error:
        raise VideoUnreadable(f"the folder cannot be read: {error.strerror}") from None
    if not names:
        raise VideoUnreadable("there is no picture in the folder")
    return [os.path.join(folder, name) for name in sorted(names, key=_by_number)]


def _by_number(name: str) -> list[tuple[int, int, str]]:
    """Sorting key that puts frame_2 before frame_10."""
    return [(0, int(p), p) if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", os.path.splitext(name)[0]) if p]


def probe_frames(folder: str) -> VideoFacts:
    """Facts of a folder of pictures; its rate is unknown, 0."""
    files = frame_files(folder)
    return VideoFacts(len(files), *upright_size(open_picture(files[0])), 0.0)


def read_frames(folder: str, choose: Choose, size: Size = None) -> tuple[list[np.ndarray], VideoFacts]:
    """As `video.read_clips`, of a folder of pictures."""
    files = frame_files(folder)
    facts = VideoFacts(len(files), *upright_size(open_picture(files[0])), 0.0)
    clips = [np.asarray(clip, np.int64) for clip in choose(facts)]
    wanted = np.unique(np.concatenate(clips))
    size = size(facts) if callable(size) else size
    frames = np.stack([_read(files[k], facts, size) for k in wanted])
    return [frames[np.searchsorted(wanted, clip)] for clip in clips], facts


def _read(file: str, facts: VideoFacts, size: Sequence[int] | None) -> np.ndarray:
    """uint8 (H, W, 3) of one picture, at `size` where it is given."""
    picture = open_picture(file)
    if upright_size(picture) != (facts.height, facts.width):
        raise VideoUnreadable(
            f"{os.path.basename(file)} has {upright_size(picture)} pixels, the first frame {facts.height, facts.width}"
        )
    if size is None:
        return np.asarray(to_rgb(picture))
    if picture.format == "JPEG":  # decodes at a half, a quarter or an eighth, where that is enough
        scale = max(size[0] / facts.height, size[1] / facts.width)
        picture.draft(None, (math.ceil(picture.size[0] * scale), math.ceil(picture.size[1] * scale)))
    return np.asarray(to_rgb(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def folders_below(root: Path) -> Found:
    """(folder, class name or None) of every video below `root`, in the order of their names."""
    found: Found = []
    flat = False
    for name in _folders(root):
        inside = _folders(root / name)
        if inside:
            found.extend((os.path.join(root, name, video), name) for video in inside)
        elif holds_picture(root / name):
            found.append((os.path.join(root, name), None))
            flat = True
    if not found or not holds_picture(found[0][0]):
        raise MmsslError(
            f"there is no folder of frames in {root}; give root/<video>/<picture> or root/<class>/<video>/<picture>, "
            "or set clip to null to read the pictures one by one."
        )
    if flat and any(label is not None for _, label in found):
        raise MmsslError(
            f"{root} holds both folders of frames and folders of such folders; put every video in a class folder, or "
            "none."
        )
    return found


def _folders(root: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))


def holds_picture(folder: str | Path) -> bool:
    return any(IMAGES.matches(entry.name) for entry in os.scandir(folder))


def holds_folder(folder: str) -> bool:
    return bool(_folders(Path(folder)))
