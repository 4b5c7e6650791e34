"""Labelled sequences from whatever a user points at: DAVIS, VIP, JHMDB, or recordings with a segmentation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmssl.data import cards, davis, jhmdb, recorded_masks, vip
from mmssl.data.labelled_videos import LabelledVideo
from mmssl.data.loading import is_recording
from mmssl.data.recorded_masks import ObjectRule
from mmssl.errors import MmsslError
from mmssl.paths import list_resources


@dataclass(frozen=True)
class Layout:
    """How one dataset lies on disk: `recognise(folder)`, and `read(folder, split)` -> sequences."""

    recognise: Callable[[Path], bool]
    read: Callable[[Path, str], list[LabelledVideo]]
    default_split: str


LAYOUTS = {
    "davis": Layout(davis.is_davis, davis.davis_sequences, davis.DEFAULT_SPLIT),
    "vip": Layout(vip.is_vip, vip.vip_sequences, vip.DEFAULT_SPLIT),
    "jhmdb": Layout(jhmdb.is_jhmdb, jhmdb.jhmdb_sequences, jhmdb.DEFAULT_SPLIT),
    "recorded": Layout(is_recording, recorded_masks.recorded_sequences, recorded_masks.DEFAULT_SPLIT),
}


@dataclass(frozen=True)
class LabelledSequences:
    """Sequences of one layout: "davis", "vip", "jhmdb" or "recorded"."""

    name: str
    layout: str
    videos: list[LabelledVideo]


def open_sequences(
    source: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    camera: str | None = None,
    test_every: int = 5,
    stride: int = 1,
    rule: ObjectRule | None = None,
) -> LabelledSequences:
    """Open labelled sequences; the layout is recognised.

    Args:
        source: a card's name or file, the folder of a dataset, a recording's folder or id (`metaworld/drawer-open`); or
            several of one kind.
        split: None for the one that published figures are measured on (DAVIS and VIP: val, JHMDB: test), and for the
            held-out episodes of a recording.
        camera: recordings: which camera.
        test_every: recordings: every how manieth episode is held out.
        stride: keep every so manieth frame.
        rule: recordings: which parts of the scene are tracked.

    Raises:
        MmsslError: nothing there, an unknown layout, several layouts, no sequence.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    if not sources:
        raise MmsslError("no data was given: name a dataset card, a folder or a recording.")
    if stride < 1:
        raise MmsslError(f"stride must be at least 1, got {stride}.")
    found = [_locate(str(s)) for s in sources]
    layouts = sorted({layout for layout, _, _ in found})
    if len(layouts) > 1:
        raise MmsslError(
            f"the sources are of different kinds ({', '.join(layouts)}) and cannot be joined; give one kind."
        )
    layout = LAYOUTS[layouts[0]]
    read = layout.read
    if layouts[0] == "recorded":
        read = partial(read, camera=camera, test_every=test_every, rule=rule)
    folders = [folder for _, several, _ in found for folder in several]
    videos = [video for folder in folders for video in read(folder, split or layout.default_split)]
    videos = [video.every(stride) for video in videos]
    videos = [video for video in videos if len(video) > 1]
    if not videos:
        raise MmsslError(
            f"{', '.join(str(s) for s in sources)} gives no sequence to track: each needs 2 frames or more"
            + (", and an object that moves (min_share, max_share)." if layouts[0] == "recorded" else ".")
        )
    name = "+".join(name for _, _, name in found[:3]) + ("+..." if len(found) > 3 else "")
    return LabelledSequences(name, layouts[0], videos)


def _locate(source: str) -> tuple[str, list[Path], str]:
    """(layout, folders, name) of one source."""
    path = Path(source).expanduser()
    if path.is_dir():
        return *_recognise(path), path.resolve().name
    if path.suffix in (".yaml", ".yml") or source in list_resources("data"):
        card, file = cards.load_card(path if path.is_file() else source)
        if card.kind not in LAYOUTS:
            raise MmsslError(
                f"dataset card {card.name!r} is of the kind {card.kind!r}, which has no labelled videos{_ALLOWED}"
            )
        return card.kind, cards.card_sources(card, file), card.name
    if path.exists() or source.count("/") < 1 or source.startswith((".", "/", "~")):
        raise MmsslError(f"there is no folder and no dataset card {source!r}{_ALLOWED}")
    folder = cards.recording_folder(source)
    return "recorded", [folder], f"{folder.parent.name}/{folder.name}"


_ALLOWED = "; give the folder of DAVIS, VIP or JHMDB, a card of one of them, or a recording (SUITE/TASK)."


def _recognise(folder: Path) -> tuple[str, list[Path]]:
    """(layout, folders) of a folder, by what lies in it; recordings may lie anywhere below it."""
    for name, layout in LAYOUTS.items():
        if layout.recognise(folder):
            return name, [folder]
    below = sorted(file.parent.parent for file in folder.glob("**/data/main_data.hdf5"))
    if below:
        return "recorded", below
    raise MmsslError(
        f"{folder} is no labelled video data that is known{_ALLOWED} DAVIS has JPEGImages and ImageSets, VIP "
        "Annotations/Category_ids, JHMDB joint_positions."
    )
