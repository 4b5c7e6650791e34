"""Policies: densities against torch's distributions, what is drawn, and that they save with their normalisation."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributions import Categorical, Independent, Normal

from mmssl.control.base import Spaces, create_algorithm
from mmssl.control.networks import mlp
from mmssl.control.normalize import RunningMoments, Standardize
from mmssl.control.policies import CategoricalPolicy, GaussianPolicy, join_vectors, side_by_side
from mmssl.control.ppo import PPOConfig


def gaussian(**given):
    torch.manual_seed(0)
    return GaussianPolicy(mlp((3, 8, 2), "tanh"), 2, log_std=-0.5, **given)


def test_gaussian_density():
    policy, x, drawn = gaussian(), torch.randn(6, 3), torch.randn(6, 2)
    expected = Independent(Normal(policy.net(x), policy.log_std.exp().expand(6, 2)), 1)
    log_prob, entropy = policy.log_prob(policy.net(x), drawn)
    torch.testing.assert_close(log_prob, expected.log_prob(drawn))
    torch.testing.assert_close(entropy, expected.entropy())


def test_categorical_density():
    policy, x = CategoricalPolicy(mlp((3, 8, 4))), torch.randn(6, 3)
    drawn, expected = torch.randint(4, (6,)), Categorical(logits=policy.net(x))
    log_prob, entropy = policy.log_prob(policy.net(x), drawn)
    torch.testing.assert_close(log_prob, expected.log_prob(drawn))
    torch.testing.assert_close(entropy, expected.entropy())


def test_what_is_drawn():
    rng, policy = np.random.default_rng(0), gaussian()
    drawn = policy.draw(np.tile(np.array([[0.3, -2.0]], np.float32), (20_000, 1)), rng)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean(0), [0.3, -2.0], atol=0.02)
    np.testing.assert_allclose(drawn.std(0), np.exp(-0.5), atol=0.02)
    chances = np.array([0.1, 0.2, 0.7])
    drawn = CategoricalPolicy(mlp((3, 8, 3))).draw(np.tile(np.log(chances), (20_000, 1)), rng)
    assert drawn.dtype == np.int64
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, chances, atol=0.02)


@pytest.mark.parametrize("squash", [False, True])
def test_actions_are_bounded(squash):
    policy, x = gaussian(squash=squash), 50 * np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    with torch.no_grad():
        policy.net[-1].weight.mul_(5)
    action, mean = policy.act({"state": x}), policy.net(torch.from_numpy(x)).detach().numpy()
    assert action.dtype == np.float32 and np.abs(action).max() <= 1 < np.abs(mean).max()
    np.testing.assert_allclose(action, np.tanh(mean) if squash else mean.clip(-1, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(policy.bound(mean), action, rtol=1e-5, atol=1e-6)


def test_best_of_discrete_actions():
    policy, x = CategoricalPolicy(mlp((3, 8, 4))), np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    action = policy.act({"state": x})
    assert action.dtype == np.int64
    assert (action == policy.net(torch.from_numpy(x)).detach().numpy().argmax(1)).all()
    assert (policy.bound(action) == action).all()


def test_vectors_stand_side_by_side():
    obs = {
        "b": np.ones((2, 1), np.float32),
        "image/top": np.zeros((2, 3, 4, 4), np.uint8),
        "a": np.zeros((2, 2), np.float64),
    }
    assert side_by_side(obs).tolist() == [[1, 0, 0], [1, 0, 0]] and side_by_side(obs).dtype == np.float32
    assert join_vectors(obs).equal(torch.tensor(side_by_side(obs)))
    alone = {"state": np.ones((2, 2), np.float32)}
    side_by_side(alone)[:] = 5
    assert (alone["state"] == 1).all()


def test_normalisation_is_the_policys():
    policy, moments, x = gaussian(), RunningMoments(3), np.array([[4.0, 6.0, 8.0]], np.float32)
    plain = policy.act({"state": x})
    moments.update(np.random.default_rng(0).normal(5, 3, size=(100, 3)))
    policy.normal = Standardize(3)
    policy.normal.take(moments)
    assert not np.allclose(policy.act({"state": x}), plain)
    expected = policy(torch.from_numpy(moments.normal(x))).detach()
    np.testing.assert_allclose(policy.act({"state": x}), expected, rtol=1e-5)


@pytest.mark.parametrize("written_out", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
def test_saved_and_loaded(tmp_path, discrete, written_out):
    """As a run exports it, parameters that are views of one vector and the statistics, to another's policy."""
    spaces = Spaces({"state": ((3,), np.dtype(np.float32))}, 4, discrete)
    config = PPOConfig(hidden=(8, 8), rollout=64, minibatches=2, written_out=written_out)
    one, two = (create_algorithm(config, spaces, seed) for seed in (0, 1))
    obs = {"state": np.random.default_rng(0).normal(3, 2, size=(50, 3)).astype(np.float32)}
    one.moments.update(obs["state"])
    save_file(one.policy().state_dict(), tmp_path / "policy.safetensors")
    policy = two.policy()
    assert (policy.act(obs) != one.policy().act(obs)).any()
    policy.load_state_dict(load_file(tmp_path / "policy.safetensors"))
    np.testing.assert_array_equal(policy.act(obs), one.policy().act(obs))
    parameters = sum(p.numel() * 4 for p in policy.parameters())
    assert (tmp_path / "policy.safetensors").stat().st_size < parameters + 1500
