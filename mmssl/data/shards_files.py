"""Where shards lie: a folder of tar files, split or not, or a pattern of them.

root/00000.tar, root/00001.tar                  a folder of shards
root/train/00000.tar, root/val/00000.tar        split by folders
root/train-000.tar, root/val-000.tar            split by the names of the shards
root/train-{000..009}.tar                       some shards, by a pattern; also {a,b}, * and ?
"""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mmssl.data.folders import choose_splits, split_folders
from mmssl.errors import MmsslError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_SPLIT_IN_NAME = re.compile(r"(?:^|[-_.])(train|training|val|valid|validation|test)(?=[-_.]|$)", re.IGNORECASE)


def is_shards(source: str) -> bool:
    """True for one tar file, or a pattern of them."""
    return source.endswith(".tar") and (any(c in source for c in "{*?") or Path(source).expanduser().is_file())


def holds_shards(folder: Path) -> bool:
    """True where there are tar files in a folder or in its folders, compressed ones too (of which opening says so)."""
    return any(e.name.endswith((".tar", *_COMPRESSED)) for e in _files_of(folder, depth=2))


def _files_of(folder: Path, depth: int) -> Iterator[os.DirEntry]:
    """Files of a folder and of the folders down to `depth` below it, in the order of their names."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry
        elif depth and entry.is_dir():
            yield from _files_of(Path(entry.path), depth - 1)


def find_shards(source: Path, split: str) -> tuple[list[Path], bool]:
    """The tar files of a folder or a pattern, and whether they are of the wanted split already.

    Raises:
        MmsslError: none there, some of a pattern missing, or no such split.
    """
    if not source.is_dir():
        return _expanded(str(source)), False
    if folders := split_folders(source):
        return [f for name in choose_splits(folders, split, source) for f in _tars(folders[name])], True
    files = _tars(source)
    named: dict[str, list[Path]] = {}
    for file in files:
        found = _SPLIT_IN_NAME.search(file.stem)
        named.setdefault(found.group(1).lower() if found else "", []).append(file)
    if len(named) > 1 and "" not in named:
        return [file for name in choose_splits(named, split, source) for file in named[name]], True
    return files, False


def _tars(folder: Path) -> list[Path]:
    found = [entry.path for entry in _files_of(folder, depth=8)]
    files = [Path(path) for path in found if path.endswith(".tar")]
    if files:
        return files
    packed = next((path for path in found if path.endswith(_COMPRESSED)), None)
    if packed:
        raise MmsslError(f"the shards of {folder} are compressed ({Path(packed).name}); unpack them to .tar.")
    raise MmsslError(f"there is no shard (.tar) in {folder}; give a folder that has some, or a pattern.")


def _expanded(pattern: str) -> list[Path]:
    """The files of a pattern, with {000..009}, {a,b}, * and ? as in a shell."""
    found = []
    for one in _braces(pattern):
        matched = sorted(glob.glob(one)) if any(c in one for c in "*?[") else [one]
        found.extend(matched)
    missing = [file for file in found if not os.path.isfile(file)]
    if missing or not found:
        there = f"{len(missing)} of its {len(found)} shards are missing, e.g. {missing[0]}" if found else "no file fits"
        raise MmsslError(f"{pattern}: {there}; give a pattern of tar files that are there.")
    return [Path(file) for file in found]


def _braces(pattern: str) -> list[str]:
    """{000..009} counts with as many digits as it is written with, {a,b} lists; several of them multiply."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    if counted := re.fullmatch(r"(\d+)\.\.(\d+)", found.group(1)):
        first, last = counted.groups()
        middle = [f"{k:0{len(first)}d}" for k in range(int(first), int(last) + 1)]
    else:
        middle = found.group(1).split(",")
    return [whole for part in middle for whole in _braces(f"{before}{part}{after}")]
