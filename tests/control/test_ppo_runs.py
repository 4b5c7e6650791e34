"""PPO as a whole: what changes between updates, runs that go on, tasks that it solves, wrong input."""

import copy
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.control.base import Spaces
from mmssl.control.policies import CategoricalPolicy, GaussianPolicy
from mmssl.control.ppo import PPO, PPOConfig, divergence, standardize_parts
from mmssl.control.ppo_gradient import Autograd, WrittenOut
from mmssl.envs.vector import wrap_vec
from mmssl.errors import MmsslError

sys.path.append(str(Path(__file__).parent))  # tests are imported from their files, not as a package

from ppo_toys import FLOAT, Copy, learned, make, play, train, weights


@pytest.mark.parametrize(
    "given",
    [{}, {"advantage": "rollout", "shuffle": False}, {"advantage": "raw"}, {"activation": "selu"}, {"value_clip": 0.1}],
)
def test_both_gradients_learn_the_same(given):
    """Everything around the gradient too, with minibatches of unequal size."""
    one, two = learned(True, minibatches=3, **given), learned(False, minibatches=3, **given)
    assert isinstance(one.gradient, WrittenOut) and isinstance(two.gradient, Autograd)
    torch.testing.assert_close(weights(one), weights(two), rtol=1e-4, atol=1e-5)
    assert (weights(one) - weights(make(2))).abs().max() > 1e-4


@pytest.mark.parametrize(
    "given", [{"shared": True}, {"project": 4}, {"shared": True, "project": 4}, {"activation": "gelu"}]
)
def test_other_networks(given):
    ppo = learned(**given)
    assert isinstance(ppo.gradient, Autograd)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(ppo._outputs(x), ppo.actor.net(torch.from_numpy(x)).detach(), rtol=1e-5, atol=1e-6)
    if "gelu" not in given.values():
        together = {id(p) for p in ppo.actor.parameters()} & {id(p) for p in ppo.critic.parameters()}
        assert len(together) == 2 * (2 * ("shared" in given) + ("project" in given))


def test_orthogonal_start():
    ppo = make(hidden=(8, 8))
    for net, gain in ((ppo.actor.net, 0.01), (ppo.critic, 1.0)):
        for layer, expected in ((net[2], math.sqrt(2)), (net[4], gain)):
            product = layer.weight @ layer.weight.T
            torch.testing.assert_close(product, expected**2 * torch.eye(len(product)), rtol=1e-4, atol=1e-5)
            assert not layer.bias.any()
    assert make(orthogonal=False).actor.net[0].bias.any() and not ppo.actor.log_std.any()


@pytest.mark.parametrize(("schedule", "half"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_schedule(schedule, half):
    ppo = make(schedule=schedule, lr=0.1)
    for total, before, part in (
        (None, 500, 1.0),
        (1000, 0, 1.0),
        (1000, 500, half),
        (1000, 2000, float(schedule == "constant")),
    ):
        ppo.total_steps = total
        ppo._set_rate(before)
        assert ppo.optimizer.lr == pytest.approx(0.1 * part)


def test_minibatches():
    """Every row once an epoch, in new orders, in parts of nearly equal size; in the order of time if not shuffled."""
    x, ppo = torch.arange(11.0), make(rollout=11, minibatches=3, advantage="raw")
    rows = ppo.rows()._replace(
        **dict.fromkeys(("log_prob", "advantage", "target", "value"), x), obs=x[:, None], drawn=x[:, None]
    )
    first, second = (ppo._arranged(rows, 3) for _ in range(2))
    assert (
        first.target.sort()[0].equal(x)
        and not first.target.equal(second.target)
        and first.obs[:, 0].equal(first.target)
    )
    ordered = make(rollout=11, shuffle=False, advantage="raw", minibatches=3)
    assert ordered._arranged(rows, 3).target.equal(x)
    parts = torch.cat([(p - p.mean()) / (p.std() + 1e-8) for p in x.split([4, 4, 3])])
    torch.testing.assert_close(standardize_parts(x, 3), parts)
    assert standardize_parts(x, 11).equal(x)


def test_stops_when_the_policy_has_moved():
    """Before the step that would follow (minibatch), or after the epoch."""
    steps = {}
    for check in ("minibatch", "epoch"):
        ppo = make(rollout=64, minibatches=4, epochs=50, lr=0.05, target_kl=0.02, kl_check=check)
        play(ppo, 64)
        steps[check] = int(ppo.optimizer.count)
    assert 0 < steps["minibatch"] < 200 and steps["epoch"] < 200 and steps["epoch"] % 4 == 0
    moved = torch.tensor([0.1, -0.2])
    assert divergence(moved).item() == pytest.approx(np.mean([math.exp(0.1) - 1.1, math.exp(-0.2) - 0.8]), rel=1e-4)


def test_two_runs_are_equal_and_another_seed_is_not():
    one, two, other = (learned(), learned(), make(2, seed=1))
    assert torch.equal(weights(one), weights(two))
    play(other, 16)
    assert not torch.equal(weights(one), weights(other))


@pytest.mark.parametrize("discrete", [False, True])
def test_going_on_in_the_middle_of_a_rollout(discrete):
    one = make(2, discrete, rollout=16)
    play(one, 13)
    saved = copy.deepcopy(one.state_dict())
    two = make(2, discrete, seed=5, rollout=16)
    two.load_state_dict(saved)
    for ppo in (one, two):
        play(ppo, 10, start=13)
    assert torch.equal(weights(one), weights(two)) and one.seen == two.seen
    obs = {"state": np.ones((2, 3), np.float32)}
    np.testing.assert_array_equal(one.act(obs, explore=False), two.act(obs, explore=False))
    np.testing.assert_array_equal(one.act(obs), two.act(obs))


def test_statistics_are_of_every_observation_once():
    """The first one, then what each step shows, the last of an episode and the first of the next too."""
    ppo = make(2)
    play(ppo, 7)
    seen = np.concatenate([np.random.default_rng(k).normal(size=(2, 3)).astype(np.float32) for k in range(8)])
    np.testing.assert_allclose(ppo.moments.mean, seen.mean(0), rtol=1e-3, atol=1e-4)
    assert ppo.moments.count == pytest.approx(16, abs=1e-3)
    obs = {"state": seen[:4]}
    policy = ppo.policy()
    np.testing.assert_allclose(policy.normal(torch.from_numpy(seen)), ppo.moments.normal(seen), atol=1e-6)
    np.testing.assert_array_equal(policy.act(obs), ppo.act(obs, explore=False))


# tasks


@pytest.mark.parametrize(
    ("discrete", "given"),
    [(False, {}), (False, {"squash": True}), (False, {"shared": True, "epochs": 4}), (True, {})],
)
def test_solves_copying(discrete, given):
    world = wrap_vec(lambda: Copy(discrete, cut=True), 8, seed=1)
    config = PPOConfig(hidden=(16,), rollout=256, minibatches=8, lr=1e-2, discount=0.0, log_std=-0.7, **given)
    ppo = PPO(config, Spaces(**world.spaces()), 0)
    ppo.total_steps = 256 * 14
    assert isinstance(ppo.policy(), CategoricalPolicy if discrete else GaussianPolicy)
    train(world, ppo, 14)
    obs, rewards = world.reset()[0], []
    for _ in range(50):
        obs, reward, *_ = world.step(ppo.act(obs, explore=False))
        rewards.append(reward[reward != 0])
    score = np.concatenate(rewards).mean()
    assert score > 0.99 if discrete else score > -0.02  # at random 0.33 and -0.55


# wrong input


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"activation": "tahn"}, "tanh"),
        ({"hidden": ()}, "hidden must be one or more widths"),
        ({"rollout": 0}, "rollout must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"project": 0}, "project must be at least 1"),
        ({"rollout": 8, "minibatches": 9}, "minibatches must be at most the rollout's 8, got 9"),
        ({"discount": 1.1}, r"discount must lie in \[0, 1\], got 1.1"),
        ({"gae_lambda": -0.1}, "gae_lambda must lie"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"target_kl": -1.0}, "target_kl must be above 0"),
        ({"value_coef": -1.0}, "value_coef and entropy_coef must be 0 or more"),
    ],
)
def test_wrong_settings(given, sentence):
    with pytest.raises(MmsslError, match=sentence):
        PPOConfig(**given)


def test_wrong_worlds():
    picture = Spaces({"image/top": ((9, 84, 84), np.dtype(np.uint8)), "state": ((3,), FLOAT)}, 2)
    with pytest.raises(MmsslError, match="shows image/top, state; give it a frozen encoder"):
        PPO(PPOConfig(), picture, 0)
    with pytest.raises(MmsslError, match="squash is for continuous actions"):
        make(discrete=True, squash=True)
