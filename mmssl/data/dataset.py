"""What every dataset is: a map from a place to a sample that can also hand out whole batches.

A dataset opens one sample at a time (`read`), or overrides `fetch` where a batch can be read faster. Unreadable samples
are counted and named, and the next readable one stands in their place, until there are too many of them.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.clips import ClipSampling
from mmssl.data.crops import Geometry
from mmssl.data.decode import UNREADABLE
from mmssl.data.missing import fill_missing
from mmssl.data.text import TextEncoder
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError, unknown_name

log = logging.getLogger("mmssl.data")


class BadFiles:
    """The unreadable samples of a dataset: counted, named in the log, and an end to the run when there are too many.

    Args:
        limit: share of the dataset that may be unreadable, e.g. 0.01.
        total: number of samples in the dataset.
    """

    def __init__(self, limit: float, total: int):
        self.limit = limit
        self.total = total
        self.names: dict[str, str] = {}  # file name -> reason
        self.places: set[int] = set()  # those that are excluded too
        self.found: list[tuple[int, str, str]] = []  # (place, name, reason), in the order in which they were met
        self.excluded: dict[str, str] = {}  # left out from the start, not counted; file name -> reason
        self.tell: list[Callable[[str, str], None]] = []  # called with name and reason of each new one

    @property
    def count(self) -> int:
        return len(self.names)

    def add(self, place: int, name: str, reason: str) -> None:
        """Note one unreadable sample; an `MmsslError` with all names once they are more than the limit."""
        if place in self.places:
            return
        self.places.add(place)
        self.found.append((place, name, reason))
        self.names[name] = reason
        log.warning("unreadable, skipped (%d so far): %s: %s", self.count, name, reason)
        for tell in self.tell:
            tell(name, reason)
        if self.count > self.limit * self.total:
            raise MmsslError(self.sentence())

    def know(self, place: int, name: str, reason: str) -> None:
        """Note one that another process has met: nothing is logged, and the limit is that process's business."""
        self.places.add(place)
        self.names[name] = reason

    def exclude(self, place: int, name: str, reason: str) -> None:
        """Leave one out that a skip list names; it does not count against the limit."""
        self.places.add(place)
        self.excluded[name] = reason

    def sentence(self) -> str:
        if self.places and not self.names:
            return f"all of the {len(self.places)} samples are on a skip list; mend the list or the files."
        shown = "; ".join(f"{name} ({reason})" for name, reason in list(self.names.items())[:20])
        more = f"; and {self.count - 20} more" if self.count > 20 else ""
        return (
            f"{self.count} of {self.total} samples cannot be read, more than max_bad={self.limit:g} allows: "
            f"{shown}{more}. Repair or remove these files, or raise max_bad."
        )


class Dataset:
    """Base of all datasets. Subclasses set the fields below and write `__len__`, `read`, `sample_name` and `_labels`.

    Attributes:
        name: what a report calls it.
        modality: the batch key of its main input, "image".
        task: what its label means: "single_label", "multi_label", "regression" or None (no label).
        target: name of the label that comes with each sample, or None.
        targets: every name that `target` may have.
        classes: class names in label order, for classification.
        groups: int64 (N,) id of the episode that each sample comes from, or None. Samples of one group look alike, so a
            split must never cut through one.
        geometry: how a picture becomes a fixed-size array.
        bad: the unreadable samples so far.
        clip: how the frames of its clips are chosen; None for images.
        audio: which stretch of a sound makes a sample; None for pictures.
        text_encoder: turns captions into token ids; None for data without.
        lacks: modalities that some samples lack: their rows are zeros, and every batch has `present/<modality>`.
        segmentation_classes: names of the classes of `segmentation` in the order of their ids; None without names.
        views: places of each video or sound, one after the other: clips x crops at test time, else 1.
        folds: number of parts for k-fold evaluation, of which `DataConfig.fold` chooses one; None for data without.
        balance: training draws samples so that classes are equally frequent, see `Loader`.
        epoch_samples: samples of one epoch of training; None for as many as there are.
        announce: called with its place before a sample is read; a worker process is watched through it.
    """

    modality = "image"
    clip: ClipSampling | None = None
    audio: AudioSampling | None = None
    text_encoder: TextEncoder | None = None
    lacks: tuple[str, ...] = ()
    segmentation_classes: list[str] | None = None
    views = 1
    folds: int | None = None
    balance = False
    epoch_samples: int | None = None
    announce: Callable[[int], None] = staticmethod(lambda place: None)

    def __init__(self, name: str, geometry: Geometry, max_bad: float = 0.01):
        self.name = name
        self.geometry = geometry
        self.task: str | None = None
        self.target: str | None = None
        self.targets: tuple[str, ...] = ()
        self.classes: list[str] | None = None
        self.groups: Tensor | None = None
        self.bad = BadFiles(max_bad, len(self))

    def choose_target(self, tasks: dict[str, str], target: str | None, default: str | None = None) -> None:
        """Set `targets`, `target` and `task`.

        Args:
            tasks: target name -> what it means, for every target of this dataset.
            target: the wanted one; None takes the default, "none" takes no label.
            default: the target of a dataset that nobody chose one for.
        """
        self.targets = tuple(tasks)
        if target == "none":
            return
        if target is not None and target not in tasks:
            raise unknown_name(f"target of dataset {self.name!r}", target, [*tasks, "none"])
        self.target = target or default
        self.task = tasks.get(self.target)

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, place: int) -> dict:
        """The raw sample: {"image": PIL image or uint8 (H, W, 3) array, ...}. Raises one of `decode.UNREADABLE`."""
        raise NotImplementedError

    def decode_whole(self, place: int) -> int:
        """Read all there is of a sample and throw it away: its number of frames. Raises one of `decode.UNREADABLE`."""
        self.arrays(place, None, None)
        return 1

    def sample_name(self, place: int) -> str:
        """What a message calls the sample, usually its path."""
        return f"{self.name}[{place}]"

    def caption(self, place: int) -> list[str]:
        """All captions of a sample; [] for one without, and for data without text."""
        return []

    def tell(self) -> None:
        """Say in the log, once, what worker processes have counted: texts that are cut."""
        if self.text_encoder is not None:
            self.text_encoder.tell()

    @property
    def root(self) -> "Dataset":
        """The dataset that reads the files: this one, or what it is a part of. `bad`, `announce` count its places."""
        return self

    def _labels(self, target: str) -> Tensor:
        """Labels of all samples for one of `targets`: int64 (N,) or float32 (N, K)."""
        raise NotImplementedError

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of what comes out, or None where every sample keeps its own size."""
        return self.geometry.image_size

    def labels(self, target: str | None = None) -> Tensor:
        """Labels of all samples without reading any image: int64 (N,) class ids, or float32 (N, K).

        Raises:
            MmsslError: unknown target, or a dataset without labels.
        """
        target = target or self.target
        if not self.targets:
            raise MmsslError(
                f"dataset {self.name!r} has no labels; give one with labels, e.g. a folder of class folders."
            )
        if target is None:
            raise MmsslError(
                f"dataset {self.name!r} was opened without a target; give one of {', '.join(self.targets)}."
            )
        if target not in self.targets:
            raise unknown_name(f"target of dataset {self.name!r}", target, self.targets)
        return self._labels(target)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        """One sample in evaluation geometry: {"image": uint8 (3, H, W), "index": int64 (), "label"?}."""
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        batch = self.fetch(torch.tensor([place % len(self)]))
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Tensor]]:
        batch = self.fetch(torch.as_tensor(places))
        return [{key: value[row] for key, value in batch.items()} for row in range(len(places))]

    def fetch(
        self, index: Tensor, keys: Tensor | None = None, augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """A whole batch: {"image": uint8 (B, 3, H, W), "index": int64 (B,), "label"?}.

        Args:
            index: int64 (B,) places of the samples.
            keys: int64 (B,) from `mmssl.keys.sample_keys`; the random crop is a function of these alone.
            augmentation: what to draw from the keys; None gives the evaluation geometry.
        """
        return self.collate(*self.read_rows(index, keys, augmentation))

    def read_rows(
        self, index: Tensor, keys: Tensor | None, augmentation: Augmentation | None
    ) -> tuple[list[dict], Tensor]:
        """What `arrays` gives for each sample of a batch, and int64 (B,) the places where it was read."""
        draws = self.geometry.draws(keys, augmentation)
        rows, used = [], []
        for row, place in enumerate(index.tolist()):
            place, arrays = self._first_readable(place, draws[row] if draws is not None else None, augmentation)
            rows.append(arrays)
            used.append(place)
        return rows, torch.tensor(used, dtype=torch.int64)

    def arrays(self, place: int, draws: list[float] | None, augmentation: Augmentation | None) -> dict:
        """One sample as arrays of a fixed size. Raises one of `decode.UNREADABLE`."""
        return self.geometry.apply(self.read(place), draws, augmentation)

    def _first_readable(
        self, place: int, draws: list[float] | None, augmentation: Augmentation | None
    ) -> tuple[int, dict]:
        """Arrays of the sample at `place`, or of the next readable one after it (round the end), with its own place."""
        for step in range(len(self)):
            here = (place + step) % len(self)
            if here in self.bad.places:
                continue
            self.announce(here)
            try:
                return here, self.arrays(here, draws, augmentation)
            except MmsslError:
                raise
            except UNREADABLE as error:
                self.bad.add(here, self.sample_name(here), f"{type(error).__name__}: {error}")
        raise MmsslError(self.bad.sentence())

    def readable_places(self, index: Tensor) -> Tensor:
        """`index` with every place that is known to be unreadable moved on to the next readable one."""
        bad = self._known_bad()
        if bad is None:
            return index
        if bool(bad.all()):
            raise MmsslError(self.bad.sentence())
        good = index.clone()
        while bool(bad[good].any()):
            good = torch.where(bad[good], (good + 1) % len(self), good)
        return good

    def _known_bad(self) -> Tensor | None:
        """bool (N,): known to be unreadable; None where no sample is."""
        if not self.bad.places:
            return None
        bad = torch.zeros(len(self), dtype=torch.bool)
        bad[list(self.bad.places)] = True
        return bad

    def collate(self, rows: list[dict], index: Tensor) -> dict[str, Tensor]:
        """Stack samples of numpy arrays into a batch and put index and label beside them; `lacks` may be missing."""
        present = fill_missing(rows, self.lacks, self.image_size)
        batch = {}
        for key in rows[0]:
            shapes = {row[key].shape for row in rows}
            if len(shapes) > 1:
                raise MmsslError(
                    f"the images of dataset {self.name!r} differ in size, e.g. {sorted(shapes)[0][:2]} and "
                    f"{sorted(shapes)[-1][:2]}; give image_size, e.g. image_size=(224, 224)."
                )
            batch[key] = stack_planes(torch.from_numpy(np.stack([row[key] for row in rows])), key)
        return self.label({**batch, **present}, index)

    def label(self, batch: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """Put `index` and, where there is a target, `label` into a batch."""
        batch["index"] = index
        if self.target is not None:
            batch["label"] = self.target_labels()[index]
        return batch

    def target_labels(self) -> Tensor:
        """`labels()` of the dataset's own target, kept after the first call."""
        if not hasattr(self, "_target_labels"):
            self._target_labels = self.labels()
        return self._target_labels

    def label_pairs(self) -> tuple[Tensor, Tensor]:
        """(place, class id), int64 both, of every label of every sample, for the default target or the first one.

        Raises:
            MmsslError: no labels, or numbers that are no classes.
        """
        target = self.target or next(iter(self.targets), None)
        labels = self.labels(target)
        if labels.dim() == 1 and not labels.is_floating_point():
            return torch.arange(len(labels)), labels
        if labels.dim() != 2 or not bool(((labels == 0) | (labels == 1)).all()):
            raise MmsslError(f"the target {target!r} of dataset {self.name!r} is no class; choose one with classes.")
        return labels.nonzero(as_tuple=True)

    def subset(self, indices: Sequence[int] | Tensor) -> "Subset":
        """The samples at `indices`, renumbered from 0, with their labels and groups."""
        return Subset(self, torch.as_tensor(indices, dtype=torch.int64))


def stack_planes(batch: Tensor, key: str) -> Tensor:
    """Pictures (..., H, W, 3), depth (..., H, W) or ids (..., H, W) in the layout of the batch contract, or sound."""
    if key.startswith("audio"):
        return batch  # (B, 1, S)
    if key in ("state", "proprio"):
        return batch.float().reshape(len(batch), -1, batch.shape[-1])  # (B, T, D), T = 1 for frames
    if key.startswith("depth"):
        return batch.float().unsqueeze(-3)  # (..., 1, H, W)
    if key.startswith("segmentation"):
        return batch.long()  # (..., H, W)
    return torch.from_numpy(np.ascontiguousarray(batch.movedim(-1, -3).numpy()))  # (..., 3, H, W), twice torch's speed


class Subset(Dataset):
    """Some samples of another dataset. `index` counts inside the subset; unreadable files are the parent's business."""

    def __init__(self, parent: Dataset, places: Tensor):
        if len(places) and not (int(places.min()) >= 0 and int(places.max()) < len(parent)):
            raise MmsslError(f"a subset of {parent.name!r} asks for places outside 0..{len(parent) - 1}.")
        self.parent, self.places = parent, places
        self.name, self.geometry, self.bad = parent.name, parent.geometry, parent.bad
        self.modality, self.task, self.target = parent.modality, parent.task, parent.target
        self.targets, self.classes = parent.targets, parent.classes
        self.groups = None if parent.groups is None else parent.groups[places]
        self.clip, self.audio, self.views, self.folds = parent.clip, parent.audio, parent.views, parent.folds
        self.text_encoder, self.lacks = parent.text_encoder, parent.lacks
        self.segmentation_classes = parent.segmentation_classes
        self.balance, self.epoch_samples = parent.balance, parent.epoch_samples

    def __len__(self) -> int:
        return len(self.places)

    @property
    def root(self) -> Dataset:
        return self.parent.root

    def sample_name(self, place: int) -> str:
        return self.parent.sample_name(int(self.places[place]))

    def caption(self, place: int) -> list[str]:
        return self.parent.caption(int(self.places[place]))

    def _labels(self, target: str) -> Tensor:
        return self.parent.labels(target)[self.places]

    def fetch(
        self, index: Tensor, keys: Tensor | None = None, augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """As `Dataset.fetch`; a replaced sample is found inside the subset."""
        good = self.readable_places(index)
        batch = self.parent.fetch(self.places[good], keys, augmentation)
        replaced = batch["index"] != self.places[good]
        if bool(replaced.any()):  # the parent met a bad file just now: look again, inside the subset
            return self.fetch(index, keys, augmentation)
        batch["index"] = good
        return batch

    def _known_bad(self) -> Tensor | None:
        bad = self.parent._known_bad()
        return None if bad is None else bad[self.places]
