"""Logistic regression against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mmssl.errors import MmsslError
from mmssl.evaluation.features import Splits
from mmssl.evaluation.logistic import LogisticConfig, logistic, path


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 6)) * 3 + 1
    return x, (x[:, :3] + rng.normal(size=(150, 3))).argmax(1)


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_softmax_equals_scikit_learn(penalty):
    x, y = problem()
    scaled = StandardScaler().fit_transform(x)
    oracle = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=2000).fit(scaled, y)
    model = path(torch.from_numpy(x), torch.from_numpy(y), "single_label", 3, (penalty,), 500)[0]
    found = model(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(found, oracle.predict_proba(scaled), atol=2e-3)


def test_sigmoids_equal_scikit_learn_class_by_class():
    x, y = problem()
    labels = np.stack([y == 0, x[:, 4] > 1], 1).astype(np.float32)
    scaled = StandardScaler().fit_transform(x)
    model = path(torch.from_numpy(x), torch.from_numpy(labels), "multi_label", 2, (0.01,), 500)[0]
    found = model(torch.from_numpy(x)).sigmoid().numpy()
    for c in range(2):
        oracle = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8, max_iter=2000).fit(scaled, labels[:, c])
        np.testing.assert_allclose(found[:, c], oracle.predict_proba(scaled)[:, 1], atol=2e-3)


def test_the_path_gives_fits_in_the_order_of_its_penalties():
    x, y = (torch.from_numpy(v) for v in problem())
    weak, strong = path(x, y, "single_label", 3, (1e-4, 10.0))
    assert strong.weight.norm() < 0.2 * weak.weight.norm()


def test_classes_are_found_from_few_labels(looker, classification):
    found = logistic(looker, Splits(*classification), LogisticConfig(labels_per_class=5, draws=2))
    assert found["accuracy"] > 0.9 and found["accuracy/spread"] < 0.1


def test_regression_is_refused_with_the_way_out(looker, regression):
    with pytest.raises(MmsslError, match="use ridge"):
        logistic(looker, Splits(*regression))
