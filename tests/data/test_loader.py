"""The order of batches, going on from any of them, workers, processes, repeats."""

import os
import signal
from itertools import chain

import numpy as np
import pytest
import torch

from mmssl import open_dataset
from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.loader import Loader
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys


class Numbers(Dataset):
    """n tiny pictures whose only value is their place."""

    def __init__(self, n: int):
        self.n = n
        super().__init__("numbers", Geometry())

    def __len__(self) -> int:
        return self.n

    def read(self, place: int) -> dict:
        return {"image": np.full((2, 2, 3), place % 256, np.uint8)}


def indices(loader: Loader, epoch: int, start: int = 0) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader.epoch(epoch, start)]


def assert_same(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_each_epoch_visits_every_sample_once_in_another_order():
    loader = Loader(Numbers(40), 8, seed=1)
    first, second = (list(chain(*indices(loader, epoch))) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second != list(range(40))


def test_order_is_a_function_of_seed_and_epoch():
    assert indices(Loader(Numbers(40), 8, seed=1), 3) == indices(Loader(Numbers(40), 8, seed=1), 3)
    assert indices(Loader(Numbers(40), 8, seed=1), 3) != indices(Loader(Numbers(40), 8, seed=2), 3)


def test_goes_on_from_any_batch():
    loader = Loader(Numbers(37), 5, seed=4)
    whole = indices(loader, 2)
    assert len(loader) == len(whole) == 7
    for start in range(8):
        assert indices(loader, 2, start) == whole[start:]


def test_keys_are_the_samples_own():
    for batch in Loader(Numbers(12), 4, seed=9).epoch(2):
        assert torch.equal(batch["keys"], sample_keys(9, 2, 0, batch["index"]))


def test_drop_last_and_unshuffled():
    assert indices(Loader(Numbers(10), 4, shuffle=False), 5) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert indices(Loader(Numbers(10), 4, shuffle=False, drop_last=False), 0)[-1] == [8, 9]


def test_repeats_stand_side_by_side_with_keys_of_their_own():
    loader = Loader(Numbers(6), 4, repeats=2, seed=1)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 3
    for batch in batches:
        pairs, keys = batch["index"].view(2, 2), batch["keys"].view(2, 2)
        assert torch.equal(pairs[:, 0], pairs[:, 1])
        assert bool((keys[:, 0] != keys[:, 1]).all())


@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_share_the_batches_of_one(drop_last: bool):
    alone = [sorted(b) for b in indices(Loader(Numbers(43), 12, seed=5, drop_last=drop_last), 1)]
    shares = [indices(Loader(Numbers(43), 4, seed=5, rank=r, world=3, drop_last=drop_last), 1) for r in range(3)]
    together = [sorted(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert together == alone


def test_workers_give_the_same_bits(pictures):
    dataset = open_dataset(pictures, image_size=24)
    augmentation = Augmentation(rand_augment=9.0)
    alone, pool = (Loader(dataset, 4, seed=3, augmentation=augmentation, workers=w) for w in (0, 2))
    for epoch in range(2):  # the second epoch reuses the same processes
        assert_same(list(alone.epoch(epoch)), list(pool.epoch(epoch)))
    assert_same(list(alone.epoch(1, start=2)), list(pool.epoch(1, start=2)))
    next(iter(pool.epoch(0)))  # an epoch that is given up half way
    assert_same(list(alone.epoch(5)), list(pool.epoch(5)))
    pool.close()


def test_crop_depends_on_the_key_alone(pictures):
    dataset = open_dataset(pictures, image_size=24, split="all")
    keys = sample_keys(0, 0, 0, torch.arange(4))
    together = dataset.fetch(torch.arange(4), keys, Augmentation())["image"]
    alone = [dataset.fetch(torch.tensor([k]), keys[k : k + 1], Augmentation())["image"][0] for k in range(4)]
    assert torch.equal(together, torch.stack(alone))
    again = dataset.fetch(torch.tensor([0, 0]), keys[:2], Augmentation())["image"]
    assert not torch.equal(again[0], again[1])


def test_refuses_what_cannot_be():
    with pytest.raises(MmsslError, match=r"has 3 samples, fewer than one batch of 4"):
        Loader(Numbers(3), 4)
    with pytest.raises(MmsslError, match=r"multiple of repeats"):
        Loader(Numbers(30), 5, repeats=2)
    with pytest.raises(MmsslError, match=r"rank"):
        Loader(Numbers(30), 5, rank=2, world=2)


def test_workers_outlive_a_sigterm_to_the_whole_group(pictures):
    """The main process still finishes its step and saves."""
    loader = Loader(open_dataset(pictures, image_size=24), 1, workers=2)
    batches = loader.epoch(0)
    next(batches)
    before = loader._pool.pids()
    for pid in before:
        os.kill(pid, signal.SIGTERM)
    assert len(list(batches)) == 15 and loader._pool.pids() == before
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_peek_is_the_first_sample_in_evaluation_geometry(pictures, workers):
    dataset = open_dataset(pictures, image_size=24)
    loader = Loader(dataset, 4, augmentation=Augmentation(), workers=workers)
    peeked = loader.peek()
    assert peeked.keys() == dataset[0].keys()
    assert all(torch.equal(value[0], dataset[0][key]) for key, value in peeked.items())
    assert len(list(loader.epoch(0))) == 4
    loader.close()
