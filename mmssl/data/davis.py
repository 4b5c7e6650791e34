"""DAVIS 2017 (Pont-Tuset et al., arXiv 1704.00675): masks of several objects in every frame of short videos.

<root>/JPEGImages/480p/<sequence>/00000.jpg
<root>/Annotations/480p/<sequence>/00000.png     palette indices: 0 background, 1, 2, ... objects
<root>/ImageSets/2017/{train,val}.txt            names of sequences, one a line
"""

from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.data.dataset import Dataset
from mmssl.data.labelled_videos import LabelledFrames, LabelledVideo, MaskSequence, pair_by_stem, read_list
from mmssl.errors import MmsslError
from mmssl.registry import register_dataset

if TYPE_CHECKING:
    from mmssl.data.cards import DatasetCard
    from mmssl.data.loading import DataConfig

DEFAULT_SPLIT = "val"
_RESOLUTION = "480p"


def is_davis(root: Path) -> bool:
    return (root / "JPEGImages").is_dir() and (root / "ImageSets").is_dir()


def davis_sequences(root: Path, split: str = DEFAULT_SPLIT) -> list[LabelledVideo]:
    """The sequences of a split of DAVIS.

    Args:
        root: the folder that holds JPEGImages, Annotations and ImageSets.
        split: a list in ImageSets/2017, "train" or "val"; "test" stands for "val", whose figures are published, and
            "all" for both.

    Raises:
        MmsslError: a folder is missing, no such list, a sequence without frames or without a first annotation.
    """
    pictures, masks = root / "JPEGImages" / _RESOLUTION, root / "Annotations" / _RESOLUTION
    for folder in (pictures, masks):
        if not folder.is_dir():
            raise MmsslError(
                f"there is no folder {folder}; get DAVIS-2017-trainval-480p from https://davischallenge.org."
            )
    lists = {"test": ["val"], "all": ["train", "val"]}.get(split, [split])
    names = [name for part in lists for name in read_list(root / "ImageSets" / "2017" / f"{part}.txt", "sequences")]
    videos = []
    for name in names:
        frames = sorted((pictures / name).glob("*.jpg"))
        videos.append(MaskSequence(name, pictures / name, frames, pair_by_stem(frames, masks / name)))
    return list(videos)


@register_dataset("davis")
def open_davis(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Dataset:
    """The frames of DAVIS as single images."""
    videos = [video for folder in folders for video in davis_sequences(folder, config.split)]
    return LabelledFrames(card.name if card else "davis", videos, config)
