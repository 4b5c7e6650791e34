"""Metrics against scikit-learn, and what they refuse."""

import pytest
import torch
from sklearn.metrics import average_precision_score, r2_score

from mmssl.errors import MmsslError
from mmssl.evaluation.metrics import accuracy, average_precision, mean_average_precision, r2, r2_per_dim, targets


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


def test_accuracy_and_one_hot():
    assert accuracy(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1])) == 0.5
    assert targets("single_label", torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert targets("regression", torch.tensor([2.0, 0.5]), 1).shape == (2, 1)
