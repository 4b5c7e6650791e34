"""Where each sample of a tar file lies, so that any of them can be read without those before it.

A tar file is walked once. What was found is kept in the cache, with the size and time of the file that it speaks of.
"""

import hashlib
import io
import json
import logging
import os
import tarfile
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmssl import paths
from mmssl.data.decode import UNREADABLE
from mmssl.data.image_text import clean
from mmssl.errors import MmsslError

log = logging.getLogger("mmssl.data")

IMAGE, TEXT, JSON, CLASS = range(4)  # what a member of a sample is
_FIELDS = {**dict.fromkeys(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "jp2", "avif"), IMAGE)}
_FIELDS |= {"txt": TEXT, "json": JSON, "cls": CLASS}
_CAPTION_KEYS = ("caption", "captions", "text", "texts")
_BLOCK = 512
_VERSION = 1
NO_LABEL = -1


@dataclass
class ShardIndex:
    """The samples of one tar file, in its order.

    Args:
        keys: what the names of a sample's members have in common, "train/0001".
        offsets: int64 (N, 4) of the content of picture, text, JSON and class of each; -1 where it has none.
        sizes: int64 (N, 4) in bytes.
        captioned: bool (N,), whether text or JSON hold a caption.
        labels: int64 (N,) class id; `NO_LABEL` for none.
        damage: what is wrong with the file, one sentence part each; its good parts are in the index.
    """

    keys: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    captioned: np.ndarray
    labels: np.ndarray
    damage: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)


def shard_index(path: Path) -> ShardIndex:
    """Walk a tar file, and keep its index in the cache.

    Raises:
        MmsslError: no file, no right to read it, or one that is compressed.
    """
    kept, stamp = _place(path)
    try:
        with open(path, "rb") as file:
            index = make_index(file)
    except OSError as error:
        raise MmsslError(f"the shard {path} cannot be read: {error.strerror or error}.") from None
    except tarfile.CompressionError:
        raise MmsslError(f"the shard {path} is compressed, so that its samples cannot be found; unpack it.") from None
    _keep(kept, stamp, index)
    return index


def kept_index(path: Path) -> ShardIndex | None:
    """The index in the cache, where there is one of this file as it is now. Raises `MmsslError` for no file."""
    kept, stamp = _place(path)
    with suppress(*UNREADABLE, zipfile.BadZipFile), np.load(kept, allow_pickle=False) as found:
        if np.array_equal(found["stamp"], stamp):
            keys, damage = (json.loads(found[name].tobytes()) for name in ("keys", "damage"))
            return ShardIndex(keys, *(found[name] for name in ("offsets", "sizes", "captioned", "labels")), damage)
    return None


def _place(path: Path) -> tuple[Path, np.ndarray]:
    """Where the index of a file is kept, and what tells this file from another of its name."""
    try:
        path = path.resolve()
        status = os.stat(path)
    except OSError as error:
        raise MmsslError(f"the shard {path} cannot be read: {error.strerror or error}.") from None
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    stamp = np.array([_VERSION, status.st_size, status.st_mtime_ns])
    return paths.cache_dir() / "shards" / f"{name}.npz", stamp


def make_index(file: BinaryIO) -> ShardIndex:
    """Walk a tar file. A damaged stretch is skipped up to the next member that is whole.

    Raises:
        tarfile.CompressionError: it is a compressed file.
    """
    if file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        raise tarfile.CompressionError
    size = file.seek(0, io.SEEK_END)
    samples, damage, start = _Samples(file), ["empty"] if size == 0 else [], 0
    while start < size:
        stop, reason = _walk(file, start, size, samples)
        if reason is None:
            break
        start = _next_member(file, stop, size)
        behind = f", the next {start - stop} bytes are skipped" if start < size else ""
        damage.append(f"{reason}{behind}")
    return samples.index([*damage, *samples.odd])


def _walk(file: BinaryIO, start: int, size: int, samples: "_Samples") -> tuple[int, str | None]:
    """Add members from `start` on: where it stopped, and why; None at the end of a whole file."""
    stop = start
    file.seek(start)
    try:
        with tarfile.TarFile(fileobj=file, mode="r") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # it would remember every one
                if member.isreg():
                    if member.offset_data + member.size > size:
                        return size, f"cut off inside {member.name}"
                    samples.add(member.name, member.offset_data, member.size)
                stop = tar.offset
    except (tarfile.TarError, ValueError):  # a first header, or what belongs to one, is bad; of others it says nothing
        return stop, f"no member at byte {stop}"
    file.seek(stop)
    end = file.read(_BLOCK)
    if not end:
        return size, "cut off, it has no end mark"
    return stop, None if end == bytes(_BLOCK) else f"no member at byte {stop}"


def _next_member(file: BinaryIO, start: int, size: int) -> int:
    """Where the next header lies after the bad block at `start`; `size` for none."""
    for place in range((start // _BLOCK + 1) * _BLOCK, size, _BLOCK):
        file.seek(place)
        block = file.read(_BLOCK)
        if block[257:262] == b"ustar":
            with suppress(tarfile.HeaderError):
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                return place
    return size


class _Samples:
    """Collects members into samples: those that follow one another and share a name up to its first dot."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._keys: list[str] = []
        self._rows: list[list[tuple[int, int]]] = []
        self._suffixes: set[str] = set()  # of the last sample
        self.odd: list[str] = []

    def add(self, name: str, offset: int, size: int) -> None:
        base = name.rpartition("/")[2]
        stem, dot, suffix = base.partition(".")
        if not stem or not dot:
            return
        key, suffix = name[: len(name) - len(base) + len(stem)], suffix.lower()
        if not self._keys or key != self._keys[-1]:
            self._keys.append(key)
            self._rows.append([(-1, 0)] * 4)
            self._suffixes = set()
        if suffix in self._suffixes:
            self.odd.append(f"{name} is there twice, the first one counts")
        elif (number := _FIELDS.get(suffix)) is not None and self._rows[-1][number][0] < 0:
            self._rows[-1][number] = (offset, size)
        self._suffixes.add(suffix)

    def index(self, damage: list[str]) -> ShardIndex:
        """All samples that have a picture or a caption."""
        table = np.array(self._rows, np.int64).reshape(-1, 4, 2)
        captioned = np.array([bool(self._captions(row)) for row in self._rows], bool)
        labels = np.array([self._label(*row[CLASS]) for row in self._rows], np.int64)
        good = np.flatnonzero((table[:, IMAGE, 0] >= 0) | (table[:, TEXT, 0] >= 0) | captioned)
        keys = [self._keys[k] for k in good]
        return ShardIndex(keys, table[good, :, 0], table[good, :, 1], captioned[good], labels[good], damage)

    def _content(self, offset: int, size: int) -> bytes | None:
        return os.pread(self._file.fileno(), size, offset) if offset >= 0 else None

    def _captions(self, row: list[tuple[int, int]]) -> bool:
        try:
            return bool(captions(self._content(*row[TEXT])) or captions_in_json(self._content(*row[JSON])))
        except ValueError:
            return True  # reading it will fail likewise, and name the sample

    def _label(self, offset: int, size: int) -> int:
        content = self._content(offset, size)
        try:
            return NO_LABEL if content is None else max(int(content), NO_LABEL)
        except ValueError:
            return NO_LABEL


def captions(text: bytes | None) -> list[str]:
    """The lines of a text that are not empty. Raises ValueError for what is no UTF-8."""
    lines = text.decode("utf-8-sig").splitlines() if text is not None else []
    return [caption for line in lines if (caption := clean(line))]


def captions_in_json(content: bytes | None) -> list[str]:
    """What JSON has under caption or text, a string or a list of them. Raises ValueError for what is no JSON."""
    fields = json.loads(content) if content is not None else None
    value = next((fields[k] for k in _CAPTION_KEYS if fields.get(k)), None) if isinstance(fields, dict) else None
    several = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [caption for one in several if isinstance(one, str) and (caption := clean(one))]


def _keep(kept: Path, stamp: np.ndarray, index: ShardIndex) -> None:
    """Write an index under a name of its own and rename it; where that is not possible it is made again next time."""
    packed = {name: np.frombuffer(json.dumps(getattr(index, name)).encode(), np.uint8) for name in ("keys", "damage")}
    planes = {name: getattr(index, name) for name in ("offsets", "sizes", "captioned", "labels")}
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, suffix=".tmp", delete=False) as file:
            np.savez(file, stamp=stamp, **packed, **planes)
        os.replace(file.name, kept)
    except OSError as error:
        log.info("the index of a shard is not kept, %s cannot be written: %s", kept, error)
