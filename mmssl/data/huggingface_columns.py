"""The columns of a Hugging Face table: which hold pictures, captions and labels, and what stands in them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmssl.data.decode import open_picture
from mmssl.errors import MmsslError

LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "category")
_PICTURE = ("bytes", "path")
_PATH_NAMES = ("image", "image_path", "file_name")
_TEXT_NAMES = ("caption", "captions", "text", "texts", "sentence", "sentences", "description", "descriptions")


def datasets_package() -> Any:
    """The package `datasets`; an `MmsslError` where it is not installed."""
    try:
        import datasets
    except ImportError:
        raise MmsslError('reading this folder needs datasets; install it with `pip install "mmssl[hub]"`.') from None
    return datasets


def find_image_column(rows: Any) -> str | None:
    """Name of the column of pictures: of type Image, or a struct of bytes and path."""
    for name, feature in rows.features.items():
        if type(feature).__name__ == "Image" or (isinstance(feature, dict) and "bytes" in feature):
            return name
    return None


def image_column(rows: Any, folder: Path) -> str:
    """As `find_image_column`; an `MmsslError` where there is none."""
    name = find_image_column(rows)
    if name is None:
        raise MmsslError(
            f"{folder} has no image column, only {', '.join(rows.features)}; save it with a column of type Image."
        )
    return name


def text_column(rows: Any, image: str | None, folder: Path) -> str | None:
    """Name of the column of captions: strings, or a list of them, called caption, text or the like.

    A table of texts alone may call its only column of strings as it likes.

    Raises:
        MmsslError: no pictures but their paths; or none, and no column of strings, or several without such a name.
    """
    strings = [name for name, feature in rows.features.items() if _is_text(feature)]
    found = next((name for wanted in _TEXT_NAMES for name in strings if name.lower() == wanted), None)
    found = found or next((name for name in strings if "caption" in name.lower()), None)
    if image is not None:
        return found
    if path := next((name for name in strings if name.lower() in _PATH_NAMES), None):
        raise MmsslError(
            f"{folder} has paths of pictures, in the column {path}, and no column of type Image; give its .parquet or "
            ".csv file itself, which is read as a table of pictures and captions."
        )
    if found is not None:
        return found
    if len(strings) == 1:
        return strings[0]
    names = ", ".join(rows.features)
    what = f"{len(strings)} columns of strings" if strings else "neither an image column nor one of strings"
    raise MmsslError(f"{folder} has {what} (its columns: {names}); call the one of captions caption or text.")


def _is_text(feature: Any) -> bool:
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
    return not hasattr(inner, "names") and str(getattr(inner, "dtype", "")) in ("string", "large_string")


def filled(rows: Any, column: str) -> np.ndarray:
    """bool (N,): which rows have a picture or a caption in this column. Reads no picture."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = rows.data.column(column)
    if pa.types.is_struct(cells.type):
        parts = [pc.struct_field(cells, k) for k in range(cells.type.num_fields) if cells.type[k].name in _PICTURE]
        there = np.logical_or.reduce([_any(pc.greater(pc.binary_length(part), 0)) for part in parts])
    elif pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
        there = np.concatenate([_any_of_list(chunk) for chunk in cells.chunks])
    else:
        there = _any(_has_words(cells))
    # A table of which rows were chosen holds all of them still, and the numbers of those that count.
    return there if rows._indices is None else there[rows._indices.column(0).to_numpy()]


def _any(cells: Any) -> np.ndarray:
    """bool (N,) of booleans with gaps."""
    return cells.fill_null(False).to_numpy(zero_copy_only=False).astype(bool)


def _has_words(cells: Any) -> Any:
    import pyarrow.compute as pc

    return pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(cells)), 0)


def _any_of_list(cells: Any) -> np.ndarray:
    import pyarrow.compute as pc

    parents = pc.list_parent_indices(cells).to_numpy()
    words = _has_words(pc.list_flatten(cells)).fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
    return np.bincount(parents[words], minlength=len(cells)) > 0


def undecoded(rows: Any, column: str) -> Any:
    """The table with nothing but its pictures, as {"bytes", "path"}."""
    only = rows.select_columns([column])
    if type(rows.features[column]).__name__ == "Image":
        return only.cast_column(column, datasets_package().Image(decode=False))
    return only


def open_cell(cell: dict | None, folder: Path) -> Image.Image:
    """The picture of one cell {"bytes", "path"}; a path is relative to `folder`. Raises ValueError for an empty one."""
    if cell is None:
        raise ValueError("the row has no image")
    if cell.get("bytes"):
        return open_picture(cell["bytes"])
    if not cell.get("path"):
        raise ValueError("the row has neither bytes nor a path")
    return open_picture(folder / cell["path"])  # an absolute path stays as it is


def label_columns(rows: Any, *others: str | None) -> dict[str, str]:
    """Column name -> what it means as a label, for every column that can be one and is none of the others."""
    meanings = {}
    for name, feature in rows.features.items():
        inner = getattr(feature, "feature", None)
        dtype = str(getattr(feature, "dtype", ""))
        if name in others:
            continue
        if hasattr(feature, "names") or re.match(r"u?int|bool|string|large_string", dtype):
            meanings[name] = "single_label"
        elif inner is not None and hasattr(inner, "names"):
            meanings[name] = "multi_label"
        elif "float" in dtype or (inner is not None and "float" in str(getattr(inner, "dtype", ""))):
            meanings[name] = "regression"
    return meanings


def class_names(rows: Any, target: str) -> list[str]:
    """Names of the classes of a column in label order: its own, else its values, sorted."""
    feature = rows.features[target]
    feature = getattr(feature, "feature", feature)
    if getattr(feature, "names", None):
        return list(feature.names)
    return [str(value) for value in sorted(set(rows[target][:]))]


def table_labels(rows: Any, target: str, meaning: str) -> Tensor:
    """Labels of all rows from one column: int64 (N,), or float32 (N, K) for several labels and for numbers."""
    values = rows[target][:]
    if meaning == "regression":
        return torch.tensor(np.asarray(values, dtype=np.float32)).reshape(len(rows), -1)
    names = class_names(rows, target)
    if meaning == "multi_label":
        labels = torch.zeros(len(rows), len(names))
        for row, present in enumerate(values):
            labels[row, present] = 1.0
        return labels
    if hasattr(rows.features[target], "names"):
        return torch.tensor(values, dtype=torch.int64)
    number = {name: k for k, name in enumerate(names)}
    return torch.tensor([number[str(value)] for value in values], dtype=torch.int64)
