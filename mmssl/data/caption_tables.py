"""Tables of pictures and captions as they are written: CSV, TSV, JSON lines, Parquet; see `image_text_table.py`."""

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.data.folders import IMAGES, SOUNDS, VIDEOS
from mmssl.data.image_text import clean
from mmssl.errors import MmsslError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGE_COLUMNS = ("image", "file", "file_name", "filename", "path", "filepath", "image_path")
TEXT_COLUMNS = ("text", "caption", "captions", "title")
_LABEL_COLUMNS = ("label", "class", "category")
_LOOKED_AT = 100  # rows that a column is judged by
_ADDRESS = re.compile(r"\w+://")


@dataclass
class CaptionTable:
    """Columns of a table, one entry a row.

    Args:
        images: path of the picture as it is written, "" for none.
        captions: captions, [] for none.
        labels: class of each row as it is written, or None where some or all have none.
        splits: part of the data that a row belongs to, "" for none.
    """

    images: list[str]
    captions: list[list[str]]
    labels: list[str] | None
    splits: list[str]


def lists_captions(file: Path, asked: bool = False) -> bool:
    """True where a CSV or TSV file names neither videos nor sounds in its first lines and has a column of captions.

    Args:
        asked: whether text is asked for, so that no such column is needed.
    """
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as text:
            lines = [line.strip() for _, line in zip(range(20), text, strict=False)]
    except OSError:
        return False
    fields = [field.strip(" \"'").lower() for line in lines for field in (*re.split(r"[,\t]", line), *line.split()[:1])]
    header = re.split(r"[,\t]", lines[0].lower()) if lines else []
    others = any(kind.matches(os.path.basename(field)) for kind in (VIDEOS, SOUNDS) for field in fields)
    return not others and (asked or any(name.strip(" \"'") in TEXT_COLUMNS for name in header))


def read_table(file: Path) -> CaptionTable:
    """All rows.

    Raises:
        MmsslError: no rows, no column of pictures or captions, or a row that cannot be read.
    """
    readers = {".jsonl": _from_json_lines, ".parquet": _from_parquet}
    try:
        columns = readers.get(file.suffix.lower(), _from_csv)(file)
    except OSError as error:
        raise MmsslError(f"the table {file} cannot be read: {error}.") from None
    except UnicodeDecodeError as error:
        wrong = f"the byte 0x{error.object[error.start]:02x}"
        raise MmsslError(f"the table {file} is not UTF-8 (it holds {wrong}); save it as UTF-8.") from None
    n = max(map(len, columns.values()), default=0)
    if n == 0:
        raise MmsslError(f"the table {file} is empty; give it columns such as image,caption and a row a sample.")
    image, text = _find_columns(file, columns)
    images = [_path(file, k, value) for k, value in enumerate(columns.get(image, [None] * n), 1)]
    captions = [_captions(file, k, value) for k, value in enumerate(columns.get(text, [None] * n), 1)]
    label = next((name for name in _LABEL_COLUMNS if name in columns), None)
    labels = ["" if value is None else str(value).strip() for value in columns.get(label, [])]
    splits = ["" if value is None else str(value).strip() for value in columns.get("split", [None] * n)]
    return CaptionTable(images, captions, labels if labels and all(labels) else None, splits)


def _find_columns(file: Path, columns: dict[str, list]) -> tuple[str | None, str | None]:
    """Names of the columns of pictures and of captions; None for one that is not there."""
    image = next((name for name in IMAGE_COLUMNS if name in columns), None)
    text = next((name for name in TEXT_COLUMNS if name in columns), None)
    if image is None and text is None:
        raise MmsslError(
            f"the table {file} has neither a column of pictures ({', '.join(IMAGE_COLUMNS)}) nor one of captions "
            f"({', '.join(TEXT_COLUMNS)}), only {', '.join(columns)}; give it a header with such names."
        )
    if image is None:
        for name, values in columns.items():
            if any(isinstance(v, str) and IMAGES.matches(os.path.basename(v)) for v in values[:_LOOKED_AT]):
                raise MmsslError(
                    f"the table {file} has no column of pictures ({', '.join(IMAGE_COLUMNS)}), but {name!r} holds what "
                    "looks like their paths; call it image."
                )
    return image, text


def _path(file: Path, row: int, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MmsslError(
            f"row {row} of {file} holds a picture itself ({type(value).__name__}) and not its path; give the folder of "
            "such a file, which is read as a Hugging Face dataset."
        )
    if _ADDRESS.match(value):
        raise MmsslError(
            f"row {row} of {file} names a picture on the web ({value[:60]}); bring them here first, and give paths."
        )
    return clean(value)


def _captions(file: Path, row: int, value: Any) -> list[str]:
    several = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(v, (dict, list, tuple, bytes)) for v in several):
        raise MmsslError(f"the caption in row {row} of {file} must be a text, or a list of texts, got {value!r:.80}.")
    return [text for v in several if v is not None and (text := clean(str(v)))]


def _from_csv(file: Path) -> dict[str, list]:
    with open(file, encoding="utf-8-sig", newline="") as text:
        header = text.readline()
        tabs = file.suffix.lower() == ".tsv" or ("\t" in header and "," not in header)
        text.seek(0)
        rows = csv.reader(text, delimiter="\t" if tabs else ",", skipinitialspace=not tabs)
        try:
            return _columns(file, rows)
        except csv.Error as error:
            raise MmsslError(f"line {rows.line_num} of {file} cannot be read as CSV: {error}.") from None


def _columns(file: Path, rows: Iterator[list[str]]) -> dict[str, list]:
    names = [name.strip().lower() for name in next(rows, [])]
    columns: list[list] = [[] for _ in names]
    for number, row in enumerate(rows, 2):
        if len(row) > len(names):
            raise MmsslError(
                f"row {number} of {file} has {len(row)} fields, and the header {len(names)}; put a caption that holds "
                'the separator in quotes ("...").'
            )
        if row:
            for k, column in enumerate(columns):
                column.append(row[k] if k < len(row) else None)
    return dict(zip(names, columns, strict=True))


def _from_json_lines(file: Path) -> dict[str, list]:
    columns: dict[str, list] = {}
    n = 0
    with open(file, encoding="utf-8-sig") as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise MmsslError(f"line {number} of {file} is no JSON: {error}.") from None
            if not isinstance(row, dict):
                raise MmsslError(f'line {number} of {file} must be {{"image": ..., "caption": ...}}, got {line:.80}.')
            for name, value in row.items():
                columns.setdefault(name.lower(), [None] * n).append(value)
            n += 1
            for column in columns.values():
                column.extend([None] * (n - len(column)))
    return columns


def _from_parquet(file: Path) -> dict[str, list]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MmsslError(f'reading {file} needs pyarrow; install it with `pip install "mmssl[hub]"`.') from None
    known = (*IMAGE_COLUMNS, *TEXT_COLUMNS, *_LABEL_COLUMNS, "split")
    try:
        names = parquet.read_schema(file).names
        wanted = [name for name in names if name.lower() in known]
        has_image = any(name.lower() in IMAGE_COLUMNS for name in wanted)
        table = parquet.read_table(file, columns=wanted if has_image else None)
    except ArrowException as error:
        raise MmsslError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0].rstrip('.')}.") from None
    return {name.lower(): column.to_pylist() for name, column in zip(table.column_names, table.columns, strict=True)}
