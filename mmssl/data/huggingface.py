"""A Hugging Face `datasets` folder on disk: `save_to_disk` (arrow) or parquet files, with an image column."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmssl import paths
from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.decode import open_picture
from mmssl.data.folders import held_out
from mmssl.data.memory import PictureCache
from mmssl.errors import MmsslError, unknown_name
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

_TEST_NAMES = ("test", "validation", "val", "valid")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "category")


def _datasets():
    try:
        import datasets
    except ImportError:
        raise MmsslError('reading this folder needs datasets; install it with `pip install "mmssl[hub]"`.') from None
    return datasets


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
        default = next((n for n in _LABEL_NAMES if n in self._meanings), next(iter(self._meanings), None))
        self.choose_target(self._meanings, config.target, default)
        self.classes = self._class_names(self.target) if self.task in ("single_label", "multi_label") else None
        self._cache = PictureCache(name, len(self), self._open) if config.cache == "memory" else None

    def __len__(self) -> int:
        return len(self._rows)

    def sample_name(self, place: int) -> str:
        path = (self._pictures[place][self.column] or {}).get("path")
        return f"{self._folder} row {place}" + (f" ({path})" if path else "")

    def read(self, place: int) -> dict:
        return {"image": self._cache.read(place) if self._cache else self._open(place)}

    def _open(self, place: int) -> Image.Image:
        cell = self._pictures[place][self.column]
        if cell is None:
            raise ValueError("the row has no image")
        if cell.get("bytes"):
            return open_picture(cell["bytes"])
        if not cell.get("path"):
            raise ValueError("the row has neither bytes nor a path")
        return open_picture(self._folder / cell["path"])  # an absolute path stays as it is

    def _class_names(self, target: str) -> list[str]:
        feature = self._rows.features[target]
        feature = getattr(feature, "feature", feature)
        if getattr(feature, "names", None):
            return list(feature.names)
        return [str(value) for value in sorted(set(self._rows[target][:]))]

    def _labels(self, target: str) -> Tensor:
        values, meaning = self._rows[target][:], self._meanings[target]
        if meaning == "regression":
            return torch.tensor(np.asarray(values, dtype=np.float32)).reshape(len(self), -1)
        names = self._class_names(target)
        if meaning == "multi_label":
            rows = torch.zeros(len(self), len(names))
            for row, present in enumerate(values):
                rows[row, present] = 1.0
            return rows
        if hasattr(self._rows.features[target], "names"):
            return torch.tensor(values, dtype=torch.int64)
        number = {name: k for k, name in enumerate(names)}
        return torch.tensor([number[str(value)] for value in values], dtype=torch.int64)


def image_column(rows: Any, folder: Path) -> str:
    """Name of the column of pictures: of type Image, or a struct of bytes and path."""
    for name, feature in rows.features.items():
        if type(feature).__name__ == "Image" or (isinstance(feature, dict) and "bytes" in feature):
            return name
    names = ", ".join(rows.features)
    raise MmsslError(f"{folder} has no image column, only {names}; save it with a column of type Image.")


def undecoded(rows: Any, column: str) -> Any:
    """The table with nothing but its pictures, as {"bytes", "path"}."""
    only = rows.select_columns([column])
    if type(rows.features[column]).__name__ == "Image":
        return only.cast_column(column, _datasets().Image(decode=False))
    return only


def label_columns(rows: Any, image: str) -> dict[str, str]:
    """Column name -> what it means as a label, for every column that can be one."""
    meanings = {}
    for name, feature in rows.features.items():
        inner = getattr(feature, "feature", None)
        dtype = str(getattr(feature, "dtype", ""))
        if name == image:
            continue
        if hasattr(feature, "names") or re.match(r"u?int|bool|string|large_string", dtype):
            meanings[name] = "single_label"
        elif inner is not None and hasattr(inner, "names"):
            meanings[name] = "multi_label"
        elif "float" in dtype or (inner is not None and "float" in str(getattr(inner, "dtype", ""))):
            meanings[name] = "regression"
    return meanings


@register_dataset("huggingface")
def open_huggingface(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Dataset:
    """The image table of one folder."""
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
    return HuggingFaceImages(card.name if card else folder.resolve().name, rows, config, folder)


def load_splits(folder: Path) -> dict[str, Any]:
    """Split name -> table; {"": table} where the folder has no splits."""
    datasets = _datasets()
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
        return _datasets().concatenate_datasets(list(splits.values()))
    if split == "test":
        for name in _TEST_NAMES:
            if name in named:
                return splits[name]
    if split in ("train", "test") and len(splits) == 1 and (not named or named == ["train"]):
        rows = next(iter(splits.values()))
        n, every = len(rows), config.test_every
        return rows.select([p for p in range(n) if held_out(p, n, every) == (split == "test")])
    raise unknown_name(f"split of {folder}", split, [*(named or ["train", "test"]), "all"])
