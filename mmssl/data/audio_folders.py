"""Folders of sound files: class folders (with labels) or a flat folder (without), see `folders.py` for the layouts.

A folder with `validation_list.txt` and `testing_list.txt`, as Speech Commands has them, has the splits that they name.
Where `audio` is asked for and a folder holds no sound, the sound tracks of its videos are meant.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.data.audio_files import AudioFiles
from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.folders import SOUNDS, VIDEOS, FileKind, Found, choose_splits, class_folders, class_ids, split_files
from mmssl.errors import MmsslError
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

_LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
_NO_CLASS = "_background_noise_"  # minutes of noise, which Speech Commands keeps beside its words


def sampling_of(config: "DataConfig", card: "DatasetCard | None") -> AudioSampling:
    """What was asked for, else what the card says, else the defaults."""
    return config.audio or (card.audio if card is not None else None) or AudioSampling()


@register_dataset("audio_folder")
def open_audio_folder(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> AudioFiles:
    """Class folders or a flat folder of sounds, one or several joined."""
    kinds = {folder: _kind(folder) for folder in folders}
    found = [pair for folder, kind in kinds.items() for pair in _split(folder, config, kind)]
    files = [file for file, _ in found]
    name = card.name if card else "+".join(folder.resolve().name for folder in folders)
    sampling = sampling_of(config, card)
    if any(class_name is None for _, class_name in found):
        return AudioFiles(name, files, None, None, sampling, config)
    classes = class_folders(folders, lambda folder: _holds_sound(folder, kinds.values()))
    return AudioFiles(name, files, *class_ids(name, found, classes, card), sampling, config)


def _kind(folder: Path) -> FileKind:
    """Sounds, or videos for their sound tracks where there is no other sound."""
    if next(SOUNDS.walk(folder), None) is None and next(VIDEOS.walk(folder), None) is not None:
        return VIDEOS
    return SOUNDS


def _holds_sound(folder: str, kinds) -> bool:
    return os.path.basename(folder) != _NO_CLASS and any(next(kind.walk(folder), None) is not None for kind in kinds)


def has_lists(folder: Path) -> bool:
    """True for the layout of Speech Commands."""
    return all((folder / name).is_file() for name in _LISTS.values())


def _split(folder: Path, config: "DataConfig", kind: FileKind) -> Found:
    if not has_lists(folder):
        return split_files(folder, config, kind.below, kind.noun)
    parts = {split: set((folder / name).read_text().split()) for split, name in _LISTS.items()}
    wanted = choose_splits(["train", *parts], config.split, folder)
    found = []
    for path, word in kind.below(folder):
        if word == _NO_CLASS:
            continue
        place = os.path.relpath(path, folder).replace(os.sep, "/")
        if next((split for split, names in parts.items() if place in names), "train") in wanted:
            found.append((path, word))
    if not found:
        raise MmsslError(f"the {config.split} part of {folder}, as its lists name it, is empty; use split: all.")
    return found
