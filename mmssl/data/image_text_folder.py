"""Folders of pictures with captions beside them: `a.jpg` and `a.txt`, one caption a line.

The layouts are those of `folders.py`: class folders, a flat folder, or either of them below train/, val/. A picture
without captions and captions without a picture are samples too, the latter where text is asked for.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from mmssl.data.decode import open_picture
from mmssl.data.folders import IMAGES, Found, PathList, class_folders, class_ids, split_files
from mmssl.data.image_text import ImageTexts, clean, share
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

SUFFIX = ".txt"
# Of files that lie beside data these are about it, and no captions.
_NOTES = ("readme", "license", "licence", "copying", "attribution", "notice", "changelog", "classes", "labels")


class CaptionedFiles(ImageTexts):
    """Picture files with their captions beside them.

    Args:
        files: path of each sample: its picture, or its captions where it has none.
        captioned: whether there is a file of captions for each.
        labels: class id of each, or None.
        classes: class names in label order, or None.
    """

    def __init__(
        self,
        name: str,
        files: list[str],
        captioned: list[bool],
        labels: list[int] | None,
        classes: list[str] | None,
        config: "DataConfig",
    ):
        self.files = PathList(files)
        self._captioned = torch.tensor(captioned, dtype=torch.bool)
        # A file of captions may prove empty, so that where there are any, some samples may have none.
        texts = "some" if any(captioned) else "none"
        super().__init__(name, config, share([not file.endswith(SUFFIX) for file in files]), texts)
        self._class_ids = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self.classes = classes
        labelled = labels is not None
        self.choose_target({"class": "single_label"} if labelled else {}, config.target, "class" if labelled else None)

    def __len__(self) -> int:
        return len(self.files)

    def sample_name(self, place: int) -> str:
        return self.files[place]

    def has_picture(self, place: int) -> bool:
        return not self.files[place].endswith(SUFFIX)

    def picture(self, place: int) -> Image.Image:
        return open_picture(self.files[place])

    def caption(self, place: int) -> list[str]:
        return read_captions(caption_file(self.files[place])) if self._captioned[place] else []

    def _labels(self, target: str) -> Tensor:
        return self._class_ids


def caption_file(path: str) -> str:
    """Where the captions of a picture lie."""
    return os.path.splitext(path)[0] + SUFFIX


def read_captions(path: str) -> list[str]:
    """The lines of a file that are not empty. Raises OSError, or ValueError for what is not UTF-8."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [caption for line in file if (caption := clean(line))]
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise ValueError(f"its captions {os.path.basename(path)} are not UTF-8 (byte 0x{wrong:02x})") from None


class _Listing:
    """Walks folders for samples, and remembers the files of captions that it met.

    Args:
        alone: whether captions without a picture are samples.
    """

    def __init__(self, alone: bool):
        self.alone, self.captions = alone, set()

    def below(self, root: Path) -> Found:
        """(path of the picture, or of captions alone; class name or None), as `FileKind.below`."""
        entries = sorted(os.scandir(root), key=lambda e: e.name)
        loose = self._samples(str(root), [e.name for e in entries if e.is_file()])
        folders = [e for e in entries if e.is_dir() and not e.name.startswith(".")]
        inside = [(path, folder.name) for folder in folders for path in self.walk(folder.path)]
        if inside and not any(IMAGES.matches(os.path.basename(path)) for path in loose):
            return inside  # a text beside class folders is a note on them
        if loose and not inside:
            return [(path, None) for path in loose]
        return IMAGES.below(root)  # which says what is wrong

    def walk(self, folder: str) -> Iterator[str]:
        """All samples below a folder, in the order of their names."""
        for directory, names, files in os.walk(folder, followlinks=True):
            names[:] = sorted(name for name in names if not name.startswith("."))
            yield from self._samples(directory, files)

    def _samples(self, directory: str, files: list[str]) -> list[str]:
        """Paths of the samples among the files of one folder; captions of a picture belong to it."""
        pictures = [file for file in files if IMAGES.matches(file)]
        texts = {file for file in files if file.endswith(SUFFIX) and not file.startswith(".")}
        self.captions.update(os.path.join(directory, file) for file in texts)
        alone = sorted(texts - {caption_file(file) for file in pictures}) if self.alone else []
        alone = [file for file in alone if not file.lower().startswith(_NOTES)]
        return [os.path.join(directory, file) for file in sorted([*pictures, *alone])]


def has_captions(folder: Path) -> bool:
    """True where the first folder, at or below this one, that holds pictures also holds captions of some of them."""
    for _, names, files in os.walk(folder, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith("."))
        pictures = {caption_file(file) for file in files if IMAGES.matches(file)}
        if pictures:
            return not pictures.isdisjoint(files)
    return False


@register_dataset("image_text_folder")
def open_image_text_folder(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> CaptionedFiles:
    """Class folders or a flat folder, one or several joined."""
    listing = _Listing(alone=config.text is not None)
    found = [pair for folder in folders for pair in split_files(folder, config, listing.below, "sample")]
    files = [file for file, _ in found]
    captioned = [caption_file(file) in listing.captions for file in files]
    name = card.name if card else "+".join(folder.resolve().name for folder in folders)
    if any(class_name is None for _, class_name in found):
        return CaptionedFiles(name, files, captioned, None, None, config)
    classes = class_folders(folders, lambda folder: next(listing.walk(folder), None) is not None)
    return CaptionedFiles(name, files, captioned, *class_ids(name, found, classes, card), config)
