"""TD3 against Stable-Baselines3's, its variant against the formulas of DrQ-v2, and tasks that it solves."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import TD3 as Theirs
from torch import nn

from mmssl.config import from_dict
from mmssl.control.base import AlgorithmConfig
from mmssl.control.off_policy import Autograd
from mmssl.control.td3 import TD3, TD3Config, WrittenOut
from mmssl.errors import MmsslError

sys.path.append(str(Path(__file__).parent))  # tests are imported from their files, not as a package

from sb3_twins import (
    ACTIONS,
    SIZE,
    SPACES,
    Nothing,
    OneBatch,
    batches,
    give_critics,
    give_linear,
    linear,
    logged_by,
    same_critics,
)
from toy_loop import assert_two_runs_are_equal_and_one_goes_on, live, weights
from vector_toys import QUICK, assert_vectors_and_numbers_alone, judge, spaces_of, world

CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def make(**given):
    return TD3(TD3Config(**({"hidden": (16, 12), "lr": 1e-3, "tau": 0.1, "capacity": 1000} | given)), SPACES, 0)


def twin(ours):
    """Stable-Baselines3's TD3 with the same weights."""
    c = ours.config
    theirs = Theirs(
        "MlpPolicy", Nothing(), c.lr, 10, batch_size=SIZE, tau=c.tau, gamma=c.discount, seed=0,
        policy_delay=c.policy_freq, target_policy_noise=c.policy_noise, target_noise_clip=c.noise_clip,
        policy_kwargs={"net_arch": list(c.hidden)}, device="cpu",
    )  # fmt: skip
    give_linear(linear(theirs.actor), linear(ours.actor))
    give_linear(linear(theirs.actor_target), linear(ours.target_actor))
    give_critics(theirs.critic, ours.critic)
    give_critics(theirs.critic_target, ours.target_critic)
    return theirs


@pytest.mark.parametrize("written_out", [True, False])
def test_updates_are_stable_baselines3s(written_out):
    """All weights, targets too, after each of several updates with the same noise."""
    ours = make(written_out=written_out)
    assert type(ours.gradient) is (WrittenOut if written_out else Autograd)
    for p in (*ours.target_actor.parameters(), *ours.target_critic.parameters()):
        p.data += 0.1 * torch.randn_like(p)  # targets of their own
    theirs = twin(ours)
    logged = logged_by(theirs)
    for k, (batch, samples) in enumerate(batches(5, ours.config.discount)):
        torch.manual_seed(k)
        noise = torch.empty(SIZE, ACTIONS).normal_(0, ours.config.policy_noise)
        ours._noise = lambda like, noise=noise: noise.clamp(-ours.config.noise_clip, ours.config.noise_clip)
        scalars = ours.learn(batch)
        torch.manual_seed(k)
        theirs.replay_buffer = OneBatch(samples)
        theirs.train(1, SIZE)
        assert scalars["critic_loss"].item() == pytest.approx(logged["train/critic_loss"], rel=1e-5)
        assert ("actor_loss" in scalars) == (k % 2 == 1)  # every second update
        if k % 2 == 1:
            assert scalars["actor_loss"].item() == pytest.approx(logged["train/actor_loss"], rel=1e-5)
        same_critics(theirs.critic, ours.critic, **CLOSE)
        same_critics(theirs.critic_target, ours.target_critic, **CLOSE)
        for mine, own in ((ours.actor, theirs.actor), (ours.target_actor, theirs.actor_target)):
            for a, b in zip(linear(mine), linear(own), strict=True):
                torch.testing.assert_close(a.weight, b.weight, **CLOSE)
                torch.testing.assert_close(a.bias, b.bias, **CLOSE)


def test_noise_on_target_actions_is_cut():
    drawn = make(policy_noise=0.4, noise_clip=0.5)._noise(torch.zeros(20_000, 2))
    assert drawn.abs().max() == 0.5 and (drawn.abs() == 0.5).float().mean().item() == pytest.approx(0.2113, abs=0.01)
    assert drawn[drawn.abs() < 0.5].std().item() == pytest.approx(0.2635, abs=0.005)  # of a Gaussian cut there


def test_what_is_delayed():
    """Targets and actor stay as they are but for every third update."""
    ours = make(policy_freq=3)
    batch = batches(1)[0][0]
    before = weights(ours)
    for k in range(1, 7):
        ours.learn(batch)
        after = weights(ours)
        moved = {name.split(".")[0] for name in after if not np.array_equal(before[name], after[name])}
        assert moved == ({"critic"} if k % 3 else {"actor", "critic", "target_actor", "target_critic"})
        before = after


class Plain(nn.Module):
    """A critic of the variant, written down."""

    def __init__(self, ensemble, k):
        super().__init__()
        (w1, w2, w3), (b1, b2, b3) = ([p[k] for p in part] for part in (ensemble.weight, ensemble.bias))
        gain, shift = (p[k, 0] for p in ensemble.norm)
        self.layers = [w1, b1, gain, shift, w2, b2, w3, b3]

    def forward(self, x):
        w1, b1, gain, shift, w2, b2, w3, b3 = self.layers
        x = torch.tanh(nn.functional.layer_norm(x @ w1 + b1, (len(gain),), gain, shift))
        return (torch.relu(x @ w2 + b2) @ w3 + b3)[:, 0]


def test_variant_is_drqv2s():
    """Losses as DrQ-v2 writes them: noise in both, straight through the cut, the smaller critic, no target actor."""
    ours = make(variant="drqv2", noise_clip=0.3)
    assert type(ours.gradient) is Autograd  # no formulas for LayerNorm
    batch, noise = batches(1)[0][0], 0.3 * torch.randn(SIZE, ACTIONS)
    for p in ours.actor.parameters():
        p.data *= 3  # so that many actions are cut
    q, target = ([Plain(net, k) for k in (0, 1)] for net in (ours.critic, ours.target_critic))

    def act(obs):
        x = ours.actor(obs) + noise
        cut = torch.clamp(x, -1 + 1e-6, 1 - 1e-6)
        assert 0.1 < (x != cut).float().mean() < 0.9
        return x - x.detach() + cut.detach()

    with torch.no_grad():
        after = torch.cat([batch.next_obs, act(batch.next_obs)], 1)
        y = batch.reward + batch.discount * torch.minimum(target[0](after), target[1](after))
    now = torch.cat([batch.obs, batch.action], 1)
    expected = nn.functional.mse_loss(q[0](now), y) + nn.functional.mse_loss(q[1](now), y)
    torch.testing.assert_close(ours.critic_loss(batch, noise), expected)
    taken = torch.cat([batch.obs, act(batch.obs)], 1)
    expected = -torch.minimum(q[0](taken), q[1](taken)).mean()
    loss, parameters = ours.actor_loss(batch.obs, noise), list(ours.actor.parameters())
    torch.testing.assert_close(loss, expected)
    grads = (torch.autograd.grad(x, parameters) for x in (loss, expected))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    before = weights(ours)
    ours.learn(batch)
    assert not np.array_equal(before["actor.net.0.weight"], weights(ours)["actor.net.0.weight"])  # no delay
    assert not np.array_equal(before["target_critic.weight.0"], weights(ours)["target_critic.weight.0"])
    first = ours.actor.net
    assert [type(layer) for layer in first[:3]] == [nn.Linear, nn.LayerNorm, nn.Tanh]


def test_the_author_cuts_with_a_dead_gradient():
    ours = make()
    action = torch.tensor([[0.5, 2.0, -2.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(ours._cut(action).sum(), action)
    assert grad.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("given", [{}, {"variant": "drqv2", "lr": 2e-3}])
def test_solves_a_small_task(given):
    algorithm = TD3(TD3Config(**QUICK | given), spaces_of(), 0)
    assert judge(algorithm) < -0.2
    live(algorithm, world(cut="variant" in given), 750)
    assert judge(algorithm) > -0.02


def test_actions_in_training():
    algorithm = TD3(TD3Config(**QUICK | {"exploration": 0.3}), spaces_of(), 0)
    obs = {"state": np.zeros((4000, 2), np.float32)}
    drawn = algorithm.act(obs)
    assert np.abs(drawn).max() <= 1 and drawn.std() == pytest.approx(3**-0.5, abs=0.01)  # uniform
    algorithm.seen = 200
    drawn, best = algorithm.act(obs), algorithm.act(obs, explore=False)
    np.testing.assert_allclose(best, algorithm.policy().act(obs))
    assert (drawn - best).std() == pytest.approx(0.3, abs=0.01) and (best == best[0]).all()
    algorithm.config = TD3Config(exploration=3.0, random_steps=0)
    assert np.abs(algorithm.act(obs)).max() == 1


def test_when_it_learns():
    """Not before the random steps are over, then as often as is said, and not for steps that began an episode."""
    algorithm = TD3(TD3Config(**QUICK | {"random_steps": 20, "updates_per_step": 0.25}), spaces_of(), 0)
    place = world()
    obs = live(algorithm, place, 10)  # of two environments; one of seven steps begins an episode
    assert algorithm.seen == 18 and algorithm.updates == 0
    live(algorithm, place, 71, obs)
    assert algorithm.seen == 2 * (81 - 11) and algorithm.updates == (algorithm.seen - 20) // 4


def test_two_runs_are_equal_and_one_goes_on_where_it_was_saved():
    config = TD3Config(**QUICK | {"random_steps": 20, "batch_size": 16})
    assert_two_runs_are_equal_and_one_goes_on(lambda seed: TD3(config, spaces_of(), seed), world, 40)


@pytest.mark.usefixtures("compiler_front")
def test_losses_can_be_compiled():
    plain, fast = make(variant="drqv2"), make(variant="drqv2", compile=True)
    for batch, _ in batches(2):
        for name, value in plain.learn(batch).items():
            torch.testing.assert_close(fast.learn(batch)[name] if name == "critic_loss" else value, value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"discount": 1.5}, r"discount and tau must lie in \(0, 1\], got 1.5"),
        ({"tau": 0.0}, "discount and tau"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"n_step": 0}, "n_step must be at least 1"),
        ({"policy_freq": 0}, "policy_freq must be at least 1"),
        ({"capacity": 0}, "capacity must be at least 1"),
        ({"policy_noise": -0.1}, "policy_noise must be 0 or more"),
        ({"noise_clip": -1.0}, "noise_clip must be 0 or more"),
        ({"exploration": -1.0}, "exploration must be 0 or more"),
        ({"random_steps": -1}, "random_steps must be 0 or more"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"updates_per_step": 0.0}, "updates_per_step must be above 0, got 0.0"),
        ({"hidden": ()}, "hidden must be widths of at least 1"),
        ({"hidden": (8, 0)}, "hidden must be widths of at least 1"),
        ({"variant": "drq"}, "unknown value of variant 'drq': did you mean 'drqv2'"),
    ],
)
def test_wrong_settings(given, words):
    with pytest.raises(MmsslError, match=words):
        from_dict(AlgorithmConfig, {"name": "td3", **given})


def test_discrete_actions_and_pictures_are_refused():
    assert_vectors_and_numbers_alone(TD3Config())


def test_settings_of_the_replay(tmp_path):
    given = {"replay_folder": str(tmp_path / "r"), "capacity": 100, "n_step": 3, "discount": 0.5}
    algorithm = TD3(from_dict(TD3Config, given), spaces_of(), 0)
    live(algorithm, world(), 5)
    assert algorithm.replay.n_step == 3 and algorithm.replay.discount == 0.5
    assert isinstance(algorithm.replay.arrays["obs"], np.memmap) and (tmp_path / "r").is_dir()
