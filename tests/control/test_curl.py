"""CURL's reinforcement learning: its update against a slow version, what learns from what, and a task in pixels."""

import copy
import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmssl.control.base import Spaces
from mmssl.control.curl import CURL, CURLConfig
from mmssl.control.pixel_networks import Seen
from mmssl.control.replay import Batch
from mmssl.methods.curl import Contrast

sys.path.insert(0, str(Path(__file__).parent))
from pixel_toys import ACTIONS, batch_of, judge, plain_critics, two_frames, world
from toy_loop import assert_two_runs_are_equal_and_one_goes_on, live

CONFIG = CURLConfig(crop=(20, 20), layers=2, filters=4, features=6, hidden=(10, 10), batch_size=8, capacity=500)


def make(vectors: int = 0, **settings) -> CURL:
    return CURL(dataclasses.replace(CONFIG, **settings), two_frames(24, vectors), seed=3)


class SlowEncoder(nn.Module):
    """PixelEncoder of the authors' code."""

    def __init__(self, layers: int, width: int, features: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(6 if k == 0 else 4, 4, 3, stride=1 if k else 2) for k in range(layers))
        self.fc, self.ln = nn.Linear(width, features), nn.LayerNorm(features)

    def forward(self, x, detach=False):
        x = x / 255.0
        for conv in self.convs:
            x = torch.relu(conv(x))
        x = x.reshape(len(x), -1)
        return self.ln(self.fc(x.detach() if detach else x))


class Slow:
    """CurlSacAgent of the authors' code in plain torch, from the weights of ours, with two separate critics."""

    def __init__(self, ours: CURL):
        c = self.c = ours.config
        self.encoder, self.actor_encoder = (SlowEncoder(c.layers, ours.critic.look.width, c.features) for _ in range(2))
        for mine, conv in zip(self.encoder.convs, ours.critic.look.convs.layers, strict=True):
            mine.load_state_dict(conv.state_dict())
        for encoder, code in ((self.encoder, ours.critic.code), (self.actor_encoder, ours.actor.net.code)):
            encoder.fc.load_state_dict(code[0].state_dict())
            encoder.ln.load_state_dict(code[1].state_dict())
        for mine, theirs in zip(self.actor_encoder.convs, self.encoder.convs, strict=True):  # tied
            mine.weight, mine.bias = theirs.weight, theirs.bias
        self.trunk, self.heads = copy.deepcopy(ours.actor.net.body), plain_critics(ours.critic.heads)
        self.target_encoder, self.target_heads = copy.deepcopy(self.encoder), copy.deepcopy(self.heads)
        self.w, self.log_alpha = ours.contrast.weight.detach().clone().requires_grad_(), torch.tensor(math.log(c.alpha))
        self.log_alpha.requires_grad_()
        heads = [p for head in self.heads for p in head.parameters()]
        self.critic_optimizer = torch.optim.Adam([*self.encoder.parameters(), *heads], c.lr)
        actor = [*self.actor_encoder.parameters(), *self.trunk.parameters()]  # tied convolutions too, without gradient
        self.actor_optimizer = torch.optim.Adam(actor, c.lr)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], c.alpha_lr, betas=(0.5, 0.999))
        self.encoder_optimizer = torch.optim.Adam(self.encoder.parameters(), c.lr)
        self.cpc_optimizer = torch.optim.Adam([*self.encoder.parameters(), self.w], c.lr)
        self.noise, self.crops, self.step = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3), 0

    def crop(self, x):
        top = torch.randint(5, (len(x),), generator=self.crops)
        left = torch.randint(5, (len(x),), generator=self.crops)
        return torch.stack([p[:, t : t + 20, s : s + 20] for p, t, s in zip(x, top, left, strict=True)]).double()

    def act(self, x, vectors, detach):
        mu, log_std = self.trunk(torch.cat([self.actor_encoder(x, detach), vectors], 1)).chunk(2, dim=-1)
        log_std = -10 + 0.5 * (2 + 10) * (torch.tanh(log_std) + 1)
        noise = torch.randn(mu.shape, generator=self.noise)
        pi = torch.tanh(mu + noise * log_std.exp())
        log_pi = (-0.5 * noise.pow(2) - log_std).sum(-1) - 0.5 * math.log(2 * math.pi) * ACTIONS
        return pi, log_pi - torch.log(F.relu(1 - pi.pow(2)) + 1e-6).sum(-1)

    def q(self, encoder, heads, x, vectors, action, detach=False):
        z = torch.cat([encoder(x, detach), vectors, action], 1)
        return [head(z)[:, 0] for head in heads]

    def learn(self, batch: Batch) -> None:
        c, x, alpha = self.c, batch.pictures["image/a"], self.log_alpha.exp().detach()
        obs = self.crop(x)
        after = self.crop(batch.next_pictures["image/a"])
        with torch.no_grad():
            action, log_pi = self.act(after, batch.next_obs, False)
            q1, q2 = self.q(self.target_encoder, self.target_heads, after, batch.next_obs, action)
            target = batch.reward + batch.discount * (torch.min(q1, q2) - alpha * log_pi)
        q1, q2 = self.q(self.encoder, self.heads, obs, batch.obs, batch.action)
        self._step(F.mse_loss(q1, target) + F.mse_loss(q2, target), self.critic_optimizer)
        if self.step % c.actor_freq == 0:
            action, log_pi = self.act(obs, batch.obs, True)
            q1, q2 = self.q(self.encoder, self.heads, obs, batch.obs, action, detach=True)
            self._step((alpha * log_pi - torch.min(q1, q2)).mean(), self.actor_optimizer)
            self._step((self.log_alpha.exp() * (-log_pi + ACTIONS).detach()).mean(), self.alpha_optimizer)
        if self.step % c.target_freq == 0:
            pairs = [(self.encoder, self.target_encoder, c.encoder_tau)]
            pairs += [(a, b, c.tau) for a, b in zip(self.heads, self.target_heads, strict=True)]
            for online, slow, tau in pairs:
                for p, t in zip(online.parameters(), slow.parameters(), strict=True):
                    t.data.copy_(tau * p.data + (1 - tau) * t.data)
        if c.contrast:
            with torch.no_grad():
                positive = self.target_encoder(self.crop(x))
            logits = self.encoder(obs) @ (self.w @ positive.T)
            logits = logits - logits.max(1, keepdim=True)[0]
            both = (self.encoder_optimizer, self.cpc_optimizer)
            self._step(F.cross_entropy(logits, torch.arange(len(x))), *both[0 if c.double_step else 1 :])
        self.step += 1

    @staticmethod
    def _step(loss, *optimizers):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    def compare(self, ours: CURL) -> None:
        looks = (
            (self.encoder, ours.critic.look),
            (self.target_encoder, ours.target_critic.look),
            (self.actor_encoder, ours.actor.net.look),
        )
        for encoder, look in looks:
            for mine, conv in zip(encoder.convs, look.convs.layers, strict=True):
                close(conv.weight, mine.weight)
                close(conv.bias, mine.bias)
        codes = (ours.critic.code, ours.target_critic.code, ours.actor.net.code)
        for encoder, code in zip((self.encoder, self.target_encoder, self.actor_encoder), codes, strict=True):
            for mine, theirs in zip((encoder.fc, encoder.ln), code, strict=True):
                close(theirs.weight, mine.weight)
                close(theirs.bias, mine.bias)
        for heads, critic in ((self.heads, ours.critic), (self.target_heads, ours.target_critic)):
            for k, head in enumerate(heads):
                for layer, weight, bias in zip(head[::2], critic.heads.weight, critic.heads.bias, strict=True):
                    close(weight[k].T, layer.weight)
                    close(bias[k, 0], layer.bias)
        for mine, theirs in zip(self.trunk.parameters(), ours.actor.net.body.parameters(), strict=True):
            close(theirs, mine)
        close(ours.contrast.weight, self.w)
        close(ours.log_alpha, self.log_alpha)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "vectors"),
    [({}, 0), ({"double_step": False}, 3), ({"contrast": False, "actor_freq": 1}, 0), ({"target_freq": 3}, 0)],
    ids=["authors", "one step, vectors", "no contrast", "other rates"],
)
def test_updates_are_the_slow_ones(double, settings, vectors):
    ours = make(vectors, **settings)
    slow, start = Slow(ours), ours.log_alpha.item()
    slow.compare(ours)
    for k in range(5):
        batch = batch_of(24, vectors=vectors, seed=k, double=True)
        ours.learn(batch)
        slow.learn(batch)
        slow.compare(ours)
    assert ours.log_alpha.item() != start


def parts_of(algorithm: CURL) -> dict[str, list[torch.Tensor]]:
    critic, net, target = algorithm.critic, algorithm.actor.net, algorithm.target_critic
    modules = {"look": critic.look, "critic code": critic.code, "heads": critic.heads, "w": algorithm.contrast}
    modules |= {
        "actor code": net.code,
        "actor body": net.body,
        "target look": target.look,
        "target heads": target.heads,
    }
    return {name: [p.detach().clone() for p in module.parameters()] for name, module in modules.items()}


def changed(before: dict, after: dict) -> set[str]:
    return {n for n in before if any(not torch.equal(a, b) for a, b in zip(before[n], after[n], strict=True))}


def test_the_second_step_changes_the_encoder_alone():
    """One update, with and without: only what the second Adam steps on differs."""
    found = []
    for double_step in (True, False):
        algorithm = make(double_step=double_step)
        algorithm.learn(batch_of(24))
        found.append(parts_of(algorithm))
    assert changed(*found) == {"look", "critic code"}


def test_without_the_contrast_nothing_else_is_missing():
    with_it, without = make(), make(contrast=False)
    before = parts_of(without)
    for algorithm in (with_it, without):
        algorithm.learn(batch_of(24))
    assert changed(parts_of(with_it), parts_of(without)) == {"look", "critic code", "w"}
    assert changed(before, parts_of(without)) == set(before) - {"w"}


def pixels(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 6, 20, 20) * 255


def test_actor_and_critic_share_their_convolutions_and_the_actor_never_moves_them():
    algorithm, nothing = make(), torch.zeros(4, 0)
    critic, net = algorithm.critic, algorithm.actor.net
    shared = list(critic.look.parameters())
    assert all(a is b for a, b in zip(shared, net.look.parameters(), strict=True)) and len(shared) == 4
    assert net.code[0].weight is not critic.code[0].weight
    trained = {id(p) for group in algorithm.actor_optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in [*net.code.parameters(), *net.body.parameters()]}
    given, loss = [], algorithm.actor_loss
    algorithm.gradient.actor_loss = lambda seen, noise: given.append(seen) or loss(seen, noise)
    algorithm.learn(batch_of(24))
    assert len(given) == 1 and given[0].pictures.shape == (8, critic.look.width)
    assert not given[0].pictures.requires_grad  # the map, without its past
    before = parts_of(algorithm)
    algorithm._learn_actor(Seen(critic.look(pixels()).detach(), nothing), torch.randn(4, ACTIONS))
    assert changed(before, parts_of(algorithm)) == {"actor code", "actor body"}


def test_the_contrast_is_that_of_the_method_and_keys_have_no_gradient():
    algorithm = make()
    assert type(algorithm.contrast) is Contrast
    algorithm.contrast_loss(algorithm.critic.look(pixels()), pixels()).backward()
    assert all(p.grad is None and not p.requires_grad for p in algorithm.target_critic.parameters())
    encoder = [*algorithm.critic.look.parameters(), *algorithm.critic.code.parameters()]
    assert all(p.grad.abs().max() > 0 for p in [*encoder, algorithm.contrast.weight])


def test_training_draws_actions_around_the_policys():
    algorithm = make()
    algorithm.seen = 10**6
    obs = {"image/a": batch_of(24, 2).pictures["image/a"].numpy()}
    drawn = np.stack([algorithm.act(obs) for _ in range(400)])
    with torch.no_grad():
        mean, spread = algorithm.actor.net(algorithm.actor.see(obs)).chunk(2, -1)
    std = (-10 + 6 * (spread.tanh() + 1)).exp()
    normal = (np.arctanh(drawn.clip(-1 + 1e-6, 1 - 1e-6)) - mean.numpy()) / std.numpy()
    inside = np.abs(drawn).max(0) < 0.999
    assert (
        inside.any() and np.abs(normal.mean(0))[inside].max() < 0.2 and np.abs(normal.std(0) - 1)[inside].max() < 0.15
    )
    np.testing.assert_array_equal(algorithm.act(obs, explore=False), algorithm.policy().act(obs))
    np.testing.assert_allclose(algorithm.policy().act(obs), mean.tanh().numpy(), atol=1e-6)


TOY = {"crop": (14, 14), "filters": 8, "features": 16, "hidden": (64, 64), "batch_size": 32, "random_steps": 60}


@pytest.mark.parametrize("settings", [{}, {"contrast": False}], ids=["curl", "sac"])
def test_it_finds_the_column(settings):
    here, config = world(2, size=16), dataclasses.replace(CONFIG, **TOY, discount=0.5, **settings)
    algorithm = CURL(config, Spaces(**here.spaces()), seed=0)
    assert judge(algorithm, size=16) < -0.1
    live(algorithm, here, 150)
    assert judge(algorithm, size=16) > -0.03


def test_two_runs_are_bit_equal_and_so_is_one_that_went_on():
    def place():
        return world(2, size=16, vector=True, stack=2)

    config = dataclasses.replace(CONFIG, crop=(14, 14), random_steps=10, updates_per_step=0.5)
    spaces = Spaces(**place().spaces())
    assert_two_runs_are_equal_and_one_goes_on(lambda seed: CURL(config, spaces, seed), place, 20)
