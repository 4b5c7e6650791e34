"""Videos on disk, files or folders of frames, as clips: class folders (with labels) or a flat folder (without).

The layouts are those of `folders.py` and `frame_folder.py`; a list of files is read by `video_list.py`.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.data import video as decoder
from mmssl.data.child import in_child
from mmssl.data.clip_crops import ClipGeometry
from mmssl.data.clip_dataset import ClipDataset, Wanted
from mmssl.data.clips import frame_indices
from mmssl.data.decode import UNREADABLE
from mmssl.data.folders import VIDEOS, Found, PathList, class_folders, class_ids, split_files
from mmssl.data.frame_folder import folders_below, holds_folder, probe_frames, read_frames
from mmssl.errors import MmsslError
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

log = logging.getLogger("mmssl.data")

_LOOKED_AT = 8  # videos whose length is looked at before any work begins
_LOOK_SECONDS = 20.0
_AT_ONCE = 64  # frames that are held at once where a whole video is decoded


class VideoFiles(ClipDataset):
    """Clips of videos with an optional class and an optional text each.

    Args:
        files: paths of the videos; a folder is a video of the pictures in it.
        labels: class id of each video, or None.
        classes: class names in label order, or None.
        texts: what each video shows, "" for one without, or None. They are read where `config.text` is set.

    Raises:
        MmsslError: none of the videos is there, or all that were looked at are too short for what `config.clip` asks.
    """

    def __init__(
        self,
        name: str,
        files: list[str],
        labels: list[int] | None,
        classes: list[str] | None,
        config: "DataConfig",
        texts: list[str] | None = None,
    ):
        self.files = PathList(files)
        self._texts = None if texts is None else PathList(texts)
        if config.cache == "memory":
            raise MmsslError("cache: memory holds images and recordings; files of videos are decoded: use cache: none.")
        if config.cameras or config.extras:
            raise MmsslError(f"cameras and extras are of recordings; {name!r} holds files of videos; leave them out.")
        fraction = 1.0 if config.crop_fraction is None else config.crop_fraction
        super().__init__(name, ClipGeometry(config.image_size, fraction), len(files), config)
        self._class_ids = None if labels is None else torch.tensor(labels).repeat_interleave(self.views)
        self.classes = classes
        labelled = labels is not None
        self.choose_target({"class": "single_label"} if labelled else {}, config.target, "class" if labelled else None)
        if texts is not None:
            self.read_texts(config)
        self._look()

    def caption(self, place: int) -> list[str]:
        text = "" if self._texts is None else self._texts[place // self.views]
        return [text] if text else []

    def video_name(self, video: int) -> str:
        return self.files[video]

    def _labels(self, target: str) -> Tensor:
        return self._class_ids

    def read_clips(self, video: int, wanted: Sequence[Wanted]) -> list[dict[str, Tensor]]:
        path, cuts = self.files[video], [w.cut for w in wanted]
        which: list[int] = []  # the clip of each wanted one; several crops of one clip share its frames

        def choose(facts: decoder.VideoFacts) -> list[tuple[int, ...]]:
            frames = [tuple(self.frames_of(video, facts.frames, w)) for w in wanted]
            distinct = list(dict.fromkeys(frames))
            which[:] = [distinct.index(f) for f in frames]
            return distinct

        def size(facts: decoder.VideoFacts) -> tuple[int, int] | None:
            return self.geometry.decode_size((facts.height, facts.width), cuts, (1 + max(which)) * self.clip.frames)

        read = read_frames if os.path.isdir(path) else decoder.read_clips
        clips, facts = read(path, choose, size)
        seen = (facts.height, facts.width)
        return [self.geometry.cut({"video": clips[k]}, seen, cut) for k, cut in zip(which, cuts, strict=True)]

    def decode_whole(self, place: int) -> int:
        path = self.files[place // self.views]
        read, probe = (read_frames, probe_frames) if os.path.isdir(path) else (decoder.read_clips, decoder.probe)
        n = probe(path).frames
        frame_indices(self.clip, n)  # raises TooShort
        for start in range(0, n, _AT_ONCE):
            read(path, lambda facts, start=start: [range(start, min(start + _AT_ONCE, facts.frames))])
        return n

    def _look(self) -> None:
        """Stop before any work where no video is there, or where all that are looked at are too short."""
        some = [self.files[k] for k in np.unique(np.linspace(0, len(self.files) - 1, _LOOKED_AT).round().astype(int))]
        if not any(os.path.exists(path) for path in some):
            raise MmsslError(f"the videos of {self.name!r} are not there, e.g. {some[0]}; mend the paths or the list.")
        lengths = in_child(lambda: _lengths(some), _LOOK_SECONDS)
        if not lengths or max(lengths) >= self.clip.needed:
            return
        found = (
            f"all {len(lengths)} videos of {self.name!r} that were looked at are too short, the longest has "
            f"{max(lengths)} frames, but {self.clip.demand}; {self.clip.remedy}"
        )
        if self.clip.frame_by_frame or self.clip.short == "skip":
            raise MmsslError(found + ("." if self.clip.frame_by_frame else ", or set clip.short: pad."))
        log.warning("%s. Frames are repeated.", found)


def _lengths(paths: list[str]) -> list[int]:
    """Numbers of frames of the videos that can be read; the others are counted and named when their turn comes."""
    lengths = []
    for path in paths:
        try:
            lengths.append((probe_frames if os.path.isdir(path) else decoder.probe)(path).frames)
        except MmsslError:
            raise
        except UNREADABLE:
            continue
    return lengths


@register_dataset("video_folder")
def open_video_folder(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> VideoFiles:
    """Class folders or a flat folder of video files, one or several joined."""
    found = [pair for folder in folders for pair in split_files(folder, config, VIDEOS.below, VIDEOS.noun)]
    return _of_folders(found, folders, config, card, lambda folder: next(VIDEOS.walk(folder), None) is not None)


@register_dataset("frame_folder")
def open_frame_folder(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> VideoFiles:
    """Folders of frames, in class folders or not, one or several joined."""
    found = [pair for folder in folders for pair in split_files(folder, config, folders_below, VIDEOS.noun)]
    return _of_folders(found, folders, config, card, holds_folder)


def _of_folders(found: Found, folders: list[Path], config: "DataConfig", card, has_any) -> VideoFiles:
    files = [file for file, _ in found]
    name = card.name if card else "+".join(folder.resolve().name for folder in folders)
    if any(class_name is None for _, class_name in found):
        return VideoFiles(name, files, None, None, config)
    return VideoFiles(name, files, *class_ids(name, found, class_folders(folders, has_any), card), config)
