"""k-fold evaluation: every part of the data judges once what was learned from the others (ESC-50's five folds).

Data that come in folds say how many (`dataset.folds`), and `data.fold` chooses which of them is the test part. Here the
folds are gone through, and their scores become one with a spread.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

from mmssl.errors import MmsslError
from mmssl.evaluation.scores import Score

Folds = Literal["all"] | tuple[int, ...]
"""Which folds are tested: all of them, or those with these numbers, counted from 1."""


def fold_numbers(wanted: Folds, dataset: Any) -> list[int]:
    """The numbers of the folds that `wanted` asks for, in rising order.

    Args:
        dataset: says in `folds` how many there are, None where the data are not in folds.

    Raises:
        MmsslError: data without folds, or a number that they lack.
    """
    count = getattr(dataset, "folds", None)
    if not count:
        raise MmsslError(
            f"the data {dataset.name!r} come in no folds, so there is nothing to go through: leave out folds, or give "
            "data whose card or list says which fold each sample is in."
        )
    if wanted == "all":
        return list(range(1, count + 1))
    missing = [number for number in wanted if not 1 <= number <= count]
    if missing or not wanted:
        raise MmsslError(f"folds must be all, or numbers from 1 to {count} of {dataset.name!r}, got {tuple(wanted)}.")
    return sorted(set(wanted))


def through_folds(
    numbers: Sequence[int],
    count: int,
    judge: Callable[[int], Sequence[Score]],
    keep: Callable[[Sequence[Score]], Any] | None = None,
) -> list[Score]:
    """Scores of every fold, and after them their mean with its spread.

    Args:
        numbers: the folds to test, counted from 1.
        count: number of folds that the data have.
        judge: number of the test fold -> scores of what was learned from the others.
        keep: called with scores as soon as they are there, so that an interruption loses little.
    """
    parts, rows = [], []
    for number in numbers:
        parts.append(list(judge(number)))
        rows += _told(parts[-1], f"fold {number}", keep)
    listed = " ".join(map(str, numbers))
    which = f"{count} folds" if len(numbers) == count else f"folds {listed} of {count}"
    return rows + _told(mean_of_parts(parts), which, keep)


def _told(rows: Sequence[Score], which: str, keep: Callable[[Sequence[Score]], Any] | None) -> list[Score]:
    """The scores under the name of their fold, kept."""
    named = [dataclasses.replace(row, evaluator=f"{row.evaluator}, {which}") for row in rows]
    if keep is not None:
        keep(named)
    return named


def mean_of_parts(parts: Sequence[Sequence[Score]]) -> list[Score]:
    """One score for each question and encoder that is in every part: the mean, and the standard deviation (n - 1).

    The spread within a part (over seeds or draws) gives way to that over the parts; of a single part it stays.
    """
    means = []
    for row in parts[0]:
        same = [other for part in parts for other in part if _asks(other) == _asks(row)]
        if len(same) < len(parts):
            continue
        values = [other.value for other in same]
        spread = statistics.stdev(values) if len(values) > 1 else row.spread
        means.append(dataclasses.replace(row, value=statistics.fmean(values), spread=spread))
    return means


def _asks(row: Score) -> tuple:
    return (*row.question, row.encoder)
