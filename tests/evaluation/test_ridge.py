"""The closed-form probe against scikit-learn, and on a problem with a known answer."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from mmssl.errors import MmsslError
from mmssl.evaluation.features import FeatureSet, Splits
from mmssl.evaluation.ridge import RidgeConfig, choose_alpha, ridge, solve


@pytest.mark.parametrize("samples, width", [(60, 10), (20, 50)], ids=["primal", "dual"])
@pytest.mark.parametrize("standardize", [True, False])
def test_every_penalty_equals_scikit_learn(samples, width, standardize):
    rng = np.random.default_rng(0)
    x, test = rng.normal(size=(samples, width)) * rng.uniform(0.1, 9, width) + 5, rng.normal(size=(7, width)) + 5
    y = rng.normal(size=(samples, 3)) + 2
    alphas = (1e-3, 0.1, 10.0)
    found = solve(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(test), alphas, standardize)
    scaler = StandardScaler(with_std=standardize).fit(x)
    for i, alpha in enumerate(alphas):
        oracle = Ridge(alpha=alpha * samples).fit(scaler.transform(x), y)
        np.testing.assert_allclose(found[i].numpy(), oracle.predict(scaler.transform(test)), atol=1e-5)


def test_a_constant_feature_changes_nothing():
    torch.manual_seed(0)
    x, y, test = torch.randn(30, 4), torch.randn(30, 2), torch.randn(5, 4)
    wider = [torch.cat([t, torch.full((len(t), 1), 0.1)], 1) for t in (x, test)]
    torch.testing.assert_close(solve(wider[0], y, wider[1], (0.1,)), solve(x, y, test, (0.1,)), atol=1e-5, rtol=1e-5)


def test_linear_labels_are_recovered_and_the_constant_one_dropped(looker, regression):
    assert ridge(looker, Splits(*regression), RidgeConfig(pooling="grid2"))["r2"] > 0.999
    assert ridge(looker, Splits(*regression), RidgeConfig(pooling="mean"))["r2"] < 0.6  # where is lost in the mean


def test_classes_are_found(looker, classification):
    assert ridge(looker, Splits(*classification))["accuracy"] > 0.95


def test_multi_label(looker, classification, in_memory):
    def several(data):
        labels = torch.nn.functional.one_hot(data.values, 3).float()
        return in_memory(data.images, labels, "multi_label", data.groups, ["r", "g", "b"])

    assert ridge(looker, Splits(*map(several, classification)))["map"] > 0.95


def test_held_out_groups_choose_more_penalty_than_held_out_frames():
    """Within a group label and features share a common offset that says nothing about other groups."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(40).repeat_interleave(10)
    offset = torch.randn(40, 60, generator=generator)[groups]
    x = offset + 0.05 * torch.randn(400, 60, generator=generator)
    y = torch.randn(40, 1, generator=generator)[groups]
    config = RidgeConfig(folds=5)
    index = torch.arange(400)
    grouped = choose_alpha(FeatureSet(x, y, groups, index), x, y, "regression", config, 0)
    frames = choose_alpha(FeatureSet(x, y, None, index), x, y, "regression", config, 0)
    assert config.alphas[grouped] > 10 * config.alphas[frames]


@pytest.mark.parametrize("settings", [{"alphas": ()}, {"alphas": (0.0,)}, {"folds": 0}])
def test_wrong_settings(settings):
    with pytest.raises(MmsslError):
        RidgeConfig(**settings)
