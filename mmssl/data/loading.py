"""Opening a dataset from whatever a user points at: a card, a folder, a list of videos, a recording."""

import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmssl import paths
from mmssl.data import cards
from mmssl.data.aligned_folder import holds_aligned
from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.audio_tables import lists_sounds
from mmssl.data.clips import ClipSampling
from mmssl.data.dataset import Dataset
from mmssl.data.folders import IMAGES, SOUNDS, VIDEOS
from mmssl.data.image_text import JoinedImageTexts
from mmssl.data.image_text_folder import has_captions
from mmssl.data.image_text_table import SUFFIXES as TABLE_SUFFIXES
from mmssl.data.image_text_table import lists_captions
from mmssl.data.lerobot import is_lerobot
from mmssl.data.loader import Loader
from mmssl.data.segmentation_classes import IdKind
from mmssl.data.shards_files import holds_shards, is_shards
from mmssl.data.skip_list import follow_skip_list
from mmssl.data.text import TextEncoding
from mmssl.data.trajectory_sampling import TrajectorySampling
from mmssl.data.transforms import Augmentation
from mmssl.data.video_list import SUFFIXES as LIST_SUFFIXES
from mmssl.errors import MmsslError, unknown_name
from mmssl.registry import DATASETS

__all__ = ["DataConfig", "Dataset", "Loader", "open_dataset"]

log = logging.getLogger("mmssl.data")

_JOINABLE = {"image_text_folder", "image_text_table", "webdataset", "huggingface"}  # with one another


@dataclass(frozen=True)
class DataConfig:
    """Which data, which part of it, and how it comes out.

    Args:
        source: what to read, one or several that are joined: a card's name or file, a folder of images or of videos or
            of class folders, a list of videos (`path label` a line, or CSV), a recording's folder or id
            (`mmssl/metaworld/drawer-open-v0`), a folder of a LeRobot v3 data set, a Hugging Face folder on disk, a
            table of pictures and captions, webdataset shards (a folder of them, or `shards/train-{000..009}.tar`). With
            `text` pictures, captions and pairs of them may be joined, each from a source of its own.
        split: "train", "test" or "all"; or the name of one of the folder's own splits.
        image_size: height and width of what comes out; null keeps the size on disk.
        clip: which frames make a clip; null for images, and for files of videos the default of `ClipSampling`. With it
            a recording gives clips, and a folder of folders of pictures is read as videos.
        audio: which stretch of a sound makes a sample; null for what the card says, or the defaults of `AudioSampling`.
            With it a folder of videos is read for their sound tracks.
        text: how captions become token ids, of which a method's tokenizer decides in training; null for the defaults of
            `TextEncoding`. With it captions without a picture are samples too.
        trajectory: recorded data, and Minari and LeRobot data sets of others: windows of states, actions and returns in
            place of pictures; a method of trajectories decides its length and modalities where the recipe does not.
        views: every clip and crop of test time (`clip.test_clips` x `clip.test_crops`, or `audio.test_clips`) as a
            sample of its own.
        camera: recorded data: which camera; null takes the first.
        cameras: recorded data: several cameras at once, each under its own key, `image/<camera>` or `video/<camera>`.
        target: which label comes with each sample ("class", "task", "state", ...); "none" for no label.
        cache: "memory" decodes everything once and keeps it as uint8.
        max_bad: share of unreadable files beyond which the run stops.
        skip_list: a text file that names files to leave out, `path<TAB>reason` a line; what proves unreadable joins it.
        vet: training decodes every file once before its first step, in processes that can be killed, and leaves out
            the bad ones; their list is kept in the run folder.
        crop_fraction: part of the resized picture that the evaluation crop keeps; null: 0.875, and 1 for recordings and
            videos.
        extras: recorded data: "depth" and "segmentation" beside the image, and the vectors "proprio" and "state".
        segmentation: recorded data: what the ids of a segmentation are. "classes": the same in all recordings that are
            joined; "coarse": background, table, robot arm, gripper, object, the same in all there are; "ids": geoms.
        depth_scale: folders of pictures: metres of one step of a stored depth; 0.001 for millimetres.
        drop_constant: leave out the dimensions of a state that never change.
        test_every: every how manieth episode (or file, where a folder has no splits) is held out.
        fold: data in folds: the number, from 1, of the one that is the test part; null for the last one.
        balance: training draws classes equally often, with replacement: a sample's weight is the sum over its labels of
            1 / (samples with that label).
        epoch_samples: samples of one epoch of training; null for as many as there are.
        augmentation: what is drawn for each sample in training.
    """

    source: tuple[str, ...] = ()
    split: str = "train"
    image_size: tuple[int, int] | None = None
    clip: ClipSampling | None = None
    audio: AudioSampling | None = None
    text: TextEncoding | None = None
    trajectory: TrajectorySampling | None = None
    views: bool = False
    camera: str | None = None
    cameras: tuple[str, ...] = ()
    target: str | None = None
    cache: Literal["none", "memory"] = "none"
    max_bad: float = 0.01
    skip_list: Path | None = None
    vet: bool = False
    crop_fraction: float | None = None
    extras: tuple[Literal["depth", "segmentation", "proprio", "state"], ...] = ()
    segmentation: IdKind = "classes"
    depth_scale: float = 0.001
    drop_constant: bool = True
    test_every: int = 5
    fold: int | None = None
    balance: bool = False
    epoch_samples: int | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self):
        if self.image_size is not None and min(self.image_size) < 1:
            raise MmsslError(f"image_size must be two positive numbers (height, width), got {tuple(self.image_size)}.")
        if not 0 <= self.max_bad <= 1:
            raise MmsslError(f"max_bad is a share of the dataset in [0, 1], got {self.max_bad!r}.")
        if self.crop_fraction is not None and not 0 < self.crop_fraction <= 1:
            raise MmsslError(f"crop_fraction must lie in (0, 1], got {self.crop_fraction!r}.")
        if not self.depth_scale > 0:
            raise MmsslError(f"depth_scale must be above 0 (metres of one stored step), got {self.depth_scale}.")
        if self.camera is not None and self.cameras:
            raise MmsslError(f"give camera ({self.camera}) or cameras ({', '.join(self.cameras)}), not both.")
        if self.epoch_samples is not None and self.epoch_samples < 1:
            raise MmsslError(f"epoch_samples must be 1 or more, got {self.epoch_samples}.")
        if self.test_every < 2:
            raise MmsslError(f"test_every must be at least 2, got {self.test_every!r}.")

    def open(self, **changes) -> Dataset:
        """The dataset, with some fields changed: `config.open(split="test", target="state")`."""
        config = dataclasses.replace(self, **changes)
        if not config.source:
            raise MmsslError(
                "no data was given: set data.source (or --data) to a dataset card, a folder or a recording."
            )
        dataset = _open(config)
        dataset.balance, dataset.epoch_samples = config.balance, config.epoch_samples
        if config.skip_list is not None:
            follow_skip_list(dataset, Path(config.skip_list).expanduser())
        return dataset


def open_dataset(
    source: str | Path | Sequence[str | Path], *, image_size: int | tuple[int, int] | None = None, **fields
) -> Dataset:
    """Open images, videos, sounds or recordings; the kind is recognised.

    Args:
        source: a card's name or file, a folder, a list of videos or sounds, a Minari id, a Hugging Face folder; or a
            sequence of them, joined.
        image_size: (height, width) or one number for both; None keeps the size on disk.
        **fields: any other field of `DataConfig`, e.g. split="test", target="state", camera="corner", cache="memory".

    Raises:
        MmsslError: nothing there, an empty folder, nothing to read in it, an unknown split, target, camera or field.
    """
    known = [f.name for f in dataclasses.fields(DataConfig)]
    for name in fields:
        if name not in known:
            raise unknown_name("option of open_dataset", name, known)
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return DataConfig(source=tuple(str(s) for s in sources), image_size=size and tuple(size), **fields).open()


def kinds_of(config: DataConfig) -> list[str]:
    """Kinds of the sources as they are recognised, each once: "recorded", "image_folder", ..."""
    return sorted({kind for kind, _, _ in (_locate(source, config) for source in config.source)})


def _open(config: DataConfig) -> Dataset:
    found = [_locate(source, config) for source in config.source]
    kinds = sorted({kind for kind, _, _ in found})
    apart = len(kinds) > 1 or (kinds == ["huggingface"] and len(found) > 1)  # each is opened by itself
    if apart and config.text is not None and set(kinds) <= _JOINABLE:
        return JoinedImageTexts([DATASETS.get(kind)(folders, config, card) for kind, folders, card in found], config)
    if config.trajectory is not None and kinds == ["lerobot", "recorded"]:
        kinds = ["lerobot"]  # which reads both
    if len(kinds) > 1:
        hint = "; set text to join pictures and captions" if set(kinds) <= {*_JOINABLE, "image_folder"} else ""
        raise MmsslError(
            f"the sources are of different kinds ({', '.join(kinds)}) and cannot be joined; give one kind{hint}."
        )
    folders = [folder for _, several, _ in found for folder in several]
    card = found[0][2] if len(found) == 1 else None
    if card is not None:
        config = dataclasses.replace(
            config,
            target=config.target or card.target,
            crop_fraction=card.crop_fraction if config.crop_fraction is None else config.crop_fraction,
        )
    if config.trajectory is not None and kinds[0] not in ("lerobot", "recorded"):
        raise MmsslError(
            f"trajectories are read from recordings and Minari or LeRobot data sets, got {kinds[0]}; give one of "
            "these, or set trajectory to null."
        )
    dataset = DATASETS.get(kinds[0])(folders, config, card)
    if config.audio is not None and dataset.audio is None:
        raise MmsslError(f"dataset {dataset.name!r} holds no sound; set audio to null.")
    if config.fold is not None and dataset.folds is None:
        raise MmsslError(f"dataset {dataset.name!r} comes in no folds; set fold to null.")
    if config.clip is not None and dataset.clip is None:
        raise MmsslError(f"dataset {dataset.name!r} holds images, of which no clip can be made; set clip to null.")
    if config.text is not None and dataset.text_encoder is None:
        log.warning("dataset %r has no captions, its batches no text", dataset.name)
    return dataset


def _locate(source: str, config: DataConfig) -> tuple[str, list[Path], cards.DatasetCard | None]:
    """(kind, folders, card or None) of one source, seen as what the config asks for: clips, sounds or texts."""
    path, audio = Path(source).expanduser(), config.audio is not None
    if is_shards(source):
        return "webdataset", [path], None
    if path.is_dir():
        return recognise(path, config.clip is not None, audio, config.text is not None)
    if path.suffix in (".yaml", ".yml") or source in paths.list_resources("data"):
        card, file = cards.load_card(path if path.is_file() else source)
        kind = "image_text_folder" if card.kind == "image_folder" and config.text is not None else card.kind
        return kind, cards.card_sources(card, file), card
    if path.suffix.lower() in TABLE_SUFFIXES and path.is_file() and _is_caption_table(path, config):
        return "image_text_table", [path], None
    if path.suffix.lower() in (*LIST_SUFFIXES, ".json") and path.is_file():
        return "audio_list" if audio or lists_sounds(path) else "video_list", [path], None
    if path.exists():
        raise MmsslError(
            f"{source} is a file; give a folder, a dataset card (.yaml), a list of videos or sounds "
            f"({' '.join((*LIST_SUFFIXES, '.json'))}), a table of captions ({' '.join(TABLE_SUFFIXES)}) or the id of a "
            "recording."
        )
    if re.search(r"-v\d+$", source) or source.count("/") == 1:
        return "recorded", [cards.recording_folder(source)], None
    raise MmsslError(
        f"there is no folder and no dataset card {source!r}; cards: {', '.join(paths.list_resources('data'))}; or give "
        "the path of a folder of images or videos, or the id of a recording (mmssl/SUITE/TASK-v0)."
    )


def _is_caption_table(file: Path, config: DataConfig) -> bool:
    """Whether a table is one of captions, and not a list of videos or sounds."""
    if file.suffix.lower() not in LIST_SUFFIXES:
        return True
    if config.audio is not None or config.clip is not None:
        return False
    return lists_captions(file, asked=config.text is not None)


def recognise(
    folder: Path, clips: bool = False, audio: bool = False, text: bool = False
) -> tuple[str, list[Path], None]:
    """(kind, folders, None) of a folder, by what lies in it.

    With `clips` pictures are the frames of videos; with `audio` videos are read for their sound; with `text` captions
    alone are samples.
    """
    if is_recording(folder):
        return "recorded", [folder], None
    if is_lerobot(folder):
        return "lerobot", [folder], None
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return "huggingface", [folder], None
    if any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")):
        return "huggingface", [folder], None
    if holds_aligned(folder):
        return "aligned_folder", [folder], None
    below = sorted(p.parent.parent for p in folder.glob("**/data/main_data.hdf5"))
    if below:
        return "recorded", below, None
    if (folder / "meta" / "esc50.csv").is_file():
        return "audio_list", [folder / "meta" / "esc50.csv"], None
    media = "audio" if audio else first_media(folder)
    if media is None and holds_shards(folder):
        return "webdataset", [folder], None
    if media == "image" and clips:
        return "frame_folder", [folder], None
    if media in (None, "image") and (text or has_captions(folder)):
        return "image_text_folder", [folder], None
    return f"{media or 'image'}_folder", [folder], None


def first_media(folder: Path) -> str | None:
    """ "video", "audio" or "image", by the first folder at or below this one that holds any.

    There a video outweighs sounds, and a sound outweighs images.
    """
    for _, names, files in os.walk(folder, followlinks=True):
        names[:] = sorted(name for name in names if not name.startswith("."))
        if any(VIDEOS.matches(file) for file in files):
            return "video"
        if any(SOUNDS.matches(file) for file in files):
            return "audio"
        if any(IMAGES.matches(file) for file in files):
            return "image"
    return None


def is_recording(folder: Path) -> bool:
    """True for the folder of one Minari dataset."""
    return (folder / "data" / "main_data.hdf5").is_file()
