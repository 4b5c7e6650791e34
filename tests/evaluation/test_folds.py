"""k-fold evaluation: which folds are asked for, and what becomes of their scores."""

import statistics
from types import SimpleNamespace

import pytest

from mmssl.errors import MmsslError
from mmssl.evaluation.folds import fold_numbers, mean_of_parts, through_folds
from mmssl.evaluation.scores import Score

FIVE = SimpleNamespace(name="five", folds=5)


def test_fold_numbers():
    assert fold_numbers("all", FIVE) == [1, 2, 3, 4, 5]
    assert fold_numbers((4, 2, 4), FIVE) == [2, 4]


@pytest.mark.parametrize(
    ("wanted", "data", "words"),
    [
        ((0,), FIVE, r"from 1 to 5 of 'five', got \(0,\)"),
        ((1, 6), FIVE, "from 1 to 5"),
        ((), FIVE, "from 1 to 5"),
        ("all", SimpleNamespace(name="plain", folds=None), "'plain' come in no folds"),
        ("all", SimpleNamespace(name="older"), "'older' come in no folds"),
    ],
)
def test_wrong_folds_are_said(wanted, data, words):
    with pytest.raises(MmsslError, match=words):
        fold_numbers(wanted, data)


def part(number: int) -> list[Score]:
    return [
        Score("finetune", "class", "pretrained", "map", number / 10),
        Score("finetune", "class", "pretrained", "auc", 0.5 + number / 100),
    ]


def test_the_folds_scores_become_a_mean_with_its_spread():
    kept = []
    rows = through_folds([1, 2, 4], 4, part, kept.append)
    assert [row for told in kept for row in told] == rows and len(kept) == 4
    assert [row.evaluator for row in rows[::2]] == [
        "finetune, fold 1",
        "finetune, fold 2",
        "finetune, fold 4",
        "finetune, folds 1 2 4 of 4",
    ]
    values = [0.1, 0.2, 0.4]
    assert rows[-2].value == pytest.approx(sum(values) / 3) and rows[-2].metric == "map"
    assert rows[-2].spread == pytest.approx(statistics.stdev(values))
    assert rows[0].spread is None
    assert through_folds([1, 2], 2, part)[-1].evaluator == "finetune, 2 folds"


def test_what_not_every_fold_was_asked_has_no_mean():
    means = mean_of_parts([part(1), part(2)[:1]])
    assert [row.metric for row in means] == ["map"]
    alone = mean_of_parts([[Score("knn", "class", "random", "accuracy", 0.5, spread=0.1)]])
    assert alone == [Score("knn", "class", "random", "accuracy", 0.5, spread=0.1)]
    encoders = [[Score("knn", "class", name, "accuracy", v) for name, v in (("a", x), ("b", 2 * x))] for x in (1, 3)]
    assert [(row.encoder, row.value) for row in mean_of_parts(encoders)] == [("a", 2), ("b", 4)]
