"""A Hugging Face `datasets` folder on disk: `save_to_disk` (arrow) or parquet files, with an image column.

With captions beside the images, or with captions alone, see `huggingface_text.py`.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from mmssl import paths
from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.folders import held_out
from mmssl.data.huggingface_columns import (
    LABEL_NAMES,
    class_names,
    datasets_package,
    image_column,
    label_columns,
    open_cell,
    table_labels,
    undecoded,
)
from mmssl.data.huggingface_text import HuggingFaceImageTexts
from mmssl.data.memory import PictureCache
from mmssl.errors import MmsslError, unknown_name
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

_TEST_NAMES = ("test", "validation", "val", "valid")


class HuggingFaceImages(Dataset):
    """Rows of a `datasets.Dataset` that has an image column.

    Args:
        name: for reports.
        rows: the table; its image column is read as bytes or as a path and decoded here.
        config: split, target, image_size, cache and so on.
        folder: against which relative paths of pictures are resolved.
    """

    def __init__(self, name: str, rows: Any, config: "DataConfig", folder: Path):
        self._rows, self._folder = rows, folder
        fraction = 0.875 if config.crop_fraction is None else config.crop_fraction
        super().__init__(name, Geometry(config.image_size, fraction), config.max_bad)
        self.column = image_column(rows, folder)
        self._pictures = undecoded(rows, self.column)
        self._meanings = label_columns(rows, self.column)
        default = next((n for n in LABEL_NAMES if n in self._meanings), next(iter(self._meanings), None))
        self.choose_target(self._meanings, config.target, default)
        self.classes = class_names(rows, self.target) if self.task in ("single_label", "multi_label") else None
        self._cache = PictureCache(name, len(self), self._open) if config.cache == "memory" else None

    def __len__(self) -> int:
        return len(self._rows)

    def sample_name(self, place: int) -> str:
        path = (self._pictures[place][self.column] or {}).get("path")
        return f"{self._folder} row {place}" + (f" ({path})" if path else "")

    def read(self, place: int) -> dict:
        return {"image": self._cache.read(place) if self._cache else self._open(place)}

    def _open(self, place: int) -> Image.Image:
        return open_cell(self._pictures[place][self.column], self._folder)

    def _labels(self, target: str) -> Tensor:
        return table_labels(self._rows, target, self._meanings[target])


@register_dataset("huggingface")
def open_huggingface(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Dataset:
    """The table of one folder: of images, and where `config.text` is set of images and captions."""
    if len(folders) > 1:
        raise MmsslError(
            "several Hugging Face folders cannot be joined; join them with `datasets` and save the result."
        )
    folder = folders[0]
    try:
        splits = load_splits(folder)
    except MmsslError:
        raise
    except Exception as error:  # whatever pyarrow and datasets raise for a damaged folder
        raise MmsslError(f"{folder} cannot be read as a Hugging Face dataset: {str(error).splitlines()[0]}") from None
    rows = choose_split(splits, config, folder)
    if len(rows) == 0:
        raise MmsslError(f"the {config.split} split of {folder} has no rows; choose another split.")
    kind = HuggingFaceImages if config.text is None else HuggingFaceImageTexts
    return kind(card.name if card else folder.resolve().name, rows, config, folder)


def load_splits(folder: Path) -> dict[str, Any]:
    """Split name -> table; {"": table} where the folder has no splits."""
    datasets = datasets_package()
    datasets.disable_progress_bars()
    if (folder / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(str(folder)))
    if (folder / "state.json").is_file():
        return {"": datasets.load_from_disk(str(folder))}
    found: dict[str, list[str]] = {}
    for file in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        match = re.match(r"([A-Za-z_]+)(?:-\d+-of-\d+.*)?$", file.stem)
        name = match.group(1) if match else ""
        found.setdefault(name if name in ("train", *_TEST_NAMES) else "", []).append(str(file))
    cache = str(paths.cache_dir() / "huggingface")
    return {name: datasets.Dataset.from_parquet(files, cache_dir=cache) for name, files in found.items()}


def choose_split(splits: dict[str, Any], config: "DataConfig", folder: Path) -> Any:
    """The table of the wanted split; a folder without splits gives every `test_every`th row to the test part."""
    split, named = config.split, [name for name in splits if name]
    if split in named:
        return splits[split]
    if split == "all":
        return datasets_package().concatenate_datasets(list(splits.values()))
    if split == "test":
        for name in _TEST_NAMES:
            if name in named:
                return splits[name]
    if split in ("train", "test") and len(splits) == 1 and (not named or named == ["train"]):
        rows = next(iter(splits.values()))
        n, every = len(rows), config.test_every
        return rows.select([p for p in range(n) if held_out(p, n, every) == (split == "test")])
    raise unknown_name(f"split of {folder}", split, [*(named or ["train", "test"]), "all"])
