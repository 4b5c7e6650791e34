"""Tables of pictures and captions: CSV, TSV, JSON lines or Parquet, with a path and a caption a row.

    image,caption,label,split           names that are understood: see `caption_tables.py`; one of the two is enough
    cats/1.jpg,a cat on a mat,,train
    cats/1.jpg,a small cat,,train       rows with the same picture are one sample with several captions
    ,a sentence alone,,train            either may be empty

A path is relative to the table's folder (or to `images` in it), to a card's `root`, or absolute. Without a column
`split`, every fifth sample is the test part.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from mmssl.data.caption_tables import SUFFIXES, CaptionTable, lists_captions, read_table
from mmssl.data.cards import how
from mmssl.data.decode import open_picture
from mmssl.data.folders import PathList, choose_splits, class_ids, held_out_part
from mmssl.data.image_text import Captions, ImageTexts, share
from mmssl.errors import MmsslError
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

__all__ = ["SUFFIXES", "CaptionedRows", "lists_captions"]

log = logging.getLogger("mmssl.data")

_TRIED = 100  # rows by which the pictures' folder is found


class CaptionedRows(ImageTexts):
    """Pictures and captions that a table pairs.

    Args:
        table: its rows, with full paths and one row a sample.
        labels: class id of each, or None.
        classes: class names in label order, or None.
    """

    def __init__(
        self,
        name: str,
        table: CaptionTable,
        labels: list[int] | None,
        classes: list[str] | None,
        config: "DataConfig",
    ):
        self.files, self.captions = PathList(table.images), Captions(table.captions)
        super().__init__(name, config, share(list(map(bool, table.images))), share(list(map(bool, table.captions))))
        self._class_ids = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self.classes = classes
        labelled = labels is not None
        self.choose_target({"class": "single_label"} if labelled else {}, config.target, "class" if labelled else None)

    def __len__(self) -> int:
        return len(self.files)

    def sample_name(self, place: int) -> str:
        return self.files[place] or super().sample_name(place)

    def has_picture(self, place: int) -> bool:
        return bool(self.files[place])

    def picture(self, place: int) -> Image.Image:
        return open_picture(self.files[place])

    def caption(self, place: int) -> list[str]:
        return self.captions[place]

    def _labels(self, target: str) -> Tensor:
        return self._class_ids


@register_dataset("image_text_table")
def open_image_text_table(files: list[Path], config: "DataConfig", card: "DatasetCard | None") -> CaptionedRows:
    """One or several tables joined, or a card's tables, one a split."""
    name = card.name if card else "+".join(file.stem for file in files)
    lists = _lists_of(card, files[0]) if card and card.lists else {str(file): file for file in files}
    root = files[0] / card.root if card and card.root is not None else None
    tables = {key: _samples(file, read_table(file), root, config.text is not None) for key, file in lists.items()}
    if card and len(tables) > 1:
        parts = [tables[split] for split in choose_splits(tables, config.split, f"card {name!r}")]
    else:
        parts = [_part(table, config, lists[key]) for key, table in tables.items()]
    chosen = _joined(parts)
    if chosen.labels is None:
        return CaptionedRows(name, chosen, None, None, config)
    every = {label for table in tables.values() for label in table.labels or ()}
    found = list(zip(chosen.images, chosen.labels, strict=True))
    return CaptionedRows(name, chosen, *class_ids(name, found, sorted(every, key=_by_number), card), config)


def _by_number(label: str) -> tuple[int, str]:
    return (int(label) if label.isdigit() else 1 << 31, label)


def _lists_of(card: "DatasetCard", folder: Path) -> dict[str, Path]:
    """Split -> its table."""
    for file in card.lists.values():
        if not (folder / file).is_file():
            raise MmsslError(f"card {card.name!r}: there is no table {folder / file}. {how(card)}")
    return {split: folder / file for split, file in card.lists.items()}


def _samples(file: Path, table: CaptionTable, root: Path | None, alone: bool) -> CaptionTable:
    """One row a sample, with full paths: captions of one picture together, and rows without anything left out.

    Args:
        alone: whether captions without a picture are samples.
    """
    folder = _folder(file, table.images) if root is None else root
    first: dict[str, int] = {}  # picture -> its row
    kept, without = [], 0
    for row, image in enumerate(table.images):
        if image in first:
            table.captions[first[image]] += table.captions[row]
        elif image or (alone and table.captions[row]):
            kept.append(row)
            if image:
                first[image] = row
        else:
            without += 1
    if without:
        what = "a picture or a caption" if alone else "a picture"
        log.warning("%d of the %d rows of %s have not %s, and are left out", without, len(table.images), file, what)
    if not kept:
        hint = " or a caption" if alone else "; set data.text to read its captions alone"
        raise MmsslError(f"no row of {file} has a picture{hint}.")
    images = [os.path.join(folder, table.images[row]) if table.images[row] else "" for row in kept]
    return _take(CaptionTable(images, table.captions, table.labels, table.splits), kept, images)


def _folder(file: Path, images: list[str]) -> Path:
    """What paths are relative to: the table's folder or `images` in it, as the first rows tell."""
    tried = [image for image in images[:_TRIED] if image]
    folders = (file.parent, file.parent / "images")
    return next((f for f in folders if any((f / image).exists() for image in tried)), file.parent)


def _take(table: CaptionTable, rows: list[int], images: list[str] | None = None) -> CaptionTable:
    """Some rows of a table; `images` are theirs already."""
    images = [table.images[row] for row in rows] if images is None else images
    labels = None if table.labels is None else [table.labels[row] for row in rows]
    return CaptionTable(images, [table.captions[row] for row in rows], labels, [table.splits[row] for row in rows])


def _part(table: CaptionTable, config: "DataConfig", file: Path) -> CaptionTable:
    """The rows of the wanted split."""
    splits = list(dict.fromkeys(split for split in table.splits if split))
    if splits:
        chosen = choose_splits(splits, config.split, f"table {file}")
        rows = [k for k, split in enumerate(table.splits) if config.split == "all" or split in chosen]
    else:
        labels = table.labels or [None] * len(table.images)
        rows = sorted(row for row, _ in held_out_part(list(enumerate(labels)), config, file, "sample"))
    return _take(table, rows)


def _joined(tables: list[CaptionTable]) -> CaptionTable:
    labels = None
    if all(table.labels is not None for table in tables):
        labels = [label for table in tables for label in table.labels]
    return CaptionTable(
        [image for table in tables for image in table.images],
        [several for table in tables for several in table.captions],
        labels,
        [split for table in tables for split in table.splits],
    )
