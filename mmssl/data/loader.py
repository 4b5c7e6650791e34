"""Batches in an order that is a pure function of the seed and the epoch.

The order does not depend on the number of workers or processes: a global batch is cut from one permutation, and each
process takes its share of every global batch. So a run can go on from any batch, and 8 workers give what none give.
"""

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmssl.data.dataset import Dataset
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError
from mmssl.keys import random_bits, sample_keys

_ORDER_STREAM = 2000


class Loader:
    """Batches of a dataset, epoch by epoch.

    Args:
        dataset: what to read.
        batch_size: rows of a batch of this process, repeats included.
        seed: of the order and of every draw.
        augmentation: what is drawn for each sample; None gives the evaluation geometry.
        workers: reading processes; 0 reads in this one. They stay alive between epochs.
        shuffle: a new order each epoch; False keeps the dataset's own.
        drop_last: leave out the last, smaller batch.
        repeats: rows that each sample gets in a batch, each with its own draws (repeated sampling).
        rank: number of this process.
        world: number of processes.
        pin_memory: put batches into page-locked memory; None does so where there is a GPU.

    Raises:
        MmsslError: batch size below 1 or not a multiple of `repeats`, or more than the dataset has.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        workers: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        repeats: int = 1,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool | None = None,
    ):
        if batch_size < 1 or repeats < 1 or batch_size % repeats:
            raise MmsslError(f"batch_size must be a positive multiple of repeats ({repeats}), got {batch_size}.")
        if not 0 <= rank < world:
            raise MmsslError(f"rank must lie in 0..{world - 1}, got {rank}.")
        self.dataset, self.batch_size, self.seed, self.augmentation = dataset, batch_size, seed, augmentation
        self.workers, self.shuffle, self.drop_last, self.repeats = workers, shuffle, drop_last, repeats
        self.rank, self.world = rank, world
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._pool: DataLoader | None = None
        self._work: list[tuple[Tensor, Tensor]] = []
        if len(self) == 0:
            raise MmsslError(
                f"dataset {dataset.name!r} has {len(dataset)} samples, fewer than one batch of "
                f"{batch_size * world // repeats}; take a smaller batch_size or more data."
            )

    def __len__(self) -> int:
        """Batches of one epoch of this process."""
        rows, whole = len(self.dataset) * self.repeats, self.batch_size * self.world
        return rows // whole if self.drop_last else -(-rows // whole)

    def order(self, epoch: int) -> Tensor:
        """int64 (N,): the places of all samples in the order in which this epoch visits them."""
        places = torch.arange(len(self.dataset))
        if not self.shuffle:
            return places
        noise = random_bits(sample_keys(self.seed, epoch, 0, places), 1, _ORDER_STREAM)[:, 0]
        return noise.argsort(stable=True)

    def plan(self, epoch: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
        """(index, keys) of every batch of this process from batch `start` on."""
        index = self.order(epoch).repeat_interleave(self.repeats)
        repeat = torch.arange(self.repeats).repeat(len(self.dataset))
        keys = sample_keys(self.seed, epoch, repeat, index)
        whole, work = self.batch_size * self.world, []
        for batch in range(start, len(self)):
            rows = slice(batch * whole, (batch + 1) * whole)
            share = (index[rows].tensor_split(self.world)[self.rank], keys[rows].tensor_split(self.world)[self.rank])
            if len(share[0]):
                work.append(share)
        return work

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch, from batch `start` on.

        Each is the dataset's batch with `index` (B,) and `keys` (B,), the samples' keys for masks and augmentation.
        """
        work = self.plan(epoch, start)
        answers = map(_Reader(self.dataset, self.augmentation), work) if not self.workers else self._from_workers(work)
        for batch, bad, failure in answers:
            self._take_note(bad, failure)
            if self.pin_memory and not self.workers:
                batch = {key: value.pin_memory() for key, value in batch.items()}
            yield batch

    def _take_note(self, bad: list[tuple[int, str, str]], failure: str | None) -> None:
        """Count what a worker could not read; where it is too much, or the worker failed, end the workers and raise."""
        try:
            for place, name, reason in bad:
                self.dataset.bad.add(place, name, reason)
            if failure is not None:
                raise MmsslError(failure)
        except MmsslError:
            self.close()
            raise

    def _from_workers(self, work: list[tuple[Tensor, Tensor]]) -> Iterator[tuple]:
        self._work[:] = work  # the pool's sampler is this very list
        if self._pool is None:
            self._pool = DataLoader(
                _Reader(self.dataset, self.augmentation, catch=True),
                batch_size=None,
                sampler=self._work,
                num_workers=self.workers,
                persistent_workers=True,
                pin_memory=self.pin_memory,
                worker_init_fn=_start_worker,
            )
        try:
            yield from self._pool
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            self.close()
            raise MmsslError(
                f"a data worker ended by itself, most likely for want of memory; use fewer workers. ({error})"
            ) from None

    def close(self) -> None:
        """End the worker processes.

        They are asked to end here and not left to the garbage collector, which may close their queues before they hear
        of it; torch then waits five seconds for each.
        """
        iterator = getattr(self._pool, "_iterator", None)
        self._pool = None
        if iterator is not None:
            iterator._shutdown_workers()


class _Reader:
    """Reads one piece of work, (index, keys) -> (batch, new unreadable samples, failure); lives in the worker."""

    def __init__(self, dataset: Dataset, augmentation: Augmentation | None, catch: bool = False):
        self.dataset, self.augmentation, self.catch = dataset, augmentation, catch
        self._told = 0

    def __getitem__(self, work: tuple[Tensor, Tensor]) -> tuple[dict | None, list, str | None]:
        index, keys = work
        try:
            batch, failure = self.dataset.fetch(index, keys, self.augmentation), None
            batch["keys"] = keys
        except MmsslError as error:
            if not self.catch:
                raise
            batch, failure = None, str(error)
        new = self.dataset.bad.found[self._told :]
        self._told += len(new)
        return batch, new, failure

    __call__ = __getitem__


def _start_worker(number: Any) -> None:
    """A worker leaves Ctrl-C and SIGTERM to the main process, which saves first, and uses one core.

    A SIGTERM to the whole process group (Slurm, systemd, docker) would else end the workers under a main process that
    still finishes its step; half a minute later they end whatever it does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))
    torch.set_num_threads(1)
