"""Tables of sounds as they are written: CSV with a header, AudioSet's, JSON. `audio_list.py` shows the layouts."""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.data.folders import SOUNDS
from mmssl.errors import MmsslError

_PATHS = ("path", "filename", "file", "wav", "audio", "file_name")
_LABELS = ("category", "label", "labels", "class", "target")
_AUDIOSET = re.compile(r'^(?P<id>[\w-]{11}), ?(?P<start>[\d.]+), ?(?P<end>[\d.]+), ?"?(?P<labels>[^"]*)"?$')


@dataclass(frozen=True, slots=True)  # there are two million of them
class Listed:
    """One row of a table.

    Args:
        path: as it is written; "" where only the video's id is known.
        labels: as they are written.
        several: whether the layout is one of several labels a sound.
        target: the number of the class, where the table has one beside its name.
        segment: (start, end) in seconds of the part that is meant.
        fold, split: the part of the data that it belongs to.
        video_id: AudioSet's name of a clip.
    """

    path: str
    labels: tuple[str, ...] = ()
    several: bool = False
    target: int | None = None
    segment: tuple[float, float] | None = None
    fold: int | None = None
    split: str | None = None
    video_id: str | None = None


def lists_sounds(file: Path) -> bool:
    """True where a text file is a table of sounds, as far as its first lines tell."""
    if file.suffix.lower() == ".json":
        return True
    try:
        with open(file, encoding="utf-8-sig") as text:
            lines = [line.strip() for _, line in zip(range(20), text, strict=False)]
    except (OSError, UnicodeDecodeError):
        return False
    fields = [field.strip(" \"'") for line in lines for field in re.split(r"[,\t]", line)]
    return any(map(_AUDIOSET.match, lines)) or any(SOUNDS.matches(re.split(r"[\\/]", f)[-1]) for f in fields)


def read_table(file: Path) -> list[Listed]:
    """All rows. Raises an `MmsslError` where nothing is in it, or a row cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MmsslError(f"the list of sounds {file} cannot be read: {error}.") from None
    if file.suffix.lower() == ".json":
        rows = _from_json(file, text)
    else:
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        audioset = bool(lines) and _AUDIOSET.match(lines[0].strip()) is not None
        rows = [_audioset_row(file, line) for line in lines] if audioset else _from_csv(file, lines)
    if not rows:
        raise MmsslError(f"the list of sounds {file} is empty; write one sound a line, with a header: path,label.")
    return rows


def read_classes(file: Path) -> list[tuple[str, str]]:
    """(id, name) of each class in label order, from `index,mid,display_name`. Raises where it is otherwise."""
    with open(file, encoding="utf-8-sig", newline="") as text:
        rows = list(csv.DictReader(text, skipinitialspace=True))
    try:
        classes = [(int(row["index"]), row["mid"], row["display_name"]) for row in rows]
    except (KeyError, ValueError, TypeError):
        classes = []
    if not classes or sorted(index for index, _, _ in classes) != list(range(len(classes))):
        raise MmsslError(f"the list of classes {file} must have the columns index,mid,display_name, counted from 0.")
    return [(mid, name) for _, mid, name in sorted(classes)]


def _from_csv(file: Path, lines: list[str]) -> list[Listed]:
    rows = csv.DictReader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",", skipinitialspace=True)
    rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
    path = next((name for name in _PATHS if name in rows.fieldnames), None)
    if path is None and lines:
        raise MmsslError(
            f"the list of sounds {file} has no column for the path (looked for {', '.join(_PATHS)}) in its first line "
            f"{lines[0][:80]!r}; give it a header: path,label."
        )
    return [_row(file, number, row, path) for number, row in enumerate(rows, 2)]


def _from_json(file: Path, text: str) -> list[Listed]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise MmsslError(f"the list of sounds {file} is no JSON: {error}.") from None
    rows = found.get("data") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise MmsslError(f'the list of sounds {file} must be {{"data": [{{"wav": ..., "labels": ...}}, ...]}}.')
    return [
        _row(file, number, row, next((name for name in _PATHS if name in row), None))
        for number, row in enumerate(rows, 1)
    ]


def _row(file: Path, number: int, row: dict[str, Any], path: str | None) -> Listed:
    """A row of named fields."""
    if path is None or not row.get(path):
        raise MmsslError(f"entry {number} of {file} has no path.")
    key = next((name for name in _LABELS if row.get(name) not in (None, "")), None)
    try:
        target = int(row["target"]) if key not in (None, "target") and row.get("target") not in (None, "") else None
        fold = int(row["fold"]) if row.get("fold") not in (None, "") else None
        segment = (float(row["start"]), float(row["end"])) if row.get("start") and row.get("end") else None
    except (TypeError, ValueError):
        raise MmsslError(
            f"entry {number} of {file}: fold and target must be whole numbers, start and end seconds, got {dict(row)}."
        ) from None
    if segment is not None and not 0 <= segment[0] < segment[1]:
        raise MmsslError(f"entry {number} of {file} ends at {segment[1]:g} s, not after its start at {segment[0]:g} s.")
    labels = () if key is None else _labels(row[key], key == "labels")
    return Listed(str(row[path]).strip(), labels, "labels" in row, target, segment, fold, row.get("split") or None)


def _labels(written: Any, several: bool) -> tuple[str, ...]:
    """Several are a list, or separated by ; or | or, where the column is called `labels`, by commas."""
    if isinstance(written, list):
        return tuple(str(label).strip() for label in written)
    parts = re.split(r"[;|,]" if several else r"[;|]", str(written))
    return tuple(part.strip() for part in parts if part.strip())


def _audioset_row(file: Path, line: str) -> Listed:
    match = _AUDIOSET.match(line.strip())
    if match is None:
        raise MmsslError(f'a line of {file} is not `YTID, start, end, "labels"` as the others are: {line[:80]!r}.')
    segment = (float(match["start"]), float(match["end"]))
    return Listed("", _labels(match["labels"], True), True, None, segment, video_id=match["id"])
