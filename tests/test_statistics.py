"""Statistics over seeds against scipy, slow loops, cases known exactly, and the coverage of intervals."""

import time

import numpy as np
import pytest
import scipy.stats

from mmssl import statistics
from mmssl.errors import MmsslError
from mmssl.statistics import (
    bootstrap,
    improvement,
    interquartile_mean,
    learning_curve,
    mean,
    median,
    optimality_gap,
    probability_of_improvement,
)


def scores(seeds=(5, 5, 5), seed=0) -> dict[str, np.ndarray]:
    """Scores of tasks with so many seeds."""
    rng = np.random.default_rng(seed)
    return {f"task{k}": rng.normal(k, 1, n) for k, n in enumerate(seeds)}


@pytest.mark.parametrize("seeds", [(1,), (3,), (4,), (7,), (5, 5, 5), (3, 8, 10)])
def test_interquartile_mean_is_scipys_trimmed_mean_of_all_scores(seeds):
    pooled = np.concatenate(list(scores(seeds).values()))
    assert interquartile_mean(scores(seeds)) == pytest.approx(scipy.stats.trim_mean(pooled, 0.25), rel=1e-12)


def test_known_cases():
    assert interquartile_mean([1, 2, 3, 100]) == 2.5
    assert interquartile_mean([1, 2, 30]) == 11  # of three scores it is the mean
    assert mean({"a": [1, 3], "b": [10, 10, 10]}) == 6  # every task weighs the same
    assert median({"a": [0, 2], "b": [5, 5], "c": [100]}) == 5
    assert optimality_gap([0.5, 1.5, 1.0]) == pytest.approx(1 / 6)  # what is above 1 makes up for nothing
    assert optimality_gap([0.5, 1.5], target=2.0) == 1.0
    assert probability_of_improvement([1, 2], [0, 0]) == 1.0
    assert probability_of_improvement([1, 2], [2, 1]) == 0.5
    assert probability_of_improvement([1], [1]) == 0.5


def test_probability_of_improvement_is_a_loop_over_pairs():
    x, y = scores((4, 6)), scores((7, 5), seed=1)
    y["task0"][:2] = x["task0"][:2]  # ties
    of_tasks = []
    for task in x:
        wins = 0.0
        for a in x[task]:
            for b in y[task]:
                wins += 1.0 if a > b else 0.5 if a == b else 0.0
        of_tasks.append(wins / (len(x[task]) * len(y[task])))
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(of_tasks))
    u, _ = scipy.stats.mannwhitneyu(x["task0"], y["task0"])
    assert of_tasks[0] == pytest.approx(u / 28)


@pytest.mark.parametrize("statistic", ["iqm", "mean", "median", "optimality_gap"])
def test_bootstrap_is_a_loop_that_draws_seeds_within_each_task(statistic):
    given = scores((4, 6, 5))
    slow = {"iqm": interquartile_mean, "mean": mean, "median": median, "optimality_gap": optimality_gap}[statistic]
    rng, drawn = np.random.default_rng(3), {}
    for task, values in given.items():
        drawn[task] = rng.integers(0, len(values), (200, len(values)))
    values = [slow({task: given[task][drawn[task][r]] for task in given}) for r in range(200)]
    found = bootstrap(given, statistic, resamples=200, seed=3)
    assert found.value == slow(given) and found.seeds == 4
    assert [found.low, found.high] == pytest.approx(np.percentile(values, [2.5, 97.5]))


def test_bootstrap_agrees_with_scipys():
    values = np.random.default_rng(0).exponential(size=12)
    ours = bootstrap(values, "mean", resamples=20_000)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_improvement_is_a_loop_over_draws():
    x, y = scores((4,)), scores((5,), seed=1)
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, 4, (100, 4)), rng.integers(0, 5, (100, 5))
    values = [probability_of_improvement(x["task0"][i[r]], y["task0"][j[r]]) for r in range(100)]
    found = improvement(x, y, resamples=100)
    assert found.value == probability_of_improvement(x, y)
    assert [found.low, found.high] == pytest.approx(np.percentile(values, [2.5, 97.5]))
    assert improvement([1, 2, 3], [4, 5, 6]).high == 0.0


def test_learning_curve_is_the_bootstrap_at_each_point_with_the_same_draws(monkeypatch):
    curves = np.random.default_rng(0).normal(size=(5, 11))
    whole = learning_curve(curves, resamples=300, seed=2)
    monkeypatch.setattr(statistics, "_VALUES", 300 * 5 * 3)  # three points at once
    in_parts = learning_curve(curves, resamples=300, seed=2)
    for name in ("value", "low", "high"):
        assert np.array_equal(getattr(whole, name), getattr(in_parts, name))
    for t in range(11):
        point = bootstrap(curves[:, t], resamples=300, seed=2)
        assert (whole.value[t], whole.low[t], whole.high[t]) == (point.value, point.low, point.high)


def test_learning_curve_of_several_tasks():
    curves = {"a": np.array([[0.0, 1.0]] * 3), "b": np.array([[2.0, 5.0]] * 4)}
    curve = learning_curve(curves, "mean")
    assert curve.value.tolist() == curve.low.tolist() == curve.high.tolist() == [1.0, 3.0] and curve.seeds == 3


@pytest.mark.parametrize(("seeds", "least", "most"), [(3, 0.7, 0.8), (5, 0.8, 0.93), (10, 0.9, 0.96), (20, 0.92, 0.97)])
def test_coverage_of_intervals(seeds, least, most):
    """Intervals of few seeds are too narrow, those of many hold the truth about as often as they say."""
    curve = learning_curve(np.random.default_rng(seeds).normal(size=(seeds, 1500)), resamples=1000)
    assert least < np.mean((curve.low <= 0) & (curve.high >= 0)) < most


def test_same_seed_same_interval():
    given = scores((10, 10))
    assert bootstrap(given, seed=1) == bootstrap(given, seed=1) != bootstrap(given, seed=2)


@pytest.mark.parametrize("given", [[5.0], [5.0, 6.0], {"a": [1, 2, 3, 4], "b": [1, 2]}])
def test_too_few_seeds_are_said_to_have_no_interval(given):
    found = bootstrap(given)
    assert np.isfinite(found.value) and np.isnan(found.low) and np.isnan(found.high)
    assert "no interval" in found.note and "at least 3 seeds" in found.note and found.note in str(found)
    curve = learning_curve(np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert curve.value.tolist() == [2.0, 3.0] and np.isnan(curve.low).all() and curve.note


def test_enough_seeds_need_no_words():
    assert bootstrap([1, 2, 3]).note == "" and str(bootstrap([1, 1, 1])) == "1 (95% interval 1 to 1)"


def test_thousands_of_resamples_take_well_under_a_second():
    given = scores((10,) * 50)
    began = time.process_time()
    bootstrap(given, resamples=2000)
    learning_curve(np.random.default_rng(0).normal(size=(5, 200)), resamples=2000)
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap([]), "at least one"),
        (lambda: bootstrap([[1.0, 2.0]]), "numbers of the seeds"),
        (lambda: bootstrap({"a": [1.0, np.nan]}), "scores of a must be finite, got nan"),
        (lambda: bootstrap([1.0], "iqn"), "did you mean 'iqm'"),
        (lambda: bootstrap([1.0], confidence=95), "confidence must lie in"),
        (lambda: improvement({"a": [1.0]}, {"b": [1.0]}), "compared on the same tasks"),
        (lambda: improvement({"a": [1.0]}, [1.0]), "compared on the same tasks"),
        (lambda: learning_curve(np.zeros(3)), r"\(seeds, points\)"),
        (lambda: learning_curve({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))}), "as many points"),
    ],
)
def test_wrong_input_is_one_sentence(call, words):
    with pytest.raises(MmsslError, match=words):
        call()
