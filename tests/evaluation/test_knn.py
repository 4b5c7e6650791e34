"""kNN against scikit-learn, and on problems that it must solve."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from mmssl.errors import MmsslError
from mmssl.evaluation.features import Splits
from mmssl.evaluation.knn import KnnConfig, knn, predict


def features(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (120, 40))


def weights(distance: np.ndarray) -> np.ndarray:
    """scikit-learn hands over euclidean distances of unit vectors: cosine = 1 - distance^2 / 2."""
    return np.exp((1 - distance**2 / 2) / 0.07)


def unit(x):
    return torch.nn.functional.normalize(x, dim=1).numpy()


@pytest.mark.parametrize("k", [1, 5, 20])
def test_classification_equals_scikit_learn(k):
    train, test = features()
    labels = torch.arange(120) % 4
    oracle = KNeighborsClassifier(k, weights=weights).fit(unit(train), labels.numpy())
    found = predict(train, torch.nn.functional.one_hot(labels).double(), test, [k, 30], 0.07)[k]
    np.testing.assert_allclose(found.numpy(), oracle.predict_proba(unit(test)), atol=1e-9)


def test_regression_equals_scikit_learn():
    train, test = features(1)
    values = torch.randn(120, 3, dtype=torch.float64)
    oracle = KNeighborsRegressor(10, weights=weights).fit(unit(train), values.numpy())
    found = predict(train, values, test, [10], 0.07)[10]
    np.testing.assert_allclose(found.numpy(), oracle.predict(unit(test)), atol=1e-9)


def test_each_k_is_scored_and_cut_to_the_training_samples(looker, classification):
    found = knn(looker, Splits(*classification), KnnConfig(k=(5, 20, 400, 500)))
    assert list(found) == ["accuracy@5", "accuracy@20", "accuracy@150"]
    assert found["accuracy@5"] > 0.95


def test_few_labels_give_a_mean_and_a_spread(looker, classification):
    found = knn(looker, Splits(*classification), KnnConfig(k=(1,), labels_per_class=2, draws=4))
    assert 0.5 < found["accuracy@1"] <= 1 and "accuracy@1/spread" in found


def test_regression_is_scored_by_r2(looker, regression):
    found = knn(looker, Splits(*regression), KnnConfig(pooling="flat", k=(10,), temperature=0.01))
    assert found["r2@10"] > 0.3


@pytest.mark.parametrize("settings", [{"k": ()}, {"k": (0,)}, {"temperature": 0.0}])
def test_wrong_settings(settings):
    with pytest.raises(MmsslError):
        KnnConfig(**settings)
