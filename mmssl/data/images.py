"""Folders of image files: class folders (with labels) or a flat folder (without).

    root/<class>/picture.jpg            class folders
    root/picture.jpg                    a flat folder
    root/train/..., root/val/...        either of the two, already split

Where the folder is not split, every fifth file of each class, in the order of their names, is the test part.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.decode import EXTENSIONS, open_picture
from mmssl.data.memory import PictureCache
from mmssl.errors import MmsslError
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")
_TEST_NAMES = ("val", "valid", "validation", "test", "testing")


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


class ImageFiles(Dataset):
    """Image files with an optional class each.

    Args:
        files: paths of the images.
        labels: class id of each file, or None.
        classes: class names in label order, or None.
    """

    def __init__(
        self, name: str, files: list[str], labels: list[int] | None, classes: list[str] | None, config: "DataConfig"
    ):
        self.files = PathList(files)
        fraction = 0.875 if config.crop_fraction is None else config.crop_fraction
        super().__init__(name, Geometry(config.image_size, fraction), config.max_bad)
        self._class_ids = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self.classes = classes
        labelled = labels is not None
        self.choose_target({"class": "single_label"} if labelled else {}, config.target, "class" if labelled else None)
        self._cache = PictureCache(name, len(files), self._open) if config.cache == "memory" else None

    def __len__(self) -> int:
        return len(self.files)

    def sample_name(self, place: int) -> str:
        return self.files[place]

    def read(self, place: int) -> dict:
        return {"image": self._cache.read(place) if self._cache else self._open(place)}

    def _open(self, place: int) -> Image.Image:
        return open_picture(self.files[place])

    def _labels(self, target: str) -> Tensor:
        return self._class_ids


@register_dataset("image_folder")
def open_image_folder(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Dataset:
    """Class folders or a flat folder, one or several joined. See the module's text for the layouts."""
    listed = [_split_files(folder, config) for folder in folders]
    files = [file for found in listed for file, _ in found]
    labelled = all(name is not None for found in listed for _, name in found)
    name = card.name if card else "+".join(folder.resolve().name for folder in folders)
    if not labelled:
        return ImageFiles(name, files, None, None, config)
    classes = list(card.classes) if card and card.classes else _class_names(folders)
    number = {class_name: k for k, class_name in enumerate(classes)}
    if extra := sorted({class_name for found in listed for _, class_name in found} - set(classes)):
        raise MmsslError(
            f"card {name!r} lists the classes {', '.join(classes)}, but its folder also has {', '.join(extra)}."
        )
    labels = [number[class_name] for found in listed for _, class_name in found]
    return ImageFiles(name, files, labels, classes, config)


def split_folders(root: Path) -> dict[str, Path]:
    """Split name -> folder, where every folder of `root` is called like a split; else nothing."""
    names = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    if names and all(name.lower() in SPLIT_NAMES for name in names):
        return {name: root / name for name in names}
    return {}


def _split_files(root: Path, config: "DataConfig") -> list[tuple[str, str | None]]:
    """(file, class name or None) of every image of the wanted split."""
    folders = split_folders(root)
    split = config.split
    if not folders:
        if split not in ("train", "test", "all"):
            raise MmsslError(
                f"{root} has no split {split!r}; valid: train, test (every {config.test_every}th image), all."
            )
        return _pick(_images_below(root), split, config.test_every, root)
    wanted = {"all": list(folders)}.get(split, [split] if split in folders else [])
    if not wanted and split == "train":
        wanted = [name for name in folders if name.lower() not in _TEST_NAMES]
    if not wanted and split == "test":
        wanted = sorted(
            (n for n in folders if n.lower() in _TEST_NAMES), key=lambda n: not n.lower().startswith("test")
        )[:1]
    if not wanted:
        raise MmsslError(f"{root} has no split {split!r}; valid: {', '.join([*folders, 'all'])}.")
    return [pair for name in wanted for pair in _images_below(folders[name])]


def _images_below(root: Path) -> list[tuple[str, str | None]]:
    """(file, class name or None) of all images, in the order of their names; classes are the folders of `root`."""
    entries = sorted(os.scandir(root), key=lambda e: e.name)
    folders = [e for e in entries if e.is_dir() and not e.name.startswith(".")]
    flat = [e.path for e in entries if _is_image(e.name) and e.is_file()]
    if not entries:
        raise MmsslError(f"the folder {root} is empty; give a folder of images, or of one folder a class.")
    inside = [(file, folder.name) for folder in folders for file in _walk(folder.path)]
    if flat and inside:
        raise MmsslError(
            f"{root} holds both images and folders of images ({folders[0].name}); put every image in a class "
            "folder, or give a folder of images alone."
        )
    if not flat and not inside:
        kinds = " ".join(sorted(EXTENSIONS))
        raise MmsslError(
            f"there is no image in {root} or in its folders (looked for {kinds}); give a folder that has some."
        )
    return inside or [(file, None) for file in flat]


def _walk(folder: str) -> Iterator[str]:
    """Image files below a folder, in the order of their names."""
    for directory, names, files in os.walk(folder, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from (os.path.join(directory, file) for file in sorted(files) if _is_image(file))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _pick(pairs: list, split: str, every: int, root: Path) -> list:
    """The wanted part of an unsplit folder, see `held_out`."""
    if split == "all":
        return pairs
    by_class: dict[str | None, list] = {}
    for pair in pairs:
        by_class.setdefault(pair[1], []).append(pair)
    kept = []
    for members in by_class.values():
        kept.extend(p for k, p in enumerate(members) if held_out(k, len(members), every) == (split == "test"))
    if not kept:
        raise MmsslError(f"the {split} part of {root} is empty, it has {len(pairs)} image(s); use split: all.")
    return kept


def held_out(place: int, n: int, every: int) -> bool:
    """True for the last of each `every` places, or for the last of all where there are fewer; a lone one is kept."""
    k = min(every, n)
    return k > 1 and place % k == k - 1


def _class_names(folders: list[Path]) -> list[str]:
    """Sorted names of the class folders of all splits, so that every split counts them alike."""
    names = set()
    for folder in folders:
        for root in split_folders(folder).values() or [folder]:
            here = [e for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")]
            names.update(e.name for e in here if next(_walk(e.path), None))
    return sorted(names)
