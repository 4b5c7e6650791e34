"""Hugging Face tables with a column of captions (strings, or lists of them), with a column of pictures or without."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from mmssl.data.huggingface_columns import (
    LABEL_NAMES,
    class_names,
    filled,
    find_image_column,
    label_columns,
    open_cell,
    table_labels,
    text_column,
    undecoded,
)
from mmssl.data.image_text import ImageTexts, clean, share
from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from mmssl.data.loading import DataConfig


class HuggingFaceImageTexts(ImageTexts):
    """Rows of a `datasets.Dataset` with pictures, captions or both; rows that have neither are left out.

    Args:
        name: for reports.
        rows: the table.
        config: target, image_size, text, cache and so on.
        folder: against which relative paths of pictures are resolved.

    Raises:
        MmsslError: no column of captions that one could tell from others in a table without pictures, or nothing in it.
    """

    def __init__(self, name: str, rows: Any, config: "DataConfig", folder: Path):
        self.column = find_image_column(rows)
        self.text_column = text_column(rows, self.column, folder)
        there = [np.zeros(len(rows), bool) if c is None else filled(rows, c) for c in (self.column, self.text_column)]
        good = np.flatnonzero(there[0] | there[1])
        if len(good) == 0:
            raise MmsslError(f"the {config.split} split of {folder} has no image and no text in any of its rows.")
        self._rows = rows if len(good) == len(rows) else rows.select(good)
        self._places, (self._pictured, self._captioned) = good, (part[good] for part in there)
        self._pictures = None if self.column is None else undecoded(self._rows, self.column)
        self._texts = None if self.text_column is None else self._rows.select_columns([self.text_column])
        self._folder = folder
        super().__init__(name, config, share(self._pictured), share(self._captioned))
        self._meanings = label_columns(rows, self.column, self.text_column)
        default = next((n for n in LABEL_NAMES if n in self._meanings), None)
        self.choose_target(self._meanings, config.target, default)
        self.classes = class_names(self._rows, self.target) if self.task in ("single_label", "multi_label") else None

    def __len__(self) -> int:
        return len(self._rows)

    def sample_name(self, place: int) -> str:
        return f"{self._folder} row {self._places[place]}"

    def has_picture(self, place: int) -> bool:
        return bool(self._pictured[place])

    def picture(self, place: int) -> Image.Image:
        return open_cell(self._pictures[place][self.column], self._folder)

    def caption(self, place: int) -> list[str]:
        if not self._captioned[place]:
            return []
        cell = self._texts[place][self.text_column]
        several = [cell] if isinstance(cell, str) else cell
        return [caption for one in several if one and (caption := clean(one))]

    def _labels(self, target: str) -> Tensor:
        return table_labels(self._rows, target, self._meanings[target])
