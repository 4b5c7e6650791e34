"""Decode every file of a dataset once, whole, in processes that can be killed, and name those that cannot be used."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from mmssl.data.clip_dataset import reason_of
from mmssl.data.dataset import BadFiles, Dataset
from mmssl.data.decode import UNREADABLE
from mmssl.data.skip_list import follow_skip_list, write_skip_list
from mmssl.data.workers import WorkerPool
from mmssl.errors import MmsslError

LIMIT = 300.0  # seconds that one file may take
_TOGETHER = 4  # files that a worker gets at once
_SILENCE = 15.0  # seconds between two lines of progress, where there is no terminal


class Vetted(NamedTuple):
    """What came of it: name -> frames of each good file (1 for a picture), name -> reason of each bad one."""

    good: dict[str, int]
    bad: dict[str, str]


def vet(
    dataset: Dataset,
    workers: int | None = None,
    limit: float = LIMIT,
    tell: Callable[[str], None] | None = None,
) -> Vetted:
    """Decode everything. Nothing is noted in the dataset itself.

    Args:
        dataset: what to decode; what it leaves out already is not looked at.
        workers: processes; None takes one a core.
        limit: seconds that one file may take, then it is bad.
        tell: takes the lines of progress; None for silence.

    Raises:
        MmsslError: a limit that is not above 0, or processes that keep dying for want of memory.
    """
    if not limit > 0:
        raise MmsslError(f"the limit is a number of seconds above 0, got {limit:g}.")
    root = dataset.root
    places = _one_a_name(root)
    if not len(places):
        return Vetted({}, {})
    pieces = [{"places": part} for part in places.split(_TOGETHER)]
    outside, root.bad = root.bad, _Findings(len(root))
    progress, good = _Progress(len(places), tell), {}
    pool = WorkerPool(_Vetter(root), min(workers or _cores(), len(pieces)), limit)
    try:
        for answer in pool.run(pieces, ordered=False):
            names = [root.sample_name(place) for place in answer["places"].tolist()]
            good.update(zip(names, answer["frames"].tolist(), strict=True))
            progress.show(len(good) + root.bad.count, root.bad.count)
        return Vetted(dict(sorted(good.items())), dict(sorted(root.bad.names.items())))
    finally:
        pool.close()
        progress.close()
        root.bad = outside


def vet_once(
    dataset: Dataset,
    file: Path,
    workers: int | None = None,
    tell: Callable[[str], None] | None = None,
    is_main: bool = True,
) -> None:
    """Before the first step of a run: leave out what cannot be decoded, as the list `file` says.

    Where it is not there, the main one of the run's processes makes it, and the others wait for it. What training
    itself finds joins it.

    Raises:
        MmsslError: no sample is left.
    """
    if is_main and not file.exists():
        found = vet(dataset, workers, LIMIT, tell)
        total = len(found.good) + len(found.bad)
        for listed in dataset.root.bad.tell:  # a skip list of the user's
            for name, reason in found.bad.items():
                listed(name, reason)
        write_skip_list(file, found.bad, f"{total} files of {dataset.name} were decoded, {len(found.bad)} are bad")
    while not file.exists():
        time.sleep(1.0)
    follow_skip_list(dataset, file)


def _one_a_name(root: Dataset) -> Tensor:
    """int64: the first place of each file that is not left out."""
    first: dict[str, int] = {}
    for place in range(len(root)):
        if place not in root.bad.places:
            first.setdefault(root.sample_name(place), place)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Findings(BadFiles):
    """Bad samples without a limit and without a log: it is the job itself to find them."""

    def __init__(self, total: int):
        super().__init__(1.0, total)

    def add(self, place: int, name: str, reason: str) -> None:
        if place not in self.places:
            self.know(place, name, reason)
            self.found.append((place, name, reason))


class _Vetter:
    """Decodes a few files: {"places"} -> {"places", "frames"} of the good ones; runs in the workers."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __call__(self, piece: dict[str, Tensor]) -> dict[str, Tensor]:
        frames = {}
        for place in piece["places"].tolist():
            if place in self.dataset.bad.places:
                continue
            self.dataset.announce(place)
            try:
                frames[place] = self.dataset.decode_whole(place)
            except MmsslError:
                raise
            except UNREADABLE as error:
                self.dataset.bad.add(place, self.dataset.sample_name(place), reason_of(error))
        return {"places": torch.tensor(list(frames)), "frames": torch.tensor(list(frames.values()))}


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, tell: Callable[[str], None] | None):
        self._total, self._tell = total, tell
        self._on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc="decode", unit="file", disable=not (tell and self._on_terminal), leave=False)
        self._began = self._last = time.monotonic()

    def show(self, done: int, bad: int) -> None:
        self._bar.set_postfix_str(f"{bad} bad", refresh=False)
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._tell and not self._on_terminal and now - self._last > _SILENCE:
            left = tqdm.format_interval((now - self._began) / max(done, 1) * (self._total - done))
            self._tell(f"decoded {done} of {self._total} files, {bad} bad, {left} left")
            self._last = now

    def close(self) -> None:
        self._bar.close()
