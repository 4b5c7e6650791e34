"""Batches in an order that is a pure function of the seed and the epoch.

The order does not depend on the number of workers or processes: a global batch is cut from one order of all samples,
and each process takes its share of every global batch. So a run can go on from any batch, and 8 workers give what none
give.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmssl.data.dataset import Dataset
from mmssl.data.label_sets import balanced_weights
from mmssl.data.transforms import Augmentation
from mmssl.data.workers import WorkerPool
from mmssl.errors import MmsslError
from mmssl.keys import random_bits, sample_keys

_ORDER_STREAM, _BALANCE_STREAM = 2000, 2001


class Loader:
    """Batches of a dataset, epoch by epoch.

    Args:
        dataset: what to read.
        batch_size: rows of a batch of this process, repeats included.
        seed: of the order and of every draw.
        augmentation: what is drawn for each sample; None gives the evaluation geometry.
        workers: reading processes; 0 reads in this one. They stay alive between epochs.
        shuffle: a new order each epoch; False keeps the dataset's own, each sample once.
        balance: draw with replacement, so that classes are equally frequent: a sample's weight is the sum over its
            labels of 1 / (samples with that label). None: as the dataset was opened.
        epoch_samples: samples of one epoch, fewer or more than there are; None: as the dataset was opened. Without
            `balance` epochs follow one another through the whole data, and every sample comes equally often.
        drop_last: leave out the last, smaller batch.
        repeats: rows that each sample gets in a batch, each with its own draws (repeated sampling).
        rank: number of this process.
        world: number of processes.
        pin_memory: put batches into page-locked memory; None does so where there is a GPU.
        timeout: seconds that a worker may take for one sample; then it is killed, and the sample counts as unreadable.
            None or 0 waits for ever.

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
        timeout: float | None = 60.0,
        balance: bool | None = None,
        epoch_samples: int | None = None,
    ):
        if batch_size < 1 or repeats < 1 or batch_size % repeats:
            raise MmsslError(f"batch_size must be a positive multiple of repeats ({repeats}), got {batch_size}.")
        if not 0 <= rank < world:
            raise MmsslError(f"rank must lie in 0..{world - 1}, got {rank}.")
        self.dataset, self.batch_size, self.seed, self.augmentation = dataset, batch_size, seed, augmentation
        self.workers, self.shuffle, self.drop_last, self.repeats = workers, shuffle, drop_last, repeats
        self.rank, self.world, self.timeout = rank, world, timeout
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._pool: WorkerPool | None = None
        balance = dataset.balance if balance is None else balance
        self._weights = _cumulative_weights(dataset) if balance and shuffle else None
        self.samples = (epoch_samples or dataset.epoch_samples or len(dataset)) if shuffle else len(dataset)
        if len(self) == 0:
            raise MmsslError(
                f"dataset {dataset.name!r} has {self.samples} samples, fewer than one batch of "
                f"{batch_size * world // repeats}; take a smaller batch_size or more data."
            )

    def __len__(self) -> int:
        """Batches of one epoch of this process."""
        rows, whole = self.samples * self.repeats, self.batch_size * self.world
        return rows // whole if self.drop_last else -(-rows // whole)

    def order(self, epoch: int) -> Tensor:
        """int64 (N,): the places of the samples in the order in which this epoch visits them."""
        if not self.shuffle:
            return torch.arange(len(self.dataset))
        if self._weights is not None:
            return self._balanced_order(epoch)
        # One permutation after the other, without end, of which every epoch takes its stretch.
        size, begin = len(self.dataset), epoch * self.samples
        first, last = begin // size, (begin + self.samples - 1) // size
        through = torch.cat([self._permutation(number) for number in range(first, last + 1)])
        return through[begin - first * size :][: self.samples]

    def _each_once(self, epoch: int) -> bool:
        """Whether no sample comes twice in an epoch."""
        size, begin = len(self.dataset), epoch * self.samples
        return not self.shuffle or (self._weights is None and begin % size + self.samples <= size)

    def _permutation(self, number: int) -> Tensor:
        places = torch.arange(len(self.dataset))
        noise = random_bits(sample_keys(self.seed, number, 0, places), 1, _ORDER_STREAM)[:, 0]
        return noise.argsort(stable=True)

    def _balanced_order(self, epoch: int) -> Tensor:
        """Each place drawn by itself: a uniform number of 53 bits, looked up in the sums of the weights."""
        draws = sample_keys(self.seed, epoch, 0, torch.arange(self.samples))
        bits = random_bits(draws, 1, _BALANCE_STREAM)[:, 0] >> 11 & (1 << 53) - 1
        wanted = bits.double() * 2.0**-53 * self._weights[-1]
        return torch.searchsorted(self._weights, wanted, right=True).clamp(max=len(self.dataset) - 1)

    def plan(self, epoch: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
        """(index, keys) of every batch of this process from batch `start` on."""
        order = self.order(epoch)
        index = order.repeat_interleave(self.repeats)
        repeat = torch.arange(self.repeats).repeat(len(order))
        if not self._each_once(epoch):
            repeat += _occurrence(order).repeat_interleave(self.repeats) * self.repeats
        keys = sample_keys(self.seed, epoch, repeat, index)
        whole, work = self.batch_size * self.world, []
        for batch in range(start, len(self)):
            rows = slice(batch * whole, (batch + 1) * whole)
            share = index[rows], keys[rows]
            if self.world > 1:
                share = tuple(x.tensor_split(self.world)[self.rank] for x in share)
            if len(share[0]):
                work.append(share)
        return work

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch, from batch `start` on.

        Each is the dataset's batch with `index` (B,) and `keys` (B,), the samples' keys for masks and augmentation.
        """
        return self._do([{"index": index, "keys": keys} for index, keys in self.plan(epoch, start)])

    def _do(self, pieces: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        read = _Reader(self.dataset, self.augmentation)
        if self.workers:
            if self._pool is None or self._pool.ended:
                if self.dataset.root.target is not None:
                    self.dataset.root.target_labels()  # kept: else each worker reads them all, while it is timed
                self._pool = WorkerPool(read, self.workers, self.timeout, self.pin_memory)
            for batch in self._pool.run(pieces):
                self.dataset.root.tell()
                yield batch
            return
        for piece in pieces:
            batch = read(piece)
            yield {key: value.pin_memory() for key, value in batch.items()} if self.pin_memory else batch

    def peek(self) -> dict[str, Tensor]:
        """The first sample in evaluation geometry, as a batch of one; a worker reads it where there are any."""
        return next(self._do([{"index": torch.tensor([0])}]))

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None


def _occurrence(order: Tensor) -> Tensor:
    """int64 (N,): how often each place has come before, so that its draws are new ones every time."""
    at = order.argsort(stable=True)
    ordered = order[at]
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    places = torch.arange(len(order))
    since = torch.where(fresh, places, 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, at, places - since)


def _cumulative_weights(dataset: Dataset) -> Tensor:
    """float64 (N,): running sums of the weights that make classes equally frequent."""
    sums = balanced_weights(*dataset.label_pairs(), len(dataset)).cumsum(0)
    if len(sums) == 0 or sums[-1] == 0:
        raise MmsslError(f"no sample of dataset {dataset.name!r} has a label, so that nothing can be balanced.")
    return sums


class _Reader:
    """Reads one batch: {"index", "keys"} -> what `Loader.epoch` gives; {"index"} -> it in evaluation geometry."""

    def __init__(self, dataset: Dataset, augmentation: Augmentation | None):
        self.dataset, self.augmentation = dataset, augmentation

    def __call__(self, piece: dict[str, Tensor]) -> dict[str, Tensor]:
        if "keys" not in piece:
            return self.dataset.fetch(piece["index"])
        return {**self.dataset.fetch(piece["index"], piece["keys"], self.augmentation), "keys": piece["keys"]}
