"""`mmssl track`: how far frozen features carry masks, parts or joints through a video.

"random" is a random encoder of the same shape, "pixels" the raw pixels of each patch, and "copy" holds the first
frame's labels where they are: what is worth having lies above all three.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import nn
from tqdm import tqdm

from mmssl.data.labelled_videos import LabelledVideo
from mmssl.data.recorded_masks import ObjectRule
from mmssl.data.sequences import LabelledSequences, open_sequences
from mmssl.errors import MmsslError
from mmssl.evaluation.baselines import random_like
from mmssl.evaluation.features import device_of, mean_and_spread
from mmssl.evaluation.frame_maps import EncoderMaps, FrameMaps, PixelMaps
from mmssl.evaluation.overlays import draw, save_mp4, save_strip, save_webp, strip
from mmssl.evaluation.scores import Score, table, write_scores
from mmssl.evaluation.sources import load_encoder, own_data
from mmssl.evaluation.tracker import PRESETS, Tally, TrackConfig, carry_through, choose_protocol, make_tally, truths_of
from mmssl.training.atomic import write_text

SHOWN = {"masks": ("J&F", "J", "F"), "parts": ("mIoU", "pixel accuracy"), "keypoints": ("PCK@.1", "PCK@.2", "lost")}
"""What of a protocol's scores stands in `scores.json` and in the table; the rest is in the folder of the overlays."""
_LOWER_IS_BETTER = ("lost",)
_COLUMNS = 6  # frames in a strip
_ANIMATED = 80  # frames in an animation at most
_LISTED = 40  # sequences in the printed table at most


@dataclasses.dataclass(frozen=True)
class Which:
    """Which sequences are tracked."""

    split: str | None = None
    """by default the one of the published figures (DAVIS and VIP val, JHMDB test), and held-out episodes"""
    camera: str | None = None
    """of a recording"""
    limit: int | None = None
    """at most so many sequences, spread evenly"""
    stride: int = 1
    """keep every so manieth frame"""
    min_share: float = ObjectRule.min_share
    """recordings: an object covers at least this share of the first frame"""
    max_objects: int = ObjectRule.most
    """recordings: so many moving objects at most, the largest"""

    def open(self, weights: str, data: tuple[str, ...]) -> LabelledSequences:
        """The sequences of the data, or of the run's own recordings."""
        if self.limit is not None and self.limit < 1:
            raise MmsslError(f"limit must be at least 1, got {self.limit}.")
        own = {} if data else own_data(weights)
        if not data and not own.get("source"):
            raise MmsslError("no data to judge on: give --data the folder of DAVIS, VIP or JHMDB, or a recording.")
        found = open_sequences(
            data or own["source"],
            split=self.split,
            camera=self.camera or own.get("camera"),
            test_every=own.get("test_every", 5),
            stride=self.stride,
            rule=ObjectRule(min_share=self.min_share, most=self.max_objects),
        )
        if self.limit is None or len(found.videos) <= self.limit:
            return found
        kept = torch.linspace(0, len(found.videos) - 1, self.limit).round().long().tolist()
        return dataclasses.replace(found, videos=[found.videos[k] for k in kept])


@dataclasses.dataclass(frozen=True)
class How:
    """What of a dataset's published settings is changed; none keeps its own."""

    size: tuple[int, ...] | None = None
    """height and width that frames are resized to, or the shorter side alone (DAVIS 480 880, VIP 560 560, JHMDB 320
    320, recordings twice their own)"""
    top_k: int | None = None
    """tokens that a token takes its labels from"""
    neighbourhood: int | None = None
    """how many tokens away they may lie; 0 for anywhere"""
    queue: int | None = None
    """last frames that they may come from, besides the first"""
    temperature: float | None = None
    """of the weights exp(cosine / temperature)"""


def track(
    weights: str,
    *,
    data: tuple[str, ...] = (),
    protocol: str = "auto",
    which: Annotated[Which, tyro.conf.OmitArgPrefixes] = Which(),
    how: Annotated[How, tyro.conf.OmitArgPrefixes] = How(),
    random_seeds: int = 1,
    overlays: bool = True,
    out: Path | None = None,
    batch_size: int = 256,
    device: str = "auto",
    quiet: bool = False,
) -> list[Score]:
    """Propagate the labels of each video's first frame with frozen features; print J and F, mIoU or PCK.

    A run folder gets the scores in its `scores.json`, and the pictures and each sequence's scores in `track/`.

    Args:
        weights: a run folder, an exported folder, a published checkpoint, or a hub or timm name.
        data: the folder of DAVIS-2017, VIP or JHMDB, a card of one of them, or recordings with a segmentation
            (metaworld/drawer-open); by default the run's own recordings.
        protocol: auto (what the data's labels are), masks (J and F), parts (mIoU) or keypoints (PCK).
        which: the sequences.
        how: changed settings of the propagation.
        random_seeds: random encoders to compare with; mean and spread are shown.
        overlays: draw the pictures.
        out: folder of the pictures and of each sequence's scores, in place of the run's.
        batch_size: frames in one pass of the encoder at most; never changes the scores.
        device: auto, cpu, cuda or mps.
        quiet: no progress and no table.
    """
    if random_seeds < 1:
        raise MmsslError(f"random_seeds must be at least 1, got {random_seeds}.")
    sequences = which.open(weights, data)
    changed = {name: value for name, value in vars(how).items() if value is not None}
    config = dataclasses.replace(PRESETS[sequences.layout], protocol=protocol, batch_size=batch_size, **changed)
    contest = Contest(contestants(load_encoder(weights, device), random_seeds), sequences, config)
    run = Path(weights) if (Path(weights) / "config.yaml").is_file() else None
    folder = out or (run / "track" if run else None)
    folder = folder and Path(folder) / sequences.name.replace("/", "_")
    contest.run(folder if overlays else None, quiet)
    rows = contest.scores(question(contest, which))
    if run is not None:
        write_scores(run, rows)
    if folder is not None:
        contest.write(folder)
    if not quiet:
        print(table(rows), contest.by_sequence(), sep="\n\n")
        print(f"\npictures, and all scores of each sequence: {folder}" if folder else "\n--out FOLDER keeps pictures.")
    return rows


def question(contest: "Contest", which: Which) -> str:
    """What `scores.json` calls the evaluator: its name, and what makes it another question than by default."""
    data, preset = contest.sequences, PRESETS[contest.sequences.layout]
    words = ["track" if contest.protocol == data.videos[0].kind else f"track {contest.protocol}"]
    for given, usual in ((which, Which()), (contest.config, preset)):
        for field in dataclasses.fields(given):
            value = getattr(given, field.name)
            if value != getattr(usual, field.name) and field.name not in ("protocol", "batch_size"):
                words.append(
                    f"{field.name.replace('_', '-')} {'x'.join(map(str, value)) if field.name == 'size' else value}"
                )
    return ", ".join(words)


def contestants(encoder: nn.Module, random_seeds: int = 1) -> dict[str, list[FrameMaps | None]]:
    """The encoder and what it is compared with: name -> sources of features; None holds the first labels fixed."""
    own = EncoderMaps(encoder)
    random = [EncoderMaps(random_like(encoder, seed)) for seed in range(random_seeds)]
    return {"pretrained": [own], "random": random, "pixels": [PixelMaps(own.patch, device_of(encoder))], "copy": [None]}


class Contest:
    """Every contestant on every sequence.

    Attributes:
        tallies: contestant -> one tally for each of its sources.
        each: sequence -> contestant -> its scores there (of several sources: the mean).
    """

    def __init__(self, entered: dict[str, list[FrameMaps | None]], sequences: LabelledSequences, config: TrackConfig):
        self.entered, self.sequences, self.config = entered, sequences, config
        self.protocol = choose_protocol(sequences, config)
        self.tallies: dict[str, list[Tally]] = {
            name: [make_tally(self.protocol, sequences) for _ in sources] for name, sources in entered.items()
        }
        self.each: dict[str, dict[str, dict[str, float]]] = {}

    def run(self, folder: Path | None = None, quiet: bool = False) -> None:
        """Judge; with a folder, draw each sequence as soon as it is judged."""
        videos = self.sequences.videos
        bar = tqdm(total=len(videos) * len(self.entered), disable=None if not quiet else True, unit="pass")
        for number, video in enumerate(videos, 1):
            truths, answers = truths_of(video), {}
            self.each[video.name] = {}
            for name, sources in self.entered.items():
                bar.set_description(f"{video.name}, {name}")
                scores = []
                for source, tally in zip(sources, self.tallies[name], strict=True):
                    answer = carry_through(source, video, self.protocol, self.config)
                    answers.setdefault(name, answer)
                    scores.append(tally.add(truths, answer))
                self.each[video.name][name] = mean_and_spread(scores)
                bar.update()
            if folder is not None:
                draw_sequence(folder, video, truths, answers)
            if not quiet:
                bar.write(f"{number}/{len(videos)} {video.name}: {self._line(self.each[video.name])}")
        bar.close()

    def _line(self, found: dict[str, dict[str, float]]) -> str:
        headline = SHOWN[self.protocol][0]
        return f"{headline} " + ", ".join(f"{name} {scores[headline]:.3f}" for name, scores in found.items())

    def totals(self) -> dict[str, dict[str, float]]:
        """Contestant -> scores over all sequences; of several sources the mean and `<metric>/spread`."""
        return {name: mean_and_spread([tally.total() for tally in tallies]) for name, tallies in self.tallies.items()}

    def scores(self, evaluator: str) -> list[Score]:
        """The rows of `scores.json`."""
        return [
            Score(
                evaluator, self.sequences.name, name, m, found[m], found.get(f"{m}/spread"), m not in _LOWER_IS_BETTER
            )
            for name, found in self.totals().items()
            for m in SHOWN[self.protocol]
        ]

    def by_sequence(self) -> str:
        """Aligned text: one line a sequence, one column a contestant."""
        headline, names = SHOWN[self.protocol][0], list(self.entered)
        lines = [[f"{headline} of each sequence", *names]]
        for video, found in list(self.each.items())[:_LISTED]:
            lines.append([video, *(f"{found[name][headline]:.3f}" for name in names)])
        widths = [max(len(line[i]) for line in lines) for i in range(len(names) + 1)]
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        more = [f"... and {len(self.each) - _LISTED} more"] if len(self.each) > _LISTED else []
        return "\n".join([text[0], "-" * len(text[0]), *text[1:], *more])

    def write(self, folder: Path) -> None:
        """`scores.json` of the folder: the settings, the totals, and the scores of each sequence."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"protocol": self.protocol, **{f.name: getattr(self.config, f.name) for f in _own_fields()}}
        objects = {video.name: list(video.classes[1:]) for video in self.sequences.videos if video.kind == "masks"}
        held = {"settings": settings, "total": self.totals(), "sequences": self.each}
        write_text(folder / "scores.json", json.dumps({**held, "objects": objects}, indent=1) + "\n")


def _own_fields() -> Sequence[dataclasses.Field]:
    shared = {"pooling", "labels_per_class", "labels", "draws", "seed", "batch_size", "workers", "protocol"}
    return [field for field in dataclasses.fields(TrackConfig) if field.name not in shared]


def draw_sequence(folder: Path, video: LabelledVideo, truths: list, answers: dict[str, list[np.ndarray]]) -> None:
    """`<sequence>.png`, a strip of some frames, and `<sequence>.webp` and `.mp4` of all: truth beside each answer."""
    stem = video.name.replace("/", "_")
    rows = {"truth": truths, **{name: answer for name, answer in answers.items() if name != "copy"}}
    some = np.linspace(0, len(video) - 1, min(_COLUMNS, len(video))).round().astype(int).tolist()
    painted = {name: [_paint(video, place, row[place]) for place in some] for name, row in rows.items()}
    save_strip(folder / f"{stem}.png", painted, [f"frame {video.times[place]}" for place in some])
    moving = np.linspace(0, len(video) - 1, min(_ANIMATED, len(video))).round().astype(int).tolist()
    frames = [
        np.asarray(strip({"": [_paint(video, place, row[place]) for row in rows.values()]}, list(rows)))
        for place in moving
    ]
    save_webp(folder / f"{stem}.webp", frames)
    save_mp4(folder / f"{stem}.mp4", frames)


def _paint(video: LabelledVideo, place: int, answer: np.ndarray | None) -> np.ndarray:
    """A frame with an answer drawn over it; without one, where the truth is not known."""
    frame = video.frame(place)
    return draw(frame, np.zeros(frame.shape[:2], np.uint8) if answer is None else answer)
