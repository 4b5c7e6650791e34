"""Metrics against scikit-learn, and what they refuse."""

import json
import math

import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

from mmssl.errors import MmsslError
from mmssl.evaluation.metrics import (
    METRIC,
    TASKS,
    accuracy,
    average_precision,
    d_prime,
    label_scores,
    main_score,
    mean_auc,
    mean_average_precision,
    r2,
    r2_per_dim,
    roc_auc,
    score,
    targets,
)


def test_r2_equals_scikit_learn_on_varying_dims_and_drops_constant_ones():
    torch.manual_seed(0)
    target = torch.randn(50, 3) * torch.tensor([1.0, 10.0, 0.0]) + 4
    prediction = target + torch.randn(50, 3)
    assert r2(prediction, target) == pytest.approx(r2_score(target[:, :2], prediction[:, :2]), abs=1e-6)
    assert r2_per_dim(prediction, target).isnan().tolist() == [False, False, True]


def test_r2_of_a_constant_target_is_refused():
    with pytest.raises(MmsslError, match="constant"):
        r2(torch.randn(5, 1), torch.ones(5, 1))


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_scikit_learn(ties):
    torch.manual_seed(1)
    scores, positive = torch.randn(80), torch.rand(80) < 0.3
    scores = scores.round() if ties else scores
    assert average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores), abs=1e-9)


def test_mean_average_precision_skips_classes_without_positives():
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert mean_average_precision(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), labels) == 1.0
    with pytest.raises(MmsslError, match="positive"):
        mean_average_precision(torch.zeros(2, 2), torch.zeros(2, 2))


def slow_auc(scores, positive) -> float:
    """The share of ordered pairs, pair by pair."""
    won = [(p > n) + 0.5 * (p == n) for p in scores[positive].tolist() for n in scores[~positive].tolist()]
    return sum(won) / len(won)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_equals_scikit_learn_and_counting_pairs(ties):
    torch.manual_seed(2)
    scores, labels = torch.randn(60, 4), (torch.rand(60, 4) < 0.3).float()
    scores = (scores * 2).round() if ties else scores
    for c in range(4):
        found = roc_auc(scores[:, c], labels[:, c] > 0.5)
        assert found == pytest.approx(slow_auc(scores[:, c], labels[:, c] > 0.5), abs=1e-12)
        assert found == pytest.approx(roc_auc_score(labels[:, c], scores[:, c]), abs=1e-9)
    assert mean_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores, average="macro"), abs=1e-9)


def test_mean_auc_skips_classes_without_both_kinds_of_rows():
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 0, 1]])
    assert mean_auc(torch.tensor([[0.0, 5, 5], [1, 0, 0], [-1, 0, 0]]), labels) == 0.5
    with pytest.raises(MmsslError, match="positive and a negative"):
        mean_auc(torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


@pytest.mark.parametrize("distance", [0.0, 0.7, 2.35, -1.1])
def test_d_prime_is_the_distance_of_two_normal_distributions(distance):
    auc = norm.cdf(distance / math.sqrt(2))  # the chance that a draw of N(distance, 1) is above one of N(0, 1)
    assert d_prime(auc) == pytest.approx(distance, abs=1e-9)
    assert d_prime(auc) == pytest.approx(math.sqrt(2) * norm.ppf(auc), abs=1e-12)


def test_several_labels_give_three_scores_that_json_can_hold():
    torch.manual_seed(3)
    scores, labels = torch.randn(50, 3), (torch.rand(50, 3) < 0.4).float()
    found = score("multi_label", scores, labels)
    assert list(found) == ["map", "auc", "dprime"]
    assert found["map"] == mean_average_precision(scores, labels) and found["auc"] == mean_auc(scores, labels)
    assert found["dprime"] == pytest.approx(d_prime(found["auc"]))
    pairs = sum(labels[:, c].sum() * (1 - labels[:, c]).sum() for c in range(3)).item()
    for order, auc in ((labels, 1 - 0.5 / pairs), (-labels, 0.5 / pairs)):  # all pairs right, all wrong
        assert label_scores(order, labels)["dprime"] == pytest.approx(d_prime(auc))
        json.dumps(label_scores(order, labels), allow_nan=False)
    assert list(label_scores(scores, torch.ones(50, 3))) == ["map"]


@pytest.mark.parametrize("task", TASKS)
def test_the_main_score_is_the_first_of_a_task(task):
    torch.manual_seed(4)
    prediction = torch.randn(20, 3)
    labels = {"single_label": torch.arange(20) % 3, "multi_label": (torch.rand(20, 3) < 0.4).float()}
    labels = labels.get(task, torch.randn(20, 3))
    name, value = next(iter(score(task, prediction, labels).items()))
    assert name == METRIC[task] and value == main_score(task, prediction, labels)


def test_accuracy_and_one_hot():
    assert accuracy(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1])) == 0.5
    assert targets("single_label", torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert targets("regression", torch.tensor([2.0, 0.5]), 1).shape == (2, 1)
