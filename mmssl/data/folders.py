"""What folders of images and folders of videos have in common: class folders, splits, and the part that is held out.

    root/<class>/file                   class folders
    root/file                           a flat folder
    root/train/..., root/val/...        either of the two, already split

Where a folder is not split, every fifth file of each class, in the order of their names, is the test part.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmssl.data import audio, decode, video
from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing", "eval", "evaluation")
_TEST_NAMES = ("val", "valid", "validation", "test", "testing", "eval", "evaluation")
Found = list[tuple[str, str | None]]  # (path, class name or None)


class PathList(Sequence):
    """Paths packed into one buffer: a list of a million strings is copied into every worker as soon as it is read."""

    def __init__(self, paths: list[str]):
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> str:
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        return os.fsdecode(self._bytes[self._ends[place] : self._ends[place + 1]].tobytes())


@dataclass(frozen=True)
class FileKind:
    """Which files of a folder count.

    Args:
        noun: what a message calls one, "image".
        extensions: with the dot, in small letters.
    """

    noun: str
    extensions: frozenset[str]

    def matches(self, name: str) -> bool:
        return not name.startswith(".") and os.path.splitext(name)[1].lower() in self.extensions

    def walk(self, folder: str | Path) -> Iterator[str]:
        """Files of this kind below a folder, in the order of their names."""
        for directory, names, files in os.walk(folder, followlinks=True):
            names[:] = sorted(name for name in names if not name.startswith("."))
            yield from (os.path.join(directory, file) for file in sorted(files) if self.matches(file))

    def below(self, root: Path) -> Found:
        """(file, class name or None) of all files, in the order of their names; classes are the folders of `root`."""
        entries = sorted(os.scandir(root), key=lambda e: e.name)
        folders = [e for e in entries if e.is_dir() and not e.name.startswith(".")]
        flat = [e.path for e in entries if self.matches(e.name) and e.is_file()]
        if not entries:
            raise MmsslError(f"the folder {root} is empty; give a folder of {self.noun}s, or of one folder a class.")
        inside = [(file, folder.name) for folder in folders for file in self.walk(folder.path)]
        if flat and inside:
            raise MmsslError(
                f"{root} holds both {self.noun}s and folders of {self.noun}s ({folders[0].name}); put every "
                f"{self.noun} in a class folder, or give a folder of {self.noun}s alone."
            )
        if not flat and not inside:
            kinds = " ".join(sorted(self.extensions))
            raise MmsslError(
                f"there is no {self.noun} in {root} or in its folders (looked for {kinds}); give a folder that has "
                "some."
            )
        return inside or [(file, None) for file in flat]


IMAGES = FileKind("image", frozenset(decode.EXTENSIONS))
VIDEOS = FileKind("video", frozenset(video.EXTENSIONS))
SOUNDS = FileKind("sound", frozenset(audio.EXTENSIONS))


def split_folders(root: Path) -> dict[str, Path]:
    """Split name -> folder, where every folder of `root` is called like a split; else nothing."""
    names = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    if names and all(name.lower() in SPLIT_NAMES for name in names):
        return {name: root / name for name in names}
    return {}


def choose_splits(names: Iterable[str], split: str, where: object) -> list[str]:
    """Names of a dataset's own splits that make up the wanted one.

    "train" is all that are not for testing, "test" the first of test, testing, val, valid, validation that is there.
    """
    names = list(names)
    if split == "all":
        return names
    if split in names:
        return [split]
    testing = sorted((n for n in names if n.lower() in _TEST_NAMES), key=lambda n: not n.lower().startswith("test"))
    wanted = {"train": [n for n in names if n not in testing], "test": testing[:1]}.get(split, [])
    if not wanted:
        raise MmsslError(f"{where} has no split {split!r}; valid: {', '.join([*names, 'all'])}.")
    return wanted


def split_files(root: Path, config: "DataConfig", below: Callable[[Path], Found], noun: str) -> Found:
    """(path, class name or None) of everything in the wanted split of `root`, as `below` lists a folder."""
    folders = split_folders(root)
    if not folders:
        return held_out_part(below(root), config, root, noun)
    return [pair for name in choose_splits(folders, config.split, root) for pair in below(folders[name])]


def held_out_part(pairs: Found, config: "DataConfig", root: object, noun: str) -> Found:
    """The wanted part of what is not split, see `held_out`."""
    split, every = config.split, config.test_every
    if split not in ("train", "test", "all"):
        raise MmsslError(f"{root} has no split {split!r}; valid: train, test (every {every}th {noun}), all.")
    if split == "all":
        return pairs
    by_class: dict[str | None, list] = {}
    for pair in pairs:
        by_class.setdefault(pair[1], []).append(pair)
    kept = []
    for members in by_class.values():
        kept.extend(p for k, p in enumerate(members) if held_out(k, len(members), every) == (split == "test"))
    if not kept:
        raise MmsslError(f"the {split} part of {root} is empty, it has {len(pairs)} {noun}(s); use split: all.")
    return kept


def held_out(place: int, n: int, every: int) -> bool:
    """True for the last of each `every` places, or for the last of all where there are fewer; a lone one is kept."""
    k = min(every, n)
    return k > 1 and place % k == k - 1


def class_folders(folders: list[Path], has_any: Callable[[str], bool]) -> list[str]:
    """Sorted names of the class folders of all splits, so that every split counts them alike.

    Args:
        has_any: True for the path of a folder that holds anything of the wanted kind.
    """
    names = set()
    for folder in folders:
        for root in split_folders(folder).values() or [folder]:
            here = [e for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")]
            names.update(e.name for e in here if has_any(e.path))
    return sorted(names)


def class_ids(name: str, found: Found, classes: list[str], card: "DatasetCard | None") -> tuple[list[int], list[str]]:
    """Class id of each file, and the class names in label order: the card's, else `classes`."""
    if card is not None and card.classes:
        classes = list(card.classes)
    number = {class_name: k for k, class_name in enumerate(classes)}
    if extra := sorted({class_name for _, class_name in found} - set(classes)):
        raise MmsslError(
            f"card {name!r} lists the classes {', '.join(classes)}, but its folder also has {', '.join(extra)}."
        )
    return [number[class_name] for _, class_name in found], classes
