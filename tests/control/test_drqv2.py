"""DrQ-v2: its update against a slow version, what learns from what, its noise, and a task in pixels."""

import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmssl.control.base import Spaces
from mmssl.control.drqv2 import DrQv2, DrQv2Config
from mmssl.control.replay import Batch

sys.path.insert(0, str(Path(__file__).parent))
from pixel_toys import ACTIONS, batch_of, judge, plain_critics, two_frames, world
from toy_loop import assert_two_runs_are_equal_and_one_goes_on, live

CONFIG = DrQv2Config(layers=2, filters=4, features=6, hidden=(10, 10), batch_size=8, capacity=500, pad=2, lr=1e-3)


def make(vectors: int = 0, **settings) -> DrQv2:
    return DrQv2(dataclasses.replace(CONFIG, **settings), two_frames(16, vectors), seed=3)


class Slow:
    """DrQV2Agent of the authors' code in plain torch, from the weights of ours, with two separate critics."""

    def __init__(self, ours: DrQv2):
        c = self.c = ours.config
        self.encoder = nn.Sequential(
            *[m for conv in ours.critic.look.convs.layers for m in (copy.deepcopy(conv), nn.ReLU())]
        )
        self.actor = nn.ModuleDict({"trunk": copy.deepcopy(ours.actor.net.code), "policy": self._policy(ours)})
        heads = nn.ModuleList(plain_critics(ours.critic.heads))
        self.critic = nn.ModuleDict({"trunk": copy.deepcopy(ours.critic.code), "q": heads})
        self.target = copy.deepcopy(self.critic)
        self.encoder_opt, self.actor_opt, self.critic_opt = (
            torch.optim.Adam(m.parameters(), c.lr) for m in (self.encoder, self.actor, self.critic)
        )
        self.noise, self.shifts = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)

    def _policy(self, ours: DrQv2) -> nn.Sequential:
        *layers, last = copy.deepcopy(ours.actor.net.body)
        assert isinstance(last, nn.Tanh)
        return nn.Sequential(*layers)

    def see(self, x):
        """Replicate-pad, then cut, sample by sample; /255 - .5."""
        pad, moved = self.c.pad, []
        shifts = torch.randint(2 * self.c.pad + 1, (len(x), 2), generator=self.shifts)
        for picture, (down, right) in zip(F.pad(x.double(), (pad,) * 4, "replicate"), shifts.tolist(), strict=True):
            moved.append(picture[:, down : down + 16, right : right + 16])
        return self.encoder(torch.stack(moved) / 255 - 0.5).flatten(1)

    def act(self, flat, vectors, sigma):
        mu = torch.tanh(self.actor["policy"](torch.cat([self.actor["trunk"](flat), vectors], 1)))
        eps = torch.randn(mu.shape, generator=self.noise) * sigma
        x = mu + eps.clamp(-self.c.noise_clip, self.c.noise_clip)
        return x - x.detach() + x.clamp(-1 + 1e-6, 1 - 1e-6).detach()

    def q(self, critic, flat, vectors, action):
        z = torch.cat([critic["trunk"](flat), vectors, action], 1)
        return [head(z)[:, 0] for head in critic["q"]]

    def learn(self, batch: Batch, sigma: float) -> None:
        obs = self.see(batch.pictures["image/a"])
        with torch.no_grad():
            after = self.see(batch.next_pictures["image/a"])
            q1, q2 = self.q(self.target, after, batch.next_obs, self.act(after, batch.next_obs, sigma))
            target = batch.reward + batch.discount * torch.min(q1, q2)
        q1, q2 = self.q(self.critic, obs, batch.obs, batch.action)
        for optimizer in (self.encoder_opt, self.critic_opt):
            optimizer.zero_grad()
        (F.mse_loss(q1, target) + F.mse_loss(q2, target)).backward()
        self.critic_opt.step()
        self.encoder_opt.step()
        obs = obs.detach()
        q1, q2 = self.q(self.critic, obs, batch.obs, self.act(obs, batch.obs, sigma))
        self.actor_opt.zero_grad()
        (-torch.min(q1, q2).mean()).backward()
        self.actor_opt.step()
        for p, t in zip(self.critic.parameters(), self.target.parameters(), strict=True):
            t.data.copy_(self.c.tau * p.data + (1 - self.c.tau) * t.data)

    def assert_same(self, ours: DrQv2) -> None:
        pairs = [*zip(ours.critic.look.parameters(), self.encoder.parameters(), strict=True)]
        pairs += zip(ours.actor.net.code.parameters(), self.actor["trunk"].parameters(), strict=True)
        pairs += zip(ours.actor.net.body.parameters(), self.actor["policy"].parameters(), strict=True)
        for critic, mine in ((ours.critic, self.critic), (ours.target_critic, self.target)):
            pairs += zip(critic.code.parameters(), mine["trunk"].parameters(), strict=True)
            for k, head in enumerate(mine["q"]):
                for layer, weight, bias in zip(head[::2], critic.heads.weight, critic.heads.bias, strict=True):
                    pairs += [(weight[k].T, layer.weight), (bias[k, 0], layer.bias)]
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("vectors", [0, 3])
def test_updates_are_the_slow_ones(double, vectors):
    ours = make(vectors)
    slow = Slow(ours)
    slow.assert_same(ours)
    for k in range(5):
        batch = batch_of(16, vectors=vectors, seed=k, gamma=0.99**3, double=True)
        ours.seen = 100_000 * k
        slow.learn(batch, sigma=1.0 - 0.9 * k / 5)
        ours.learn(batch)
        slow.assert_same(ours)


def test_shifts_by_interpolation_learn_the_same():
    one, other = make(), make(bilinear=True)
    for algorithm in (one, other):
        algorithm.learn(batch_of(16))
    for a, b in zip(one.target_critic.parameters(), other.target_critic.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_the_actor_learns_from_its_loss_alone_and_the_encoder_from_the_critics():
    algorithm = make()
    critic, net = algorithm.critic, algorithm.actor.net
    assert all(a is b for a, b in zip(critic.look.parameters(), net.look.parameters(), strict=True))
    own = [*net.code.parameters(), *net.body.parameters()]
    given, loss = [], algorithm.actor_loss
    algorithm.actor_loss = lambda seen: given.append(seen) or loss(seen)
    algorithm.learn(batch_of(16))
    assert given[0].pictures.shape == (8, critic.look.width) and not given[0].pictures.requires_grad
    loss(given[0]).backward()
    assert all(p.grad.abs().max() > 0 for p in own)
    trained = {id(p) for group in algorithm.actor_optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in own}
    trained = {id(p) for group in algorithm.critic_optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in critic.parameters()} and trained.isdisjoint({id(p) for p in own})


def test_the_cut_lets_the_gradient_through():
    algorithm = make(noise_clip=0.0)
    mean = torch.tensor([[-1.0, 0.5]], requires_grad=True)
    action = algorithm.sample(mean)
    assert action[0].tolist() == pytest.approx([-1 + 1e-6, 0.5], abs=1e-7)
    action.sum().backward()
    assert mean.grad.tolist() == [[1.0, 1.0]]


def test_the_noise_falls_along_a_line_and_is_clipped_in_learning_alone():
    algorithm = make(noise_start=1.0, noise_end=0.1, noise_steps=1000, random_steps=0, noise_clip=0.3)
    found = []
    for algorithm.seen in (0, 500, 1000, 5000):
        found.append(algorithm.sigma)
    assert found == pytest.approx([1.0, 0.55, 0.1, 0.1])
    algorithm.seen = 500
    learned = algorithm.sample(torch.zeros(4000, ACTIONS))
    assert learned.abs().max().item() == pytest.approx(0.3) and (learned.abs() < 0.3).float().mean() < 0.5
    obs = {"image/a": batch_of(16, 64).pictures["image/a"].numpy()}
    algorithm.seen = 1000
    best = algorithm.policy().act(obs)
    away = np.stack([algorithm.act(obs) for _ in range(50)]) - best
    inside = np.abs(best) < 0.6
    assert away.std(0)[inside].mean() == pytest.approx(0.1, rel=0.1)
    np.testing.assert_array_equal(algorithm.act(obs, explore=False), best)


def test_it_learns_every_second_step_after_the_random_ones():
    here, algorithm = world(1, size=16), None
    config = dataclasses.replace(CONFIG, random_steps=20, n_step=1)
    algorithm, done = DrQv2(config, Spaces(**here.spaces()), 0), []
    obs, learn = here.reset()[0], algorithm.learn
    algorithm.learn = lambda batch: done.append(algorithm.seen) or learn(batch)
    live(algorithm, here, 41, obs)  # 41 steps, three of which only begin an episode
    assert algorithm.seen == 38 and done[0] == 22 and len(done) == 9


def test_it_finds_the_column():
    settings = {"filters": 8, "features": 16, "hidden": (64, 64), "batch_size": 64, "noise_steps": 500, "discount": 0.5}
    here, config = world(2, size=16), dataclasses.replace(CONFIG, **settings, random_steps=100)
    algorithm = DrQv2(config, Spaces(**here.spaces()), seed=0)
    assert judge(algorithm, size=16) < -0.1
    live(algorithm, here, 250)
    assert judge(algorithm, size=16) > -0.03


def test_two_runs_are_bit_equal_and_so_is_one_that_went_on():
    def place():
        return world(2, size=16, vector=True, stack=2)

    config, spaces = dataclasses.replace(CONFIG, random_steps=10), Spaces(**place().spaces())
    assert_two_runs_are_equal_and_one_goes_on(lambda seed: DrQv2(config, spaces, seed), place, 20)
