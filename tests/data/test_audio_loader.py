"""Balanced and long epochs: the order is still a function of the seed and the epoch alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.label_sets import LabelSets, balanced_weights
from mmssl.data.loader import Loader
from mmssl.errors import MmsslError


class Labelled(Dataset):
    """Samples without content, with labels (N,) or (N, K)."""

    def __init__(self, labels: torch.Tensor):
        self._values = labels
        super().__init__("labelled", Geometry())
        self.choose_target({"class": "single_label" if labels.dim() == 1 else "multi_label"}, None, "class")

    def __len__(self) -> int:
        return len(self._values)

    def _labels(self, target):
        return self._values

    def fetch(self, index, keys=None, augmentation=None):
        return self.label({}, index)


UNEVEN = torch.tensor([0] * 90 + [1] * 9 + [2])


@given(sets=st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=30))
@settings(deadline=None)
def test_weights_are_sums_over_labels_of_one_over_their_number(sets):
    packed = LabelSets([sorted(ids) for ids in sets], 6)
    dense = torch.tensor([[float(k in ids) for k in range(6)] for ids in sets])
    assert torch.equal(packed[torch.arange(len(sets))], dense)
    slow = []
    for ids in sets:
        slow.append(sum(1.0 / sum(k in other for other in sets) for k in ids))
    weights = balanced_weights(*packed.pairs(), len(sets))
    torch.testing.assert_close(weights, torch.tensor(slow, dtype=torch.float64))
    torch.testing.assert_close(balanced_weights(*Labelled(dense).label_pairs(), len(sets)), weights)


def test_classes_come_equally_often():
    loader = Loader(Labelled(UNEVEN), 100, balance=True, epoch_samples=30000)
    drawn = torch.bincount(UNEVEN[loader.order(0)], minlength=3) / 30000
    assert len(loader) == 300 and (drawn - 1 / 3).abs().max() < 0.02
    members = torch.bincount(loader.order(0), minlength=100)[:90]
    assert members.min() > 60 and members.max() < 170  # within a class all alike: 111 each


def test_an_epoch_is_a_function_of_seed_and_number_and_can_be_gone_on_with():
    loader = Loader(Labelled(UNEVEN), 8, seed=3, balance=True, epoch_samples=80)
    batches = [(b["index"], b["keys"]) for b in loader.epoch(2)]
    assert torch.equal(torch.cat([index for index, _ in batches]), loader.order(2))
    again = Loader(Labelled(UNEVEN), 8, seed=3, balance=True, epoch_samples=80, workers=2)
    rest = [(b["index"], b["keys"]) for b in again.epoch(2, start=6)]
    again.close()
    assert len(rest) == 4
    assert all(
        torch.equal(a, b)
        for ours, theirs in zip(rest, batches[6:], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )
    assert not torch.equal(loader.order(2), loader.order(3))
    halves = [Loader(Labelled(UNEVEN), 4, seed=3, balance=True, epoch_samples=80, rank=r, world=2) for r in (0, 1)]
    for (index, _), *parts in zip(batches, *(half.epoch(2) for half in halves), strict=True):
        assert torch.equal(index, torch.cat([part["index"] for part in parts]))


def test_a_sample_that_comes_again_has_other_draws():
    plan = Loader(Labelled(UNEVEN), 50, balance=True, epoch_samples=200, repeats=2).plan(0)
    keys = torch.cat([keys for _, keys in plan])
    assert len(keys) == 400 and len(keys.unique()) == 400


@given(n=st.integers(1, 12), samples=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_epochs_of_any_length_go_evenly_through_the_data(n, samples):
    loader = Loader(Labelled(torch.zeros(n, dtype=torch.int64)), 1, epoch_samples=samples)
    drawn = torch.cat([loader.order(epoch) for epoch in range(5)])
    assert len(drawn) == 5 * samples
    count = torch.bincount(drawn, minlength=n)
    assert count.max() - count.min() <= 1


def test_a_whole_epoch_is_as_it_was_and_evaluation_sees_every_sample_once():
    data = Labelled(UNEVEN)
    data.balance, data.epoch_samples = True, 30
    assert len(Loader(data, 5).order(0)) == 30
    assert torch.equal(Loader(data, 5, shuffle=False).order(0), torch.arange(100))
    plain = Loader(Labelled(UNEVEN), 5, seed=1)
    assert torch.equal(plain.order(3), Loader(Labelled(UNEVEN), 5, seed=1, epoch_samples=100).order(3))
    part = data.subset(range(95, 100))
    assert part.balance and torch.bincount(part.labels()[Loader(part, 1).order(0)])[2] > 8


def test_what_cannot_be_balanced_is_refused():
    with pytest.raises(
        MmsslError, match="no sample of dataset 'labelled' has a label, so that nothing can be balanced"
    ):
        Loader(Labelled(torch.zeros(4, 3)), 1, balance=True)
    with pytest.raises(MmsslError, match="'class' of dataset 'labelled' is no class"):
        Loader(Labelled(torch.rand(4, 3) + 0.1), 1, balance=True)
    with pytest.raises(MmsslError, match="has 3 samples, fewer than one batch of 4"):
        Loader(Labelled(UNEVEN), 4, epoch_samples=3)
