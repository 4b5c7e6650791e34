"""webdataset shards: tar files of `<key>.jpg` (or png, webp, ...) with `<key>.txt`, `<key>.json`, `<key>.cls` beside.

Unlike the reader of webdataset, which streams, every sample is read from its own place, so that its order, resuming and
splits are those of any other dataset. That asks for a disk that is quick at random places; spinning ones are not. How
shards lie on disk is in `shards_files.py`.
"""

import logging
import multiprocessing
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmssl.data.decode import open_picture
from mmssl.data.folders import PathList, held_out
from mmssl.data.image_text import ImageTexts, share
from mmssl.data.shards_files import find_shards
from mmssl.data.shards_index import (
    IMAGE,
    JSON,
    NO_LABEL,
    TEXT,
    ShardIndex,
    captions,
    captions_in_json,
    kept_index,
    shard_index,
)
from mmssl.errors import MmsslError
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

log = logging.getLogger("mmssl.data")

_OPEN = 64  # shards that a process keeps open
_EACH = 8  # shards to walk for which another process is worth its start
_SILENCE = 10.0  # seconds between two lines of progress


class Shards(ImageTexts):
    """The samples of several tar files, one file after the other.

    Args:
        files: the tar files.
        indices: of each of them.
        places: int64 (N,) the samples that are meant, counted through all files.
        classes: names in label order; None for the numbers themselves.

    Attributes:
        damage: shard -> what is wrong with it, as the log says too; its good parts are used.
    """

    def __init__(
        self,
        name: str,
        files: list[Path],
        indices: list[ShardIndex],
        places: np.ndarray,
        classes: tuple[str, ...] | None,
        config: "DataConfig",
    ):
        self.files, self._handles = [str(file) for file in files], _Handles()
        self.damage = {str(f): _several(i.damage) for f, i in zip(files, indices, strict=True) if i.damage}
        for shard, reason in self.damage.items():
            log.warning("damaged shard, its good part is used: %s: %s", shard, reason)
        keys = [key for index in indices for key in index.keys]
        self._keys = PathList([keys[place] for place in places])
        self._shard = np.repeat(np.arange(len(indices), dtype=np.int32), [len(i) for i in indices])[places]
        self._offsets, self._sizes, self._captioned, self._class_ids = (
            np.concatenate([getattr(index, what) for index in indices])[places]
            for what in ("offsets", "sizes", "captioned", "labels")
        )
        super().__init__(name, config, share(self._offsets[:, IMAGE] >= 0), share(self._captioned))
        self._choose_classes(classes, max(int(i.labels.max(initial=NO_LABEL)) for i in indices), config)

    def _choose_classes(self, names: tuple[str, ...] | None, most: int, config: "DataConfig") -> None:
        """Labels where every sample has a `.cls`. `most` is the highest of all, so that held-out parts count alike."""
        labelled = bool((self._class_ids != NO_LABEL).all())
        self.choose_target({"class": "single_label"} if labelled else {}, config.target, "class" if labelled else None)
        if not labelled:
            if bool((self._class_ids != NO_LABEL).any()):
                log.warning("some samples of %r have no .cls with a number, so that it has no labels", self.name)
            return
        self.classes = list(names) if names else [str(k) for k in range(most + 1)]
        if most >= len(self.classes):
            raise MmsslError(
                f"the card of {self.name!r} lists {len(self.classes)} classes, but its shards have a .cls of {most}; "
                "the first class is 0."
            )

    def __len__(self) -> int:
        return len(self._keys)

    def sample_name(self, place: int) -> str:
        return f"{self.files[self._shard[place]]}/{self._keys[place]}"

    def key(self, place: int) -> str:
        """What the names of a sample's files have in common, as webdataset's `__key__`."""
        return self._keys[place]

    def has_picture(self, place: int) -> bool:
        return bool(self._offsets[place, IMAGE] >= 0)

    def picture(self, place: int) -> Image.Image:
        return open_picture(self.content(place, IMAGE))

    def caption(self, place: int) -> list[str]:
        if not self._captioned[place]:
            return []
        return captions(self.content(place, TEXT)) or captions_in_json(self.content(place, JSON))

    def content(self, place: int, part: int) -> bytes | None:
        """The bytes of one part of a sample, IMAGE, TEXT, JSON or CLASS; None where it has none. Raises OSError."""
        offset, size = int(self._offsets[place, part]), int(self._sizes[place, part])
        return None if offset < 0 else self._handles.read(self.files[self._shard[place]], offset, size)

    def _labels(self, target: str) -> Tensor:
        return torch.from_numpy(self._class_ids)


class _Handles:
    """The shards that this process has open. A process that was forked opens its own."""

    def __init__(self):
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()
        self._process, self._lock = os.getpid(), Lock()

    def __reduce__(self):
        return _Handles, ()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Raises OSError where there are fewer."""
        file = self._file(path)
        content = os.pread(file.fileno(), size, offset)
        if len(content) < size:
            raise OSError("the shard is shorter than it was when it was indexed")
        return content

    def _file(self, path: str) -> BinaryIO:
        with self._lock:  # the memory cache reads in threads; a file that is left out closes with its last user
            if self._process != os.getpid():
                self._files, self._process = OrderedDict(), os.getpid()
            file = self._files.pop(path, None) or open(path, "rb", buffering=0)  # noqa: SIM115
            self._files[path] = file
            if len(self._files) > _OPEN:
                self._files.popitem(last=False)
        return file


def _several(reasons: list[str]) -> str:
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return "; ".join(reasons[:5]) + more


@register_dataset("webdataset")
def open_webdataset(sources: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Shards:
    """Folders or patterns of shards, joined. Without `config.text` samples without a picture are left out."""
    files, indices, places, begin = [], [], [], 0
    for source in sources:
        found, chosen = find_shards(source.expanduser(), config.split)
        read = _indices(found)
        files, indices = files + found, indices + read
        places.append(begin + _places(read, config, chosen, source))
        begin += sum(map(len, read))
    name = card.name if card else "+".join(source.resolve().name for source in sources)
    return Shards(name, files, indices, np.concatenate(places), card.classes if card else None, config)


def _indices(files: list[Path]) -> list[ShardIndex]:
    """The index of each shard. Those that have none yet are walked, many of them by several processes."""
    found = {file: kept_index(file) for file in files}
    unknown = [file for file, index in found.items() if index is None]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(cores, len(unknown) // _EACH) if sys.platform == "linux" else 1
    if processes < 2:
        found.update(zip(unknown, _told(map(shard_index, unknown), len(unknown)), strict=True))
    else:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
            found.update(zip(unknown, _told(pool.map(shard_index, unknown, chunksize=4), len(unknown)), strict=True))
    return [found[file] for file in files]


def _told(indices: Iterable[ShardIndex], total: int) -> Iterator[ShardIndex]:
    """The same, with a line in the log now and then."""
    last = time.monotonic()
    for number, index in enumerate(indices):
        if time.monotonic() - last > _SILENCE:
            last = time.monotonic()
            log.info("looked into %d of %d shards for where their samples lie", number, total)
        yield index


def _places(indices: list[ShardIndex], config: "DataConfig", chosen: bool, source: Path) -> np.ndarray:
    """int64: which samples of some shards are meant, counted through them."""
    pictures = np.concatenate([index.offsets[:, IMAGE] >= 0 for index in indices])
    good = np.arange(len(pictures)) if config.text is not None else np.flatnonzero(pictures)
    if len(good) == 0:
        what = "sample with a picture or a text" if config.text is not None or not len(pictures) else "picture"
        hint = "set data.text to read texts alone" if len(pictures) else "a sample is KEY.jpg with KEY.txt or KEY.json"
        reasons = _several([reason for index in indices for reason in index.damage])
        raise MmsslError(f"the shards of {source} have no {what}{reasons and f' ({reasons})'}; {hint}.")
    if chosen or config.split == "all":
        return good
    if config.split not in ("train", "test"):
        raise MmsslError(
            f"{source} has no split {config.split!r}; valid: train, test (every {config.test_every}th sample), all."
        )
    test = np.array([held_out(k, len(good), config.test_every) for k in range(len(good))], bool)
    part = good[test == (config.split == "test")]
    if len(part) == 0:
        raise MmsslError(f"the {config.split} part of {source} is empty, it has {len(good)} sample(s); use split: all.")
    return part
