"""Dataset cards: one YAML a dataset, saying what it is, where it lies, how to get it and under which licence."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmssl import paths
from mmssl.config import load_config
from mmssl.data.audio_sampling import AudioSampling
from mmssl.errors import MmsslError

Task = Literal["single_label", "multi_label", "regression"]


@dataclass(frozen=True)
class Statistics:
    """Per-channel mean and standard deviation of the pixels in 0..1, or of sound's raw log-mel values."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class DatasetCard:
    """What a person needs to know about a dataset, and what the loader needs to open it.

    Args:
        name: what reports call it.
        modality: the batch key of its main input.
        kind: how it is read: "image_folder", "video_folder", "frame_folder", "video_list", "audio_folder",
            "audio_list", "image_text_folder", "image_text_table", "webdataset", "aligned_folder",
            "huggingface", "recorded" (Minari data sets) or "lerobot".
        layout: the files and folders as they lie on disk, in words.
        how_to_get: the steps that bring it here.
        licence: licence of the data.
        path: where it lies, relative to the card; `~` and `${VARIABLE}` are filled in.
        lists: for lists of videos or sounds and tables of captions: split name -> its list, below `path`.
        root: for lists: what their paths are relative to, below `path`; null for each list's own folder.
        class_list: for lists of sounds: the file that names and orders the classes, below `path`; null for none.
        audio: for sounds: which stretch of each makes a sample, where nothing else is asked for.
        tasks: for recorded data: the tasks, each "suite/task", joined in this order.
        task: what its default label means; null for none.
        target: its default label, where there are several.
        classes: class names in label order, where they are not simply the sorted folder names.
        splits: split name -> where or which part it is, in words.
        statistics: of the pixels, or of sound's raw log-mel values.
        crop_fraction: evaluation crop; null for the kind's own default.
    """

    name: str
    modality: Literal["image", "video", "audio", "text", "trajectory"]
    kind: str
    layout: str
    how_to_get: str
    licence: str
    path: str | None = None
    lists: dict[str, str] | None = None
    root: str | None = None
    class_list: str | None = None
    audio: AudioSampling | None = None
    tasks: tuple[str, ...] = ()
    task: Task | None = None
    target: str | None = None
    classes: tuple[str, ...] | None = None
    splits: dict[str, str] | None = None
    statistics: Statistics | None = None
    crop_fraction: float | None = None


def load_card(name: str | Path) -> tuple[DatasetCard, Path]:
    """The card called `name` (a shipped card's short name or a YAML file) and the file it stands in."""
    file = paths.find_resource("data", name)
    return load_config(DatasetCard, file), file


def card_sources(card: DatasetCard, file: Path) -> list[Path]:
    """Folders that the card speaks of. Raises `MmsslError` with how to get them where they are missing."""
    if card.tasks:
        try:
            return [recording_folder(task) for task in card.tasks]
        except MmsslError as error:
            raise MmsslError(f"dataset card {card.name!r}: {error} {how(card)}") from None
    if card.path is None:
        raise MmsslError(f"dataset card {card.name!r} names neither a path nor tasks. {how(card)}")
    for variable in re.findall(r"\$\{(\w+)\}", card.path):
        if variable not in os.environ:
            raise MmsslError(
                f"dataset card {card.name!r} says that it lies in ${{{variable}}}, which is not set: set it, or give "
                f"the folder itself instead of the card. {how(card)}"
            )
    folder = Path(os.path.expandvars(card.path)).expanduser()
    folder = folder if folder.is_absolute() else file.parent / folder
    if not folder.exists():
        raise MmsslError(f"dataset card {card.name!r}: there is no folder {folder}. {how(card)}")
    return [folder]


def how(card: DatasetCard) -> str:
    return f"How to get it: {' '.join(card.how_to_get.split())}"


def recording_folder(task: str) -> Path:
    """Where `mmssl record SUITE/TASK` puts its Minari dataset, newest version; "suite/task" or a full Minari id."""
    root = paths.datasets_dir()
    if (root / task / "data").is_dir():
        return root / task
    stem = task if task.startswith("mmssl/") else f"mmssl/{task}"
    found = sorted(root.glob(f"{stem}-v*/data"), key=lambda p: int(re.findall(r"-v(\d+)$", p.parent.name)[0]))
    if found:
        return found[-1].parent
    recorded = sorted(p.parent.relative_to(root).as_posix() for p in root.glob("**/data/main_data.hdf5"))
    there = ", ".join(recorded) if recorded else "none"
    short = re.sub(r"^mmssl/|-v\d+$", "", task)
    raise MmsslError(
        f"there is no recording of {task!r} in {root} (there: {there}); make it with `mmssl record {short}`."
    )
