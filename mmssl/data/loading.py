"""Opening a dataset from whatever a user points at: a card, a folder, a recording."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmssl import paths
from mmssl.data import cards
from mmssl.data.dataset import Dataset
from mmssl.data.loader import Loader
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError, unknown_name
from mmssl.registry import DATASETS

__all__ = ["DataConfig", "Dataset", "Loader", "open_dataset"]


@dataclass(frozen=True)
class DataConfig:
    """Which data, which part of it, and how it comes out.

    Args:
        source: what to read, one or several that are joined: a card's name or file, a folder of images or of class
            folders, a recording's folder or id (`mmssl/metaworld/drawer-open-v0`), a Hugging Face folder on disk.
        split: "train", "test" or "all"; or the name of one of the folder's own splits.
        image_size: height and width of what comes out; null keeps the size on disk.
        camera: recorded data: which camera; null takes the first.
        target: which label comes with each sample ("class", "task", "state", ...); "none" for no label.
        cache: "memory" decodes everything once and keeps it as uint8.
        max_bad: share of unreadable files beyond which the run stops.
        crop_fraction: part of the resized picture that the evaluation crop keeps; null: 0.875, and 1 for recordings.
        extras: recorded data: "depth" and "segmentation" beside the image.
        drop_constant: leave out the dimensions of a state that never change.
        test_every: every how manieth episode (or file, where a folder has no splits) is held out.
        augmentation: what is drawn for each sample in training.
    """

    source: tuple[str, ...] = ()
    split: str = "train"
    image_size: tuple[int, int] | None = None
    camera: str | None = None
    target: str | None = None
    cache: Literal["none", "memory"] = "none"
    max_bad: float = 0.01
    crop_fraction: float | None = None
    extras: tuple[Literal["depth", "segmentation"], ...] = ()
    drop_constant: bool = True
    test_every: int = 5
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self):
        if self.image_size is not None and min(self.image_size) < 1:
            raise MmsslError(f"image_size must be two positive numbers (height, width), got {tuple(self.image_size)}.")
        if not 0 <= self.max_bad <= 1:
            raise MmsslError(f"max_bad is a share of the dataset in [0, 1], got {self.max_bad!r}.")
        if self.crop_fraction is not None and not 0 < self.crop_fraction <= 1:
            raise MmsslError(f"crop_fraction must lie in (0, 1], got {self.crop_fraction!r}.")
        if self.test_every < 2:
            raise MmsslError(f"test_every must be at least 2, got {self.test_every!r}.")

    def open(self, **changes) -> Dataset:
        """The dataset, with some fields changed: `config.open(split="test", target="state")`."""
        config = dataclasses.replace(self, **changes)
        if not config.source:
            raise MmsslError(
                "no data was given: set data.source (or --data) to a dataset card, a folder or a recording."
            )
        return _open(config)


def open_dataset(
    source: str | Path | Sequence[str | Path], *, image_size: int | tuple[int, int] | None = None, **fields
) -> Dataset:
    """Open images or recorded frames; the kind is recognised.

    Args:
        source: a card's name or file, a folder, a Minari id, a Hugging Face folder; or a sequence of them, joined.
        image_size: (height, width) or one number for both; None keeps the size on disk.
        **fields: any other field of `DataConfig`, e.g. split="test", target="state", camera="corner", cache="memory".

    Raises:
        MmsslError: nothing there, an empty folder, no image in it, an unknown split, target, camera or field.
    """
    known = [f.name for f in dataclasses.fields(DataConfig)]
    for name in fields:
        if name not in known:
            raise unknown_name("option of open_dataset", name, known)
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return DataConfig(source=tuple(str(s) for s in sources), image_size=size and tuple(size), **fields).open()


def _open(config: DataConfig) -> Dataset:
    found = [_locate(source) for source in config.source]
    kinds = sorted({kind for kind, _, _ in found})
    if len(kinds) > 1:
        raise MmsslError(
            f"the sources are of different kinds ({', '.join(kinds)}) and cannot be joined; give one kind."
        )
    folders = [folder for _, several, _ in found for folder in several]
    card = found[0][2] if len(found) == 1 else None
    if card is not None:
        config = dataclasses.replace(
            config,
            target=config.target or card.target,
            crop_fraction=card.crop_fraction if config.crop_fraction is None else config.crop_fraction,
        )
    return DATASETS.get(kinds[0])(folders, config, card)


def _locate(source: str) -> tuple[str, list[Path], cards.DatasetCard | None]:
    """(kind, folders, card or None) of one source."""
    path = Path(source).expanduser()
    if path.is_dir():
        return recognise(path)
    if path.suffix in (".yaml", ".yml") or source in paths.list_resources("data"):
        card, file = cards.load_card(path if path.is_file() else source)
        return card.kind, cards.card_sources(card, file), card
    if path.exists():
        raise MmsslError(f"{source} is a file; give a folder, a dataset card (.yaml) or the id of a recording.")
    if re.search(r"-v\d+$", source) or source.count("/") == 1:
        return "recorded", [cards.recording_folder(source)], None
    raise MmsslError(
        f"there is no folder and no dataset card {source!r}; cards: {', '.join(paths.list_resources('data'))}; or give "
        "the path of a folder of images, or the id of a recording (mmssl/SUITE/TASK-v0)."
    )


def recognise(folder: Path) -> tuple[str, list[Path], None]:
    """(kind, folders, None) of a folder, by what lies in it."""
    if is_recording(folder):
        return "recorded", [folder], None
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return "huggingface", [folder], None
    if any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")):
        return "huggingface", [folder], None
    below = sorted(p.parent.parent for p in folder.glob("**/data/main_data.hdf5"))
    if below:
        return "recorded", below, None
    return "image_folder", [folder], None


def is_recording(folder: Path) -> bool:
    """True for the folder of one Minari dataset."""
    return (folder / "data" / "main_data.hdf5").is_file()
