"""SAC against Stable-Baselines3's, its options against plain formulas, and tasks that it solves."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC as Theirs
from torch import nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from mmssl.config import from_dict
from mmssl.control.base import AlgorithmConfig
from mmssl.control.networks import mlp
from mmssl.control.policies import SquashedPolicy
from mmssl.control.sac import SAC, Autograd, SACConfig, WrittenOut
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
from vector_toys import QUICK as VECTORS
from vector_toys import assert_vectors_and_numbers_alone, judge, spaces_of, world

CLOSE = {"atol": 3e-6, "rtol": 1e-5}


def make(**given):
    return SAC(SACConfig(**({"hidden": (16, 12), "lr": 1e-3, "tau": 0.1, "capacity": 1000} | given)), SPACES, 0)


def actor_layers(theirs):
    """The last layer of ours is both of theirs."""
    return [*linear(theirs.latent_pi), theirs.mu, theirs.log_std]


def twin(ours):
    """Stable-Baselines3's SAC with the same weights."""
    c = ours.config
    theirs = Theirs(
        "MlpPolicy", Nothing(), c.lr, 10, batch_size=SIZE, tau=c.tau, gamma=c.discount, seed=0,
        ent_coef=f"auto_{c.alpha}" if c.learn_alpha else c.alpha, device="cpu",
        policy_kwargs={"net_arch": list(c.hidden)},
    )  # fmt: skip
    *hidden, last = linear(ours.actor)
    give_linear(linear(theirs.actor.latent_pi), hidden)
    for head, rows in ((theirs.actor.mu, slice(0, ACTIONS)), (theirs.actor.log_std, slice(ACTIONS, None))):
        head.weight.data.copy_(last.weight[rows])
        head.bias.data.copy_(last.bias[rows])
    give_critics(theirs.critic, ours.critic)
    give_critics(theirs.critic_target, ours.target_critic)
    return theirs


@pytest.mark.parametrize("given", [{}, {"alpha": 0.3, "learn_alpha": False}, {"written_out": False}])
def test_updates_are_stable_baselines3s(given):
    """Losses, alpha and all weights, targets too, after each of several updates with the same noise."""
    ours = make(**given)
    for p in ours.target_critic.parameters():
        p.data += 0.1 * torch.randn_like(p)
    for p in ours.actor.parameters():
        p.data *= 3  # so that tanh is steep here and flat there
    theirs = twin(ours)
    logged = logged_by(theirs)
    for k, (batch, samples) in enumerate(batches(4, ours.config.discount)):
        torch.manual_seed(k)
        first, second = (torch.normal(torch.zeros(SIZE, ACTIONS), torch.ones(SIZE, ACTIONS)) for _ in range(2))
        noise = iter((second, first))  # they draw for the actor first
        ours._noise = lambda count, noise=noise: next(noise)
        scalars = ours.learn(batch)
        torch.manual_seed(k)
        theirs.replay_buffer = OneBatch(samples)
        theirs.train(1, SIZE)
        for name in ("critic_loss", "actor_loss"):
            assert scalars[name].item() == pytest.approx(logged[f"train/{name}"], rel=1e-4)
        assert scalars["alpha"].item() == pytest.approx(logged["train/ent_coef"], rel=1e-6)
        if ours.config.learn_alpha:
            torch.testing.assert_close(ours.log_alpha, theirs.log_ent_coef[0], **CLOSE)
        same_critics(theirs.critic, ours.critic, **CLOSE)
        same_critics(theirs.critic_target, ours.target_critic, **CLOSE)
        for name in ("weight", "bias"):
            own = [getattr(layer, name) for layer in actor_layers(theirs.actor)]
            own = [*own[:-2], torch.cat(own[-2:])]
            for a, b in zip(linear(ours.actor), own, strict=True):
                torch.testing.assert_close(getattr(a, name), b, **CLOSE)
    assert (ours.log_alpha.exp().item() == pytest.approx(ours.config.alpha, rel=1e-6)) != ours.config.learn_alpha


def test_density_of_a_squashed_gaussian():
    """That of the transformed distribution, but for the 1e-6 in the slope; and it stays finite where tanh is flat."""
    torch.manual_seed(0)
    policy = SquashedPolicy(mlp((4, 8, 6)))
    obs, noise = torch.randn(50, 4), torch.randn(50, 3)
    action, density = policy.sample(obs, noise)
    mean, log_std = policy.net(obs).chunk(2, -1)
    plain = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), TanhTransform(cache_size=1))
    torch.testing.assert_close(action, torch.tanh(mean + log_std.exp() * noise))
    torch.testing.assert_close(density, plain.log_prob(action), atol=3e-4, rtol=0)
    exact = Normal(mean, log_std.exp()).log_prob(mean + log_std.exp() * noise).sum(1)
    torch.testing.assert_close(density, exact - torch.log(1 - action**2 + 1e-6).sum(1))
    far, density = policy.sample(1000 * obs, 10 * noise)
    assert (far.abs() == 1).any() and density.isfinite().all()
    (grad,) = torch.autograd.grad(density.sum(), policy.net[0].weight)
    assert grad.isfinite().all()


@pytest.mark.parametrize("tanh", [False, True])
def test_range_of_the_deviation(tanh):
    """Cut, or filled by a tanh: -5 + 0.5 * (2 + 5) * (tanh(x) + 1), as CleanRL has it."""
    policy = SquashedPolicy(nn.Identity(), (-5.0, 2.0), tanh)
    spread = torch.tensor([-30.0, -1.0, 0.0, 0.7, 30.0])
    outputs = torch.stack([torch.zeros(5), spread], 1)
    expected = -5 + 0.5 * 7 * (torch.tanh(spread) + 1) if tanh else torch.tensor([-5.0, -1.0, 0.0, 0.7, 2.0])
    action, _ = policy.sample(outputs, torch.full((5, 1), 0.1))
    torch.testing.assert_close(action[:, 0], torch.tanh(0.1 * expected.exp()))
    rng = np.random.default_rng(0)
    drawn = np.arctanh(
        policy.draw(outputs.repeat(20_000, 1).numpy(), rng)[:, 0].astype(np.float64).clip(-0.9999, 0.9999)
    )
    for i in (1, 2):  # those whose actions tanh does not flatten
        assert np.median(np.abs(drawn[i::5])) == pytest.approx(0.6745 * expected[i].exp().item(), rel=0.03)


@pytest.mark.parametrize("given", [{}, {"log_std_map": "tanh", "log_std": (-3.0, 0.5)}, {"log_std": (-0.3, 0.3)}])
def test_formulas_are_autograds(given):
    """Losses and gradients, where log-deviations lie in their range and where they are cut."""
    written, plain = make(**given), make(**given, written_out=False)
    assert type(written.gradient) is WrittenOut and type(plain.gradient) is Autograd
    batch, noise = batches(1)[0][0], torch.randn(SIZE, ACTIONS).double()
    batch = batch._replace(**{name: getattr(batch, name).double() for name in batch._fields[:5]})
    for ours in (written, plain):
        precise(ours)
    if "log_std_map" not in given and given:
        assert 0.1 < (plain.actor.net(batch.obs)[:, ACTIONS:].abs() > 0.3).float().mean() < 0.9
    for kind, first in (("critic", batch), ("actor", batch.obs)):
        mine, expected = getattr(written.gradient, kind)(first, noise), getattr(plain.gradient, kind)(first, noise)
        torch.testing.assert_close(mine, expected)
        nets = (getattr(ours, kind).parameters() for ours in (written, plain))
        for a, b in zip(*nets, strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-10, rtol=1e-8)


def precise(ours):
    """The same in float64, with large weights, so that tanh and the range of deviations are felt."""
    torch.manual_seed(1)
    for net in (ours.actor, ours.critic, ours.target_critic):
        for p in net.double().parameters():
            p.data = p * 2 + 0.1 * torch.randn_like(p)
    ours.log_alpha.data = torch.tensor(-0.7, dtype=torch.float64)
    ours.gradient = type(ours.gradient)(ours)


def test_losses_of_alpha():
    """The slopes of both, by autograd."""
    for kind in ("log_alpha", "alpha"):
        ours = make(alpha=0.4, alpha_loss=kind, target_entropy=-1.5)
        entropy, log = torch.tensor(0.7), ours.log_alpha
        loss = (log if kind == "log_alpha" else log.exp()) * (entropy + 1.5)
        torch.testing.assert_close(ours.alpha_gradient(entropy), torch.autograd.grad(loss, log)[0])
    assert make().target_entropy == -ACTIONS
    rare = make(alpha_beta=0.5, lr=1e-3, alpha_lr=0.01, critic_lr=2e-3)
    assert rare.alpha_optimizer.betas == (0.5, 0.999) and rare.actor_optimizer.betas == (0.9, 0.999)
    rates = [o.param_groups[0]["lr"] for o in (rare.actor_optimizer, rare.critic_optimizer, rare.alpha_optimizer)]
    assert rates == [1e-3, 2e-3, 0.01]


def test_what_is_delayed_and_repeated():
    """Actor and alpha every second time, twice; targets every third time."""
    ours = make(actor_freq=2, actor_repeats=2, target_freq=3)
    batch = batches(1)[0][0]
    before, steps = weights(ours), []
    for k in range(1, 7):
        scalars = ours.learn(batch)
        after = weights(ours)
        moved = {name.split(".")[0] for name in after if not np.array_equal(before[name], after[name])}
        assert ("actor" in moved) == ("actor_loss" in scalars) == (k % 2 == 0)
        assert ("target_critic" in moved) == (k % 3 == 0) and "critic" in moved
        steps.append(int(ours.alpha_optimizer.count))
        before = after
    assert steps == [0, 2, 2, 4, 4, 6] and int(ours.actor_optimizer.count) == 6


QUICK = VECTORS | {"alpha": 0.1}
CURLS = {"alpha_loss": "alpha", "alpha_beta": 0.5, "log_std": (-10.0, 2.0), "log_std_map": "tanh"}


@pytest.mark.parametrize("given", [{}, {**CURLS, "actor_freq": 2, "actor_repeats": 2, "target_freq": 2}])
def test_solves_a_small_task(given):
    algorithm = SAC(SACConfig(**QUICK | given), spaces_of(), 0)
    assert judge(algorithm) < -0.2
    live(algorithm, world(cut=bool(given)), 600)
    assert judge(algorithm) > -0.02


def test_alpha_brings_the_entropy_to_its_target():
    """From far too much of it, and from too little."""
    for alpha in (0.5, 1e-3):
        given = {"alpha": alpha, "alpha_lr": 0.1, "target_entropy": -1.0, "random_steps": 100, "hidden": (16, 16)}
        algorithm = SAC(SACConfig(**QUICK | given), spaces_of(), 0)
        live(algorithm, world(), 350)
        obs = torch.rand(2000, 2) * 1.4 - 0.7
        entropy = -algorithm.actor.sample(obs, torch.randn(2000, 2))[1].mean().item()
        assert entropy == pytest.approx(-1.0, abs=0.5)


def test_actions_in_training():
    algorithm = SAC(SACConfig(**QUICK), spaces_of(), 0)
    obs = {"state": np.zeros((4000, 2), np.float32)}
    drawn = algorithm.act(obs)
    assert drawn.std() == pytest.approx(3**-0.5, abs=0.01)  # uniform
    algorithm.seen = 200
    drawn, best = algorithm.act(obs), algorithm.act(obs, explore=False)
    np.testing.assert_allclose(best, algorithm.policy().act(obs))
    same, _ = algorithm.actor.sample(torch.zeros(4000, 2), torch.randn(4000, 2))
    np.testing.assert_allclose(np.sort(drawn, 0)[::100], np.sort(same.detach().numpy(), 0)[::100], atol=0.25)
    assert (best == best[0]).all() and drawn.mean(0) == pytest.approx(same.mean(0).tolist(), abs=0.05)


def test_two_runs_are_equal_and_one_goes_on_where_it_was_saved():
    config = SACConfig(**QUICK | {"random_steps": 20})
    assert_two_runs_are_equal_and_one_goes_on(lambda seed: SAC(config, spaces_of(), seed), world, 40)


@pytest.mark.usefixtures("compiler_front")
def test_losses_can_be_compiled():
    plain, fast = make(), make(compile=True)
    for batch, _ in batches(2):
        expected, found = plain.learn(batch), fast.learn(batch)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"discount": 0.0}, r"discount and tau must lie in \(0, 1\], got 0.0"),
        ({"tau": 2.0}, "discount and tau"),
        *[({name: 0}, f"{name} must be at least 1, got 0") for name in ("batch_size", "n_step", "actor_freq")],
        *[({name: 0}, f"{name} must be at least 1, got 0") for name in ("actor_repeats", "target_freq", "capacity")],
        *[({name: 0.0}, f"{name} must be above 0, got 0.0") for name in ("lr", "critic_lr", "alpha_lr", "alpha")],
        ({"updates_per_step": -1.0}, "updates_per_step must be above 0"),
        ({"random_steps": -1}, "random_steps must be 0 or more"),
        ({"alpha_beta": 1.0}, "alpha_beta must lie in"),
        ({"log_std": (2.0, -5.0)}, "log_std must be a lower and a higher bound, got"),
        ({"hidden": ()}, "hidden must be widths of at least 1"),
        ({"log_std_map": "tan"}, "unknown value of log_std_map 'tan': did you mean 'tanh'"),
        ({"alpha_loss": "log"}, "unknown value of alpha_loss 'log'"),
    ],
)
def test_wrong_settings(given, words):
    with pytest.raises(MmsslError, match=words):
        from_dict(AlgorithmConfig, {"name": "sac", **given})


def test_discrete_actions_and_pictures_are_refused():
    assert_vectors_and_numbers_alone(SACConfig())
