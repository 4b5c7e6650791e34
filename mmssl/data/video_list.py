"""A list of videos in a text file: `path label` a line (Kinetics, VideoMAE), or CSV with a header that names `path`.

    abseiling/a.mp4 0                   separated by spaces or by a comma; the label is a number or a name
    abseiling/a.mp4 0 -1                VideoMAE's three columns: the middle one, a number of frames, is not needed
    abseiling/a.mp4                     no label at all
    path,label                          a header: CSV, with further columns or not
    path,len,txt                        R3M's manifest: folders of frames, their number (not needed), an annotation

A path is relative to the list's folder, or to a card's `root`, or absolute. A label below 0 is no label.
Annotations are in a column `txt`, `text` or `caption`; that of `txt` loses the "C " (the camera's wearer) with which
Ego4D's begin.
"""

import csv
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.data.cards import how
from mmssl.data.folders import VIDEOS, Found, choose_splits, class_ids, held_out_part
from mmssl.data.video import EXTENSIONS
from mmssl.data.video_files import VideoFiles
from mmssl.errors import MmsslError
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

SUFFIXES = (".txt", ".csv", ".lst", ".list", ".tsv")
TEXT_COLUMNS = ("txt", "text", "caption")
_WEARER = re.compile(r"C(\s+|$)")
_FILE = re.compile(rf"(?P<path>.*?(?:{'|'.join(re.escape(e) for e in sorted(EXTENSIONS))}))(?P<rest>[\s,].*)?$", re.I)


def read_list(file: Path, root: Path | None = None) -> Found:
    """(path, label as written or None) of every line. Relative paths are joined to `root`, or to the list's folder.

    Raises:
        MmsslError: no line, a line that cannot be read, or labels in some lines only.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MmsslError(f"the list of videos {file} cannot be read: {error}.") from None
    numbered = [(k, line.strip()) for k, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not numbered:
        raise MmsslError(f"the list of videos {file} is empty; write one `path label` a line.")
    if "path" in re.split(r"\s*[,\t]\s*", numbered[0][1].lower()):
        rows = _with_header(file, [line for _, line in numbered])
    else:
        rows = [_split_line(file, number, line) for number, line in numbered]
    base = file.parent if root is None else root
    found = [(os.path.join(base, path), label) for path, label in rows]
    without = sum(label is None for _, label in found)
    if 0 < without < len(found):
        raise MmsslError(f"{without} of the {len(found)} lines of {file} have no label; give all a label, or none.")
    return found


def read_annotations(file: Path, root: Path | None = None) -> dict[str, str]:
    """Path, as `read_list` gives it -> annotation, "" for none; {} for a list without such a column.

    Raises:
        MmsslError: one video has several annotations.
    """
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    rows = _rows(lines)
    column = next((name for name in TEXT_COLUMNS if name in rows.fieldnames), None)
    if column is None or "path" not in rows.fieldnames:
        return {}
    found: dict[str, str] = {}
    for row in rows:
        path = os.path.join(file.parent if root is None else root, row["path"].strip())
        text = (row[column] or "").strip()
        text = _WEARER.sub("", text, count=1) if column == "txt" and _WEARER.match(text) else text
        if found.setdefault(path, text) != text:
            raise MmsslError(f"{file} gives {path} two annotations; a video has one: leave out the other line.")
    return found


def _rows(lines: list[str]) -> csv.DictReader:
    rows = csv.DictReader(lines, delimiter="\t" if "\t" in lines[0] else ",", skipinitialspace=True)
    rows.fieldnames = [name.strip().lower() for name in rows.fieldnames]
    return rows


def _with_header(file: Path, lines: list[str]) -> Found:
    rows = _rows(lines)
    found = []
    for number, row in enumerate(rows, 2):
        path, label = row["path"], row.get("label")
        if not path:
            raise MmsslError(f"line {number} of {file} has no path.")
        found.append((path.strip(), _label(label)))
    return found


def _split_line(file: Path, number: int, line: str) -> tuple[str, str | None]:
    """Path and label of one line; the path of a file may hold spaces, that of a folder of frames may not."""
    match = _FILE.match(line)
    path, rest = (match["path"], match["rest"] or "") if match else [*re.split(r"[\s,]", line, maxsplit=1), ""][:2]
    path = path.strip(" \"'")
    rest = rest.strip(" \t,\"'")
    fields = re.split(r"\s*,\s*|\s+", rest) if rest else []
    if len(fields) > 2 and not match:
        raise MmsslError(f"line {number} of {file} has {len(fields) + 1} fields, e.g. {line!r}; write `path label`.")
    if len(fields) == 2 and fields[0].isdigit() and re.fullmatch(r"-?\d+", fields[1]):
        return path, _label(fields[1])  # path, number of frames, label
    return path, _label(rest)


def _label(text: str | None) -> str | None:
    text = (text or "").strip()
    return None if not text or re.fullmatch(r"-\d+", text) else text


def number_labels(name: str, found: Found, every: set[str], card: "DatasetCard | None") -> tuple[list[int], list[str]]:
    """Class id of each video, and the class names in label order.

    Args:
        every: the labels of all splits, so that each split counts them alike. Numbers are ids as they are, and are
            called by the card's `classes` where it has them; names are numbered in their order.
    """
    if not all(label.isdigit() for label in every):
        return class_ids(name, found, sorted(every), card)
    count = max(int(label) for label in every) + 1
    classes = list(card.classes) if card is not None and card.classes else [str(k) for k in range(count)]
    if count > len(classes):
        raise MmsslError(f"card {name!r} lists {len(classes)} classes, but a label of its lists is {count - 1}.")
    return [int(label) for _, label in found], classes


@register_dataset("video_list")
def open_video_list(files: list[Path], config: "DataConfig", card: "DatasetCard | None") -> VideoFiles:
    """One or several lists joined, or a card's lists, one a split."""
    texts: dict[str, str] = {}
    if card is None:
        listed = [read_list(file) for file in files]
        texts = {path: text for file in files for path, text in _annotations(file, config).items()}
        parts = [held_out_part(pairs, config, f, VIDEOS.noun) for f, pairs in zip(files, listed, strict=True)]
        found = [pair for part in parts for pair in part]
        name = "+".join(file.stem for file in files)
    else:
        lists = _lists_of(card, files[0])
        root = None if card.root is None else files[0] / card.root
        for list_name in card.lists.values():
            texts |= _annotations(files[0] / list_name, config, root)
        wanted = choose_splits(lists, config.split, f"card {card.name!r}")
        listed, name = list(lists.values()), card.name
        found = [pair for split in wanted for pair in lists[split]]
    paths = [path for path, _ in found]
    shown = [texts.get(path, "") for path in paths] if texts else None
    if any(label is None for _, label in found):
        return VideoFiles(name, paths, None, None, config, shown)
    every = {label for pairs in listed for _, label in pairs if label is not None}
    return VideoFiles(name, paths, *number_labels(name, found, every, card), config, shown)


def _annotations(file: Path, config: "DataConfig", root: Path | None = None) -> dict[str, str]:
    return {} if config.text is None else read_annotations(file, root)


def _lists_of(card: "DatasetCard", folder: Path) -> dict[str, Found]:
    """Split -> what its list holds."""
    if not card.lists:
        raise MmsslError(f"card {card.name!r} is a video_list without lists; add e.g. lists: {{train: train.csv}}.")
    found = {}
    for split, name in card.lists.items():
        if not (folder / name).is_file():
            raise MmsslError(f"card {card.name!r}: there is no list {folder / name}. {how(card)}")
        found[split] = read_list(folder / name, None if card.root is None else folder / card.root)
    return found
