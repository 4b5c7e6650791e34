"""One source of features on labelled videos: settings, answers and scores. `tracking.py` compares several."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from mmssl.data.labelled_videos import IGNORE, Kind, LabelledVideo
from mmssl.data.sequences import LabelledSequences
from mmssl.errors import MmsslError, unknown_name
from mmssl.evaluation.features import EvaluatorConfig
from mmssl.evaluation.frame_maps import EncoderMaps, FrameMaps, frame_maps
from mmssl.evaluation.keypoint_scores import JointTally, joint_maps, joint_places
from mmssl.evaluation.propagation import PropagationConfig, hard_labels, propagate, soft_labels
from mmssl.evaluation.segmentation_scores import MaskTally, PartTally
from mmssl.registry import register_evaluator

PROTOCOLS = ("auto", "masks", "parts", "keypoints")


@dataclasses.dataclass(frozen=True)
class TrackConfig(EvaluatorConfig):
    """Settings of label propagation; see `PropagationConfig` for the first four."""

    top_k: int = PropagationConfig.top_k
    neighbourhood: int = PropagationConfig.neighbourhood
    queue: int = PropagationConfig.queue
    temperature: float = PropagationConfig.temperature
    size: tuple[int, ...] = ()  # height and width, or the shorter side, that frames are resized to
    zoom: float = 1.0  # without a size: they are made so many times larger than their own
    first: Literal["nearest", "share"] = "share"  # how the first labels come to token resolution, see `soft_labels`
    stretch: bool = True  # scale each class to [0, 1] before they compete for a pixel, see `hard_labels`
    protocol: str = "auto"  # auto | masks | parts | keypoints

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) > 2 or any(side < 1 for side in self.size):
            raise MmsslError(f"size is a height and a width, or one shorter side, in pixels; got {self.size}.")
        if not self.zoom > 0:
            raise MmsslError(f"zoom must be above 0, got {self.zoom}.")
        if self.protocol not in PROTOCOLS:
            raise unknown_name("protocol", self.protocol, PROTOCOLS)
        _ = self.propagation  # looks at the values

    @property
    def propagation(self) -> PropagationConfig:
        return PropagationConfig(self.top_k, self.neighbourhood, self.queue, self.temperature)


PRESETS = {
    # huiwon-jang/RSP's evaluation of RSP, SiamMAE and others with ViT-S/16
    "davis": TrackConfig(size=(480, 880), first="nearest"),
    # sizes of UVC and the space-time walk, the rest as alexandre-eymael/CropMAE's evaluation
    "vip": TrackConfig(size=(560, 560), first="nearest", top_k=10, neighbourhood=20, queue=20, temperature=0.7),
    "jhmdb": TrackConfig(size=(320, 320), neighbourhood=20, queue=20, temperature=0.7),
    # small frames: as many tokens over an object as in DAVIS, and what moves slowly is sought nearby
    "recorded": TrackConfig(zoom=2.0, neighbourhood=6, queue=20),
}
"""Settings of each layout that nobody chose others for."""


class Tally(Protocol):
    """Scores of answers, added a sequence at a time."""

    def add(self, truths: Sequence[np.ndarray | None], guesses: Iterable[np.ndarray]) -> dict[str, float]: ...

    def total(self) -> dict[str, float]: ...


@register_evaluator("track")
def label_propagation(encoder: nn.Module, data: Any, config: TrackConfig = TrackConfig()) -> dict[str, float]:
    """J, F and J&F of masks, mIoU of parts, or PCK of joints, over all sequences of a `LabelledSequences`.

    Raises:
        MmsslError: data of another kind, or an encoder that reads something else than images or video.
    """
    if not isinstance(data, LabelledSequences):
        raise MmsslError("'track' is judged on labelled videos, not on a probe's splits; run `mmssl track WEIGHTS`.")
    protocol, source = choose_protocol(data, config), EncoderMaps(encoder)
    tally = make_tally(protocol, data)
    for video in data.videos:
        tally.add(truths_of(video), carry_through(source, video, protocol, config))
    return tally.total()


def choose_protocol(data: LabelledSequences, config: TrackConfig) -> Kind:
    """How the sequences are judged: as their labels are, or parts as masks of single objects."""
    kind = data.videos[0].kind
    if config.protocol in ("auto", kind) or (kind, config.protocol) == ("parts", "masks"):
        return kind if config.protocol == "auto" else config.protocol
    valid = [kind, "masks"] if kind == "parts" else [kind]
    raise MmsslError(
        f"{data.name!r} has labels of the kind {kind!r}, which cannot be judged as {config.protocol!r}; "
        f"valid: {', '.join(['auto', *valid])}."
    )


def make_tally(protocol: Kind, data: LabelledSequences) -> Tally:
    """An empty tally of a protocol."""
    if protocol == "parts":
        return PartTally(len(data.videos[0].classes))
    return MaskTally() if protocol == "masks" else JointTally()


def truths_of(video: LabelledVideo) -> list[np.ndarray | None]:
    """The labels of every frame; an `MmsslError` where the first frame shows nothing, or no other frame is known."""
    truths = [video.labels(place) for place in range(len(video))]
    if all(truth is None for truth in truths[1:]):
        raise MmsslError(
            f"the sequence {video.name!r} has labels of its first frame alone, so nothing can be judged; give a split "
            "with annotations."
        )
    if video.kind != "keypoints" and not ((truths[0] > 0) & (truths[0] != IGNORE)).any():
        raise MmsslError(f"the first frame of the sequence {video.name!r} shows no object, so nothing can be tracked.")
    return truths


@torch.no_grad()
def carry_through(
    source: FrameMaps | None, video: LabelledVideo, protocol: Kind, config: TrackConfig
) -> list[np.ndarray]:
    """An answer for every frame: uint8 (H, W) ids, or float (K, 2) joints with NaN where one is not seen.

    The first is the given one. Without a source of features it is held fixed.
    """
    given, size = video.labels(0), video.frame(0).shape[:2]
    if protocol == "keypoints":
        inside = ((given >= 0) & (given < (size[1], size[0]))).all(1)
        given = np.where(inside[:, None], given, np.nan)
    if source is None:
        return [given] * len(video)
    seen = source.fit(wanted_size(size, config))
    grid = (seen[0] // source.patch[0], seen[1] // source.patch[1])
    maps = frame_maps(source, video, seen, config.batch_size)
    if protocol == "keypoints":
        soft = propagate(maps, joint_maps(given, size, grid).to(source.device), config.propagation)
        return [given, *(joint_places(labels, size) for labels in soft)]
    values = [0, *(k for k in np.unique(given).tolist() if k not in (0, IGNORE))]
    first = soft_labels(torch.tensor(given), values, grid, config.first).to(source.device)
    ids = np.array(values, np.uint8)
    soft = propagate(maps, first, config.propagation)
    return [given, *(ids[hard_labels(labels, seen, size, config.stretch).cpu().numpy()] for labels in soft)]


def wanted_size(frame: tuple[int, int], config: TrackConfig) -> tuple[int, int]:
    """(H, W) that frames of a size are resized to: a given size, a given shorter side, or their own size zoomed."""
    if len(config.size) == 2:
        return tuple(config.size)
    zoom = config.size[0] / min(frame) if config.size else config.zoom
    return tuple(round(side * zoom) for side in frame)
