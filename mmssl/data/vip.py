"""VIP, Video Instance-level Parsing (Zhou et al. 2018, arXiv 1808.00661): labels of 19 body parts and clothes.

    <root>/Images/<sequence>/*.jpg
    <root>/Annotations/Category_ids/<sequence>/*.png     class ids, the file called like its frame
    <root>/lists/val_videos.txt                          names of sequences, one a line (also as paths)

This is the part of the dataset that its authors call VIP_Fine: the frames with annotations.
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
CLASSES = (
    "background", "hat", "hair", "sun-glasses", "upper-clothes", "dress", "coat", "socks", "pants", "gloves", "scarf",
    "skirt", "torso-skin", "face", "right-arm", "left-arm", "right-leg", "left-leg", "right-shoe", "left-shoe",
)  # fmt: skip


class PartSequence(MaskSequence):
    """A sequence whose ids are `CLASSES`."""

    kind = "parts"
    classes = CLASSES


def is_vip(root: Path) -> bool:
    return (root / "Annotations" / "Category_ids").is_dir()


def vip_sequences(root: Path, split: str = DEFAULT_SPLIT) -> list[LabelledVideo]:
    """The sequences of a split of VIP.

    Args:
        root: the folder that holds Images, Annotations and lists.
        split: "train" or "val", the list `lists/<split>_videos.txt`; "test" stands for "val", whose figures are
            published, and "all" for both.

    Raises:
        MmsslError: a folder is missing, no such list, a sequence without frames or without a first annotation.
    """
    pictures, masks = root / "Images", root / "Annotations" / "Category_ids"
    for folder in (pictures, masks):
        if not folder.is_dir():
            raise MmsslError(f"there is no folder {folder}; get VIP_Fine from http://sysu-hcp.net/lip/overview.php.")
    lists = {"test": ["val"], "all": ["train", "val"]}.get(split, [split])
    lines = [line for part in lists for line in read_list(root / "lists" / f"{part}_videos.txt", "sequences")]
    videos = []
    for name in (line.rstrip("/").rsplit("/", 1)[-1] for line in lines):
        frames = sorted((pictures / name).glob("*.jpg"))
        videos.append(PartSequence(name, pictures / name, frames, pair_by_stem(frames, masks / name)))
    return list(videos)


@register_dataset("vip")
def open_vip(folders: list[Path], config: "DataConfig", card: "DatasetCard | None") -> Dataset:
    """The frames of VIP as single images."""
    videos = [video for folder in folders for video in vip_sequences(folder, config.split)]
    return LabelledFrames(card.name if card else "vip", videos, config)
