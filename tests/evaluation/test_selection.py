"""Held-out parts and few-label draws."""

import pytest
import torch

from mmssl.errors import MmsslError
from mmssl.evaluation.selection import few, folds


@pytest.mark.parametrize("count", [1, 3, 5])
def test_no_group_is_on_both_sides_and_every_sample_is_somewhere(count):
    groups = torch.tensor([7, 7, 3, 3, 3, 9, 1, 1, 2, 2, 5, 5])
    pairs = folds(12, groups, None, count, seed=0)
    assert len(pairs) == count
    for fit, held in pairs:
        assert len(held) > 0 and not set(groups[fit].tolist()) & set(groups[held].tolist())
        assert sorted(fit.tolist() + held.tolist()) == list(range(12))
    if count > 1:
        assert sorted(torch.cat([held for _, held in pairs]).tolist()) == list(range(12))


def test_every_class_is_in_both_parts_where_it_has_groups_for_it():
    labels = torch.arange(4).repeat_interleave(20)
    groups = torch.arange(80) // 4  # 5 groups a class
    for fit, held in folds(80, groups, labels, 5, seed=3):
        assert set(labels[fit].tolist()) == set(labels[held].tolist()) == {0, 1, 2, 3}


def test_a_single_group_falls_back_to_samples():
    fit, held = folds(10, torch.zeros(10, dtype=torch.int64), None, 1, seed=0)[0]
    assert len(fit) == 8 and len(held) == 2


def test_few_gives_so_many_of_each_class_and_is_seeded():
    labels = torch.arange(3).repeat(20)
    rows = few("single_label", labels, 4, None, seed=0)
    assert torch.bincount(labels[rows]).tolist() == [4, 4, 4]
    assert torch.equal(rows, few("single_label", labels, 4, None, seed=0))
    assert not torch.equal(rows, few("single_label", labels, 4, None, seed=1))
    assert len(few("regression", torch.randn(60, 2), None, 17, seed=0)) == 17
    assert torch.equal(few("regression", labels, None, None, 0), torch.arange(60))


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("regression", 4, None), "single_label"),
        (("single_label", 2, 3), "not both"),
        (("single_label", None, 99), "99"),
    ],
)
def test_impossible_draws_say_why(arguments, word):
    task, per_class, total = arguments
    with pytest.raises(MmsslError, match=word):
        few(task, torch.arange(3).repeat(20), per_class, total, seed=0)
