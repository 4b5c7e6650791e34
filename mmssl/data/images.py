"""Folders of image files: class folders (with labels) or a flat folder (without), see `folders.py` for the layouts."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.decode import open_picture
from mmssl.data.folders import IMAGES, PathList, class_folders, class_ids, split_files
from mmssl.data.memory import PictureCache
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig


class ImageFiles(Dataset):
    """Image files with an optional class each.

    Args:
        files: paths of the images.
        labels: class id of each file, or None.
        classes: class names in label order, or None.
    """

    def __init__(
        self, name: str, files: list[str], labels: list[int] | None, classes: list[str] | None, config: "DataConfig"
    ):
        self.files = PathList(files)
        fraction = 0.875 if config.crop_fraction is None else config.crop_fraction
        super().__init__(name, Geometry(config.image_size, fraction), config.max_bad)
        self._class_ids = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self.classes = classes
        labelled = labels is not None
        self.choose_target({"class": "single_label"} if labelled else {}, config.target, "class" if labelled else None)
        self._cache = PictureCache(name, len(files), self._open) if config.cache == "memory" else None

    def __len__(self) -> int:
        return len(self.files)

    def sample_name(self, place: int) -> str:
        return self.files[place]

    def read(self, place: int) -> dict:
        return {"image": self._cache.read(place) if self._cache else self._open(place)}

    def _open(self, place: int) -> Image.Image:
        return open_picture(self.files[place])

    def _labels(self, target: str) -> Tensor:
        return self._class_ids


@register_dataset("image_folder")
def open_image_folder(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Dataset:
    """Class folders or a flat folder, one or several joined."""
    found = [pair for folder in folders for pair in split_files(folder, config, IMAGES.below, IMAGES.noun)]
    files = [file for file, _ in found]
    name = card.name if card else "+".join(folder.resolve().name for folder in folders)
    if any(class_name is None for _, class_name in found):
        return ImageFiles(name, files, None, None, config)
    classes = class_folders(folders, lambda folder: next(IMAGES.walk(folder), None) is not None)
    return ImageFiles(name, files, *class_ids(name, found, classes, card), config)
