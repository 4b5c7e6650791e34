"""Folders of pictures with depth and segmentation of the same scene, one folder a modality: MultiMAE's layout.

    root/rgb/<class>/name.jpg    root/depth/<class>/name.png    root/semseg/<class>/name.png

`<class>` may be left out, and splits may lie above (root/train/rgb/...) or below (root/rgb/train/...). Files with one
name are one sample, which may lack any of the three. `mask_valid` beside them is 0 where depth and class are unknown.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.decode import EXTENSIONS, UNREADABLE, open_picture, to_rgb
from mmssl.data.folders import FileKind, PathList, choose_splits, held_out_part, split_folders
from mmssl.data.memory import check_memory
from mmssl.data.planes import at_size, read_depth, read_ids, read_mask
from mmssl.errors import MmsslError
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

FOLDERS = {
    "rgb": "image",
    "image": "image",
    "images": "image",
    "depth": "depth",
    "semseg": "segmentation",
    "semseg_coco": "segmentation",
    "segmentation": "segmentation",
    "mask_valid": "mask_valid",
}
"""Name of a folder -> the modality of the files in it."""
CLASSES = "semseg_classes.txt"
"""File in the root with the names of the classes of a segmentation, one a line in the order of their ids."""
MODALITIES = ("image", "depth", "segmentation")
_FILES = FileKind("picture", EXTENSIONS | {".jpx", ".npy", ".npz"})
Samples = dict[str, dict[str, str]]  # path below the modality's folder, without ending -> modality -> file


class AlignedFiles(Dataset):
    """Files of several modalities: {"image": uint8 (B, 3, H, W), "depth": float32 (B, 1, H, W), "segmentation": int64
    (B, H, W)}, all cropped alike, with `present/<modality>` for what some samples lack.

    Depth of 0 is unknown. Ids come as they are stored, and -1 where `mask_valid` is 0. Maps of a half, a quarter and so
    on of the size of their picture are enlarged; a sample whose sizes do not agree is unreadable.

    Args:
        name: for reports.
        samples: modality -> file, of each sample.
        labels: class id of each, or None.
        classes: class names in label order, or None.
        config: image_size, extras, depth_scale, cache and so on. Named extras are read alone, none means all there are.
    """

    def __init__(
        self,
        name: str,
        samples: list[dict[str, str]],
        labels: list[int] | None,
        classes: list[str] | None,
        config: "DataConfig",
    ):
        self.files = {m: PathList([s.get(m, "") for s in samples]) for m in _read_of(name, samples, config)}
        fraction = 0.875 if config.crop_fraction is None else config.crop_fraction
        super().__init__(name, Geometry(config.image_size, fraction), config.max_bad)
        found = [m for m in MODALITIES if m in self.files]
        self.modality = found[0]
        self.lacks = tuple(m for m in found if not all(m in sample for sample in samples))
        self._depth_scale = config.depth_scale
        self._class_ids = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self.classes = classes
        labelled = labels is not None
        self.choose_target({"class": "single_label"} if labelled else {}, config.target, "class" if labelled else None)
        self._memory = self._load() if config.cache == "memory" else None

    def __len__(self) -> int:
        return len(next(iter(self.files.values())))

    def sample_name(self, place: int) -> str:
        return next(files[place] for files in self.files.values() if files[place])

    def read(self, place: int) -> dict:
        """Planes of one size: image a picture or uint8 (H, W, 3), depth float32 and segmentation int32 (H, W)."""
        if self._memory is None:
            return self._open(place)
        if isinstance(self._memory[place], str):
            raise OSError(self._memory[place])
        return dict(self._memory[place])

    def _open(self, place: int) -> dict:
        files = {m: paths[place] for m, paths in self.files.items() if paths[place]}
        readers: dict[str, Callable] = {
            "image": open_picture,
            "depth": lambda file: read_depth(file, self._depth_scale),
            "segmentation": read_ids,
            "mask_valid": read_mask,
        }
        raw = at_size({modality: readers[modality](file) for modality, file in files.items()})
        known = raw.pop("mask_valid", None)
        if known is not None:
            raw |= {m: np.where(known, raw[m], empty) for m, empty in (("depth", 0), ("segmentation", -1)) if m in raw}
        return raw

    def _load(self) -> list[dict | str]:
        """All samples decoded, or why one cannot be."""
        sizes = [self._bytes(place) for place in range(0, len(self), max(1, len(self) // 64))]
        check_memory(int(np.mean(sizes) * len(self)), f"the {len(self)} samples of {self.name!r}")
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding the interpreter lock
            return list(pool.map(self._decoded, range(len(self))))

    def _bytes(self, place: int) -> int:
        raw = self._decoded(place)
        return 0 if isinstance(raw, str) else sum(plane.nbytes for plane in raw.values())

    def _decoded(self, place: int) -> dict | str:
        try:
            raw = self._open(place)
            return {m: np.array(to_rgb(x)) if isinstance(x, Image.Image) else x for m, x in raw.items()}
        except UNREADABLE as error:
            return f"{type(error).__name__}: {error}"

    def _labels(self, target: str) -> Tensor:
        return self._class_ids


def _read_of(name: str, samples: list[dict[str, str]], config: "DataConfig") -> list[str]:
    """Which modalities are read, of those that any sample has."""
    found = [m for m in (*MODALITIES, "mask_valid") if any(m in sample for sample in samples)]
    if lacking := [extra for extra in config.extras if extra not in found]:
        raise MmsslError(f"dataset {name!r} has no {lacking[0]}, only {', '.join(found)}; leave it out of extras.")
    unread = {"depth", "segmentation"} - set(config.extras) if config.extras else set()
    return [m for m in found if m not in unread]


def holds_aligned(folder: Path) -> bool:
    """Whether a folder, or each of its splits, has a folder of pictures and one of depth or segmentation."""
    found = [{FOLDERS[entry.name.lower()] for entry in _known(root)} for root in _roots(folder)]
    return all("image" in names and names & {"depth", "segmentation"} for names in found)


def _roots(folder: Path) -> list[Path]:
    """The folder, or its splits."""
    return list(split_folders(folder).values()) or [folder]


def _known(root: Path) -> list[os.DirEntry]:
    """Folders that are called like a modality."""
    entries = sorted(os.scandir(root), key=lambda e: e.name)
    return [entry for entry in entries if entry.is_dir() and entry.name.lower() in FOLDERS]


def _modality_folders(root: Path) -> dict[str, list[Path]]:
    """Modality -> its folders."""
    found: dict[str, list[Path]] = {}
    for entry in _known(root):
        found.setdefault(FOLDERS[entry.name.lower()], []).append(Path(entry.path))
    for modality, folders in found.items():
        if len(folders) > 1:
            names = ", ".join(folder.name for folder in folders)
            raise MmsslError(f"{root} has several folders of {modality}: {names}; keep one of them there.")
    return found


def _samples(root: Path, config: "DataConfig") -> Samples:
    """The samples of the wanted split of `root`."""
    above = split_folders(root)
    if above:
        return _joined([_below(above[name], None) for name in choose_splits(above, config.split, root)])
    names = {name for (folder,) in _modality_folders(root).values() for name in split_folders(folder)}
    if names:
        return _joined([_below(root, name) for name in choose_splits(sorted(names), config.split, root)])
    every = _below(root, None)
    pairs = held_out_part([(key, class_of(key)) for key in sorted(every)], config, root, "sample")
    return {key: every[key] for key, _ in pairs}


def _joined(splits: list[Samples]) -> Samples:
    """Samples of several splits; one name in two of them is two samples."""
    return {f"{key}\n{k}": files for k, samples in enumerate(splits) for key, files in samples.items()}


def _below(root: Path, split: str | None) -> Samples:
    """Samples of the folders of modalities below `root`, or of their folders `split`."""
    samples: Samples = {}
    for modality, (folder,) in _modality_folders(root).items():
        top = folder / split if split else folder
        for file in _FILES.walk(top):
            files = samples.setdefault(os.path.splitext(os.path.relpath(file, top))[0], {})
            if modality in files:
                raise MmsslError(f"{files[modality]} and {file} are one sample by their name; rename or remove one.")
            files[modality] = file
    return {key: files for key, files in sorted(samples.items()) if files.keys() - {"mask_valid"}}


def class_of(key: str) -> str | None:
    """The first folder on the way to a sample; None for one that lies in no folder."""
    return key.split(os.sep)[0] if os.sep in key else None


def _class_names(folders: list[Path], config: "DataConfig") -> list[str] | None:
    """Classes of all splits, so that every split counts them alike; None where there are not at least two."""
    every = [_below(root, split) for folder in folders for root, split in _all_parts(folder)]
    names = {class_of(key) for samples in every for key in samples}
    return None if None in names or len(names) < 2 else sorted(names)


def _all_parts(folder: Path) -> list[tuple[Path, str | None]]:
    if above := split_folders(folder):
        return [(root, None) for root in above.values()]
    names = {name for (part,) in _modality_folders(folder).values() for name in split_folders(part)}
    return [(folder, name) for name in sorted(names)] or [(folder, None)]


@register_dataset("aligned_folder")
def open_aligned_folder(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Dataset:
    """Aligned pictures, depth and segmentation of one or several folders."""
    found = _joined([_samples(folder, config) for folder in folders])
    if not found:
        raise MmsslError(f"there is no picture, depth or segmentation in {folders[0]}; see docs/aligned.md.")
    classes = list(card.classes) if card is not None and card.classes else _class_names(folders, config)
    labels = None if classes is None else [classes.index(class_of(key)) for key in found]
    name = card.name if card else "+".join(folder.resolve().name for folder in folders)
    dataset = AlignedFiles(name, list(found.values()), labels, classes, config)
    if (folders[0] / CLASSES).is_file():
        dataset.segmentation_classes = (folders[0] / CLASSES).read_text().splitlines()
    return dataset
