"""Lists of sounds with their labels, parts and folds, of whichever layout: CSV, JSON, AudioSet's, ESC-50's.

    path,label,start,end,fold,split         CSV with a header; `labels` ("a;b") for several. Only the path must be there
    filename,fold,target,category,...       ESC-50: the files lie in ../audio
    # YTID, start_seconds, end_seconds, positive_labels
    --PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"      AudioSet: the file is found by its video's id
    {"data": [{"wav": ..., "labels": "/m/09x0r,/t/dd00088"}]}   the authors' of AST and Audio-MAE
    [{"path": ..., "labels": ["a", "b"]}, ...]

Classes are in the order of `class_labels_indices.csv` (index,mid,display_name) where one lies beside the list or a card
names one, by ESC-50's target numbers, by a card's `classes`, else in the order of their names. A path is relative to
the list's folder (or to `audio` in it, or beside it), to a card's `root`, or absolute.
"""

import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.data.audio_files import AudioFiles
from mmssl.data.audio_folders import sampling_of
from mmssl.data.audio_tables import Listed, read_classes, read_table
from mmssl.data.cards import how
from mmssl.data.folders import SOUNDS, VIDEOS, choose_splits, held_out
from mmssl.data.label_sets import LabelSets
from mmssl.errors import MmsslError
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

log = logging.getLogger("mmssl.data")

CLASS_LIST = "class_labels_indices.csv"
_TRIED = 100  # files of a list that a folder is judged by


@register_dataset("audio_list")
def open_audio_list(files: list[Path], config: "DataConfig", card: "DatasetCard | None") -> AudioFiles:
    """One or several lists joined, or a card's lists, one a split."""
    name = card.name if card else "+".join(file.stem for file in files)
    lists = _lists_of(card, files[0]) if card else {str(file): file for file in files}
    root = files[0] / card.root if card and card.root is not None else None
    every = {key: _located(file, read_table(file), root) for key, file in lists.items()}
    rows, folds = _wanted(name, every, config, card)
    if not rows:
        raise MmsslError(f"the {config.split} part of {name!r} is empty; use split: all.")
    classes = _classes(name, [row for part in every.values() for row in part], _class_file(files[0], card), card)
    several = _several(every, card)
    labels = None if classes is None else _ids(name, rows, classes, several)
    paths, segments = [row.path for row in rows], [row.segment for row in rows]
    names = None if classes is None else [shown for _, shown in classes]
    dataset = AudioFiles(
        name, paths, labels, names, sampling_of(config, card), config, segments if any(segments) else None
    )
    dataset.folds = folds
    return dataset


def _lists_of(card: "DatasetCard", folder: Path) -> dict[str, Path]:
    """Split -> its list."""
    if not card.lists:
        raise MmsslError(f"card {card.name!r} is an audio_list without lists; add e.g. lists: {{train: train.csv}}.")
    for file in card.lists.values():
        if not (folder / file).is_file():
            raise MmsslError(f"card {card.name!r}: there is no list {folder / file}. {how(card)}")
    return {split: folder / file for split, file in card.lists.items()}


def _wanted(
    name: str, lists: dict[str, list[Listed]], config: "DataConfig", card: "DatasetCard | None"
) -> tuple[list[Listed], int | None]:
    """The rows of the wanted split, and the number of folds."""
    if card is not None and len(lists) > 1:
        chosen = choose_splits(lists, config.split, f"card {card.name!r}")
        return [row for split in chosen for row in lists[split]], None
    rows = [row for part in lists.values() for row in part]
    splits = list(dict.fromkeys(row.split for row in rows if row.split))
    if splits and config.fold is None:
        chosen = choose_splits(splits, config.split, f"list {name!r}")
        return [row for row in rows if config.split == "all" or row.split in chosen], None
    folds = sorted({row.fold for row in rows if row.fold is not None})
    if config.split not in ("train", "test", "all"):
        raise MmsslError(f"list {name!r} has no split {config.split!r}; valid: train, test, all.")
    if config.split == "all":
        return rows, len(folds) or None
    if not folds:
        return [row for row, held in _held_out(rows, config.test_every) if held == (config.split == "test")], None
    if config.fold is not None and not 1 <= config.fold <= len(folds):
        raise MmsslError(f"fold must be a number from 1 to {len(folds)} of {name!r}, got {config.fold}.")
    tested = folds[-1] if config.fold is None else folds[config.fold - 1]
    return [row for row in rows if (row.fold == tested) == (config.split == "test")], len(folds)


def _held_out(rows: list[Listed], every: int) -> list[tuple[Listed, bool]]:
    """Each row, and whether it is of the test part: every fifth of each first label."""
    groups: dict[str | None, list[Listed]] = {}
    for row in rows:
        groups.setdefault(row.labels[0] if row.labels else None, []).append(row)
    return [(row, held_out(k, len(members), every)) for members in groups.values() for k, row in enumerate(members)]


def _class_file(source: Path, card: "DatasetCard | None") -> Path | None:
    """The file of the classes: the card's, or the one beside the list."""
    if card is None:
        beside = source.parent / CLASS_LIST
        return beside if beside.is_file() else None
    if card.class_list is None:
        return None
    if not (source / card.class_list).is_file():
        raise MmsslError(f"card {card.name!r}: there is no list of classes {source / card.class_list}. {how(card)}")
    return source / card.class_list


def _classes(
    name: str, rows: list[Listed], file: Path | None, card: "DatasetCard | None"
) -> list[tuple[str, str]] | None:
    """(what labels call it, its name) of each class in label order; None where nothing is labelled.

    Raises:
        MmsslError: labels that the list of classes lacks, all named; or some rows without labels.
    """
    labels = {label for row in rows for label in row.labels}
    if not labels:
        return None
    if file is not None:
        classes, where = read_classes(file), str(file)
    elif card is not None and card.classes:
        classes, where = [(label, label) for label in card.classes], f"card {card.name!r}"
    else:
        targets = {label: row.target for row in rows for label in row.labels}
        numbered = all(target is not None for target in targets.values())
        ordered = sorted(labels, key=(lambda label: (targets[label], label)) if numbered else _by_number)
        return [(label, label) for label in ordered]
    known = {word for pair in classes for word in pair}
    if missing := sorted(labels - known):
        shown = ", ".join(map(repr, missing[:20])) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
        raise MmsslError(f"{where} lacks {len(missing)} of the labels of {name!r}: {shown}; mend the one or the other.")
    return classes


def _by_number(label: str) -> tuple[int, str]:
    return (int(label) if label.isdigit() else 1 << 31, label)


def _several(lists: dict[str, list[Listed]], card: "DatasetCard | None") -> bool:
    """Whether samples have several labels: as the card says, or as a list is written."""
    if card is not None and card.task is not None:
        return card.task == "multi_label"
    return any(row.several or len(row.labels) > 1 for rows in lists.values() for row in rows)


def _ids(name: str, rows: list[Listed], classes: list[tuple[str, str]], several: bool) -> list[int] | LabelSets:
    number = {word: k for k, pair in enumerate(classes) for word in pair[::-1]}
    if several:
        return LabelSets([[number[label] for label in row.labels] for row in rows], len(classes))
    wrong = [row for row in rows if len(row.labels) != 1]
    if wrong:
        raise MmsslError(
            f"{len(wrong)} of the {len(rows)} sounds of {name!r} have no label or several, e.g. {wrong[0].path} has "
            f"{len(wrong[0].labels)}; give every one a label, or a card with task: multi_label."
        )
    return [number[row.labels[0]] for row in rows]


def _located(file: Path, rows: list[Listed], root: Path | None) -> list[Listed]:
    """The rows with full paths. Of AudioSet the clips that are not on disk are left out, and counted."""
    folders = [file.parent, file.parent / "audio", file.parent.parent / "audio"] if root is None else [root]
    if rows[0].video_id is None:
        folder = next((f for f in folders if any(os.path.exists(f / row.path) for row in rows[:_TRIED])), folders[0])
        return [replace(row, path=os.path.join(folder, row.path)) for row in rows]
    places: dict[str, str] = {}
    for kind in (VIDEOS, SOUNDS):  # a sound outweighs a video of the same name
        places.update((_video_id(path), path) for path in kind.walk(root or file.parent))
    there = [replace(row, path=places[row.video_id]) for row in rows if row.video_id in places]
    if not there:
        raise MmsslError(
            f"none of the {len(rows)} clips of {file} is in {root or file.parent}; put them there as <YouTube id>.wav "
            "(or .flac, .mp3, .mp4, ...), in folders or not."
        )
    if len(there) < len(rows):
        log.warning("%d of the %d clips of %s are not there, and left out", len(rows) - len(there), len(rows), file)
    return there


def _video_id(path: str) -> str:
    """The 11 characters of a YouTube id in a file's name: `<id>`, `Y<id>`, `<id>_30`, `<id>_30000_40000`."""
    stem = os.path.splitext(os.path.basename(path))[0]
    match = re.fullmatch(r"Y?([\w-]{11})(?:_[\d.]+)?(?:_[\d.]+)?", stem)
    return match[1] if match else stem
