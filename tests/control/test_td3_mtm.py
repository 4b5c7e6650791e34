"""TD3 on a state encoder: a whole update against plain torch, what learns and what does not, a task it solves."""

import copy
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmssl.config import from_dict
from mmssl.control.base import AlgorithmConfig, Spaces, create_algorithm
from mmssl.control.replay import Batch
from mmssl.control.state_reader import StateReader
from mmssl.control.td3_mtm import TD3MTM, TD3MTMConfig
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.tokenizers.vector import VectorTokenizerConfig

sys.path.append(str(Path(__file__).parent))  # tests are imported from their files, not as a package

from toy_loop import live, weights
from vector_toys import judge, spaces_of, world

WIDTH, ACTIONS, SIZE = 5, 3, 32
SPACES = Spaces({"state": ((WIDTH,), np.dtype(np.float32))}, ACTIONS)
SMALL = {"hidden": (16, 12), "lr": 1e-3, "tau": 0.1, "capacity": 1000, "batch_size": SIZE}
CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def trajectory_encoder(width=WIDTH, actions=ACTIONS, dim=16, depth=2):
    """An encoder of states, actions and returns over four steps, as MTM's, with statistics."""
    torch.manual_seed(3)
    draw = np.random.default_rng(0)
    of = {"state": width, "action": actions, "return": 1}
    tokenizers = {
        name: VectorTokenizerConfig(
            width=w, frames=4, mean=tuple(draw.normal(size=w)), std=tuple(draw.uniform(1, 2, w))
        )
        for name, w in of.items()
    }
    config = EncoderConfig(tokenizers, dim=dim, depth=depth, heads=2, cls_token=False, drop=0.1, type_embedding=True)
    return Encoder(config)


def make(reader=None, **given):
    return TD3MTM(TD3MTMConfig(**(SMALL | given)), SPACES, 0, reader=reader)


def reader(keep=False, **ends):
    return StateReader(trajectory_encoder(), SPACES.vectors, keep=keep, **ends)


def draw_batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    obs, later = torch.randn(2, SIZE, WIDTH, generator=g)
    action = torch.rand(SIZE, ACTIONS, generator=g) * 2 - 1
    reward, ended = torch.randn(SIZE, generator=g), torch.rand(SIZE, generator=g) < 0.2
    return Batch(obs, action, reward, 0.99 * ~ended, later, {}, {})


class Slow:
    """The same by plain modules and torch's own Adam, from the weights of ours."""

    def __init__(self, ours):
        self.c, self.state_action = ours.config, ours.config.state_action
        net = ours.actor.net
        self.encoder = copy.deepcopy(net[0]) if isinstance(net[0], StateReader) else None
        self.actor = copy.deepcopy(net[-1] if self.encoder is not None else net)
        self.critics = nn.ModuleList(self._critic(ours.critic.heads, k) for k in range(2))
        self.critic_encoder = copy.deepcopy(ours.critic.reader)
        self.targets, self.target_encoder = copy.deepcopy(self.critics), copy.deepcopy(self.critic_encoder)
        self.actor_adam = torch.optim.Adam(self._weights(self.actor, self.encoder), self.c.lr)
        self.critic_adam = torch.optim.Adam(self._weights(self.critics, self.critic_encoder), self.c.lr)

    def _weights(self, nets, encoder):
        return [*nets.parameters(), *(encoder.parameters() if encoder is not None and self.c.end_to_end else [])]

    def _critic(self, heads, k):
        widths = [heads.weight[0].shape[1], *(w.shape[2] for w in heads.weight)]
        a, b, c = (nn.Linear(i, o) for i, o in pairwise(widths))
        for layer, weight, bias in zip((a, b, c), heads.weight, heads.bias, strict=True):
            layer.weight.data, layer.bias.data = weight.data[k].T.clone(), bias.data[k, 0].clone()
        return nn.Sequential(a, nn.LayerNorm(widths[1]), nn.Tanh(), b, nn.ReLU(), c)

    def look(self, encoder, obs):
        if encoder is None:
            return obs
        token = encoder.encoder({"state": obs[:, None]}).tokens[:, 0]
        return torch.cat([token, obs], 1) if encoder.keep else token

    def q(self, nets, encoder, obs, action):
        if self.state_action:
            low, high = self.encoder.action_low, self.encoder.action_high
            batch = {"state": obs[:, None], "action": (low + (action + 1) / 2 * (high - low))[:, None]}
            x = self.encoder.encoder(batch).tokens.flatten(1)  # the state's token, then the action's
        else:
            x = torch.cat([self.look(encoder, obs), action], 1)
        return torch.stack([net(x)[:, 0] for net in nets])

    def act(self, obs, noise):
        action = self.actor(self.look(self.encoder, obs)) + noise.clamp(-self.c.noise_clip, self.c.noise_clip)
        return action + (action.clamp(-1 + 1e-6, 1 - 1e-6) - action).detach()

    def learn(self, batch, first, second):
        with torch.no_grad():
            later = self.act(batch.next_obs, first)
            value = self.q(self.targets, self.target_encoder, batch.next_obs, later).min(0).values
            target = batch.reward + batch.discount * value
        values = self.q(self.critics, self.critic_encoder, batch.obs, batch.action)
        critic_loss = F.mse_loss(values[0], target) + F.mse_loss(values[1], target)
        self._step(self.critic_adam, critic_loss)
        values = self.q(self.critics, self.critic_encoder, batch.obs, self.act(batch.obs, second))
        actor_loss = -torch.min(values[0], values[1]).mean()
        self._step(self.actor_adam, actor_loss)
        self._follow(self.targets, self.critics)
        if self.target_encoder is not None:
            self._follow(self.target_encoder, self.critic_encoder)
        return critic_loss.item(), actor_loss.item()

    @staticmethod
    def _step(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def _follow(self, slow, quick):
        for a, b in zip(slow.parameters(), quick.parameters(), strict=True):
            a.data = (1 - self.c.tau) * a.data + self.c.tau * b.data

    def assert_same(self, ours):
        body = ours.actor.net[-1] if self.encoder is not None else ours.actor.net
        pairs = [(self.actor, body), (self.encoder, ours.actor.net[0]), (self.critic_encoder, ours.critic.reader)]
        pairs += [(self.target_encoder, ours.target_critic.reader)]
        for slow, quick in pairs:
            if slow is not None:
                one, other = slow.state_dict(), quick.state_dict()
                for name in one:  # of one token queries and keys have no slope but rounding, which Adam makes large
                    rows = slice(2 * one[name].numel() // 3 if ".qkv." in name else 0, None)
                    torch.testing.assert_close(one[name].reshape(-1)[rows], other[name].reshape(-1)[rows], **CLOSE)
        for nets, heads in ((self.critics, ours.critic.heads), (self.targets, ours.target_critic.heads)):
            for k, net in enumerate(nets):
                linear = [layer for layer in net if isinstance(layer, nn.Linear)]
                for layer, weight, bias in zip(linear, heads.weight, heads.bias, strict=True):
                    torch.testing.assert_close(layer.weight.T, weight[k], **CLOSE)
                    torch.testing.assert_close(layer.bias, bias[k, 0], **CLOSE)
                torch.testing.assert_close(net[1].weight, heads.norm[0][k, 0], **CLOSE)


CASES = {
    "raw": ({}, None),
    "end_to_end": ({"end_to_end": True}, {}),
    "keep_obs": ({"end_to_end": True}, {"keep": True}),
    "state_action": ({"state_action": True}, {"low": np.array([-2.0, -1, 0]), "high": np.array([1.0, 3, 2])}),
}


@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_plain_torch(case):
    given, looks = CASES[case]
    ours = make(None if looks is None else reader(**looks), **given)
    for p in ours.target_critic.parameters():
        p.data += 0.1 * torch.randn_like(p)  # targets of their own
    slow = Slow(ours)
    slow.targets = nn.ModuleList(slow._critic(ours.target_critic.heads, k) for k in range(2))
    for k, net in enumerate(slow.targets):
        net[1].weight.data, net[1].bias.data = (p.data[k, 0].clone() for p in ours.target_critic.heads.norm)
    slow.target_encoder = copy.deepcopy(ours.target_critic.reader)
    for seed in range(4):
        batch, twin = draw_batch(seed), torch.Generator()
        twin.set_state(ours.noise.get_state())
        first, second = (torch.randn(SIZE, ACTIONS, generator=twin) * ours.config.noise for _ in range(2))
        scalars = ours.learn(batch)
        critic_loss, actor_loss = slow.learn(batch, first, second)
        assert scalars["critic_loss"].item() == pytest.approx(critic_loss, rel=1e-5)
        assert scalars["actor_loss"].item() == pytest.approx(actor_loss, rel=1e-5)
        slow.assert_same(ours)


def encoder_weights(module):
    return {name: value.clone() for name, value in module.named_parameters() if ".encoder." in name}


def test_a_fine_tuned_encoder_learns_in_each_network_apart_and_a_frozen_one_does_not():
    ours, given = make(reader(), end_to_end=True), trajectory_encoder().state_dict()
    before = [encoder_weights(net) for net in (ours.actor, ours.critic)]
    ours.learn(draw_batch())
    for net, old in zip((ours.actor, ours.critic), before, strict=True):
        moved = {name for name, value in encoder_weights(net).items() if not torch.equal(value, old[name])}
        assert any("blocks.0" in name for name in moved) and any("tokenizers.state.proj" in name for name in moved)
        assert not any("tokenizers.action" in name or "tokenizers.return" in name for name in moved)
    actor, critic = (dict(net.named_parameters()) for net in (ours.actor.net[0], ours.critic.reader))
    assert any(not torch.equal(actor[name], critic[name]) for name in actor)  # each its own

    frozen = make(reader(), state_action=True)
    frozen.learn(draw_batch())
    torch.testing.assert_close(frozen.actor.net[0].encoder.state_dict(), given, rtol=0, atol=0)
    assert not any("encoder" in name for name, _ in frozen.critic.named_parameters())


def test_the_given_encoder_is_left_alone_and_dropout_is_off():
    encoder = trajectory_encoder().train()
    looks = StateReader(encoder, SPACES.vectors)
    ours = make(looks, end_to_end=True)
    ours.actor.train()
    obs = torch.randn(4, WIDTH)
    torch.testing.assert_close(ours.actor.net[0](obs), ours.actor.net[0](obs), rtol=0, atol=0)
    before = copy.deepcopy(encoder.state_dict())
    ours.learn(draw_batch())
    torch.testing.assert_close(encoder.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["raw", "end_to_end"])
def test_a_toy_is_solved_and_a_run_goes_on_as_if_never_stopped(case):
    """Online; a policy that stays at 0 has -0.33 a step."""
    spaces, looks = spaces_of(), None
    settings = {"hidden": (32, 32), "lr": 3e-3, "tau": 0.05, "batch_size": 32, "discount": 0.5, "random_steps": 64}
    if case == "end_to_end":
        looks = StateReader(trajectory_encoder(2, 2, dim=8, depth=1), spaces.vectors)
        settings |= {"end_to_end": True, "updates_per_step": 0.5}
    config = TD3MTMConfig(capacity=4000, **settings)
    ours = TD3MTM(config, spaces, 0, reader=copy.deepcopy(looks))
    plays = world()
    obs = live(ours, plays, 100)
    other = TD3MTM(config, spaces, 0, reader=copy.deepcopy(looks))
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    for one in (ours, other):
        for _ in range(3):
            one.learn(one.replay.sample(32))
    for name, value in weights(ours).items():
        np.testing.assert_array_equal(value, weights(other)[name])
    np.testing.assert_array_equal(ours.act(obs), other.act(obs))
    live(ours, plays, 300, obs)
    assert judge(ours) > -0.1


def test_wrong_settings():
    with pytest.raises(MmsslError, match="end_to_end needs an encoder of states; name one with --encoder"):
        make(end_to_end=True)
    with pytest.raises(MmsslError, match="set one of them"):
        TD3MTMConfig(end_to_end=True, state_action=True)
    with pytest.raises(MmsslError, match="tau must lie in"):
        TD3MTMConfig(tau=0)
    with pytest.raises(MmsslError, match="reads a 'state' of 5 numbers and this world shows one of 4"):
        StateReader(trajectory_encoder(), {"state": 4})
    with pytest.raises(MmsslError, match="no action; set state_action to false"):
        alone = Encoder(EncoderConfig({"state": VectorTokenizerConfig(width=WIDTH)}, dim=16, depth=1, heads=2))
        StateReader(alone, SPACES.vectors).with_action(torch.zeros(1, WIDTH), torch.zeros(1, ACTIONS))


def test_it_is_made_by_its_name():
    config = from_dict(AlgorithmConfig, {"name": "td3_mtm", "hidden": [8, 8]})
    assert isinstance(create_algorithm(config, SPACES), TD3MTM) and config.batch_size == 1024
