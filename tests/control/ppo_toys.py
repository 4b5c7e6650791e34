"""Tasks for PPO, and transitions that no policy influenced."""

import gymnasium as gym
import numpy as np
import torch

from mmssl.control.base import Spaces, Transition
from mmssl.control.ppo import PPO, PPOConfig

FLOAT = np.dtype(np.float32)
PLAIN = {"normalize_obs": False, "normalize_reward": False}


def spaces(n=1, width=3, actions=2, discrete=False):
    return Spaces({"state": ((width,), FLOAT)}, actions, discrete, n)


def make(n=1, discrete=False, seed=0, actions=2, **given):
    return PPO(
        PPOConfig(**({"hidden": (8, 8), "rollout": 16, "minibatches": 4} | given)),
        spaces(n, 3, actions, discrete),
        seed,
    )


def weights(ppo):
    return torch.cat([p.detach().flatten() for net in (ppo.actor, ppo.critic) for p in net.parameters()])


class Copy(gym.Env):
    """The reward says how near the action is to what is seen. Episodes of five steps that end, or are cut."""

    def __init__(self, discrete=False, cut=False):
        self.discrete, self.cut = discrete, cut
        self.observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(3) if discrete else gym.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._see(), {}

    def _see(self):
        draw = np.eye(3)[self.np_random.integers(3)] if self.discrete else self.np_random.uniform(-0.8, 0.8, 3)
        self.seen = draw.astype(np.float32)
        return self.seen

    def step(self, action):
        self.steps += 1
        reward = float(self.seen[action] if self.discrete else -np.square(action - self.seen).mean())
        end = self.steps == 5
        return self._see(), reward, end and not self.cut, end and self.cut, {}


class Constant(gym.Env):
    """Always the same sight and a reward of 1; episodes of two steps that end, or are cut."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, cut):
        self.cut = cut

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        end = self.steps == 2
        return np.ones(1, np.float32), 1.0, end and not self.cut, end and self.cut, {}


def train(world, ppo, updates, obs=None):
    """As the loop does it; scalars of each update."""
    obs, scalars = world.reset()[0] if obs is None else obs, []
    while len(scalars) < updates:
        begins, action = world.starting.copy(), ppo.act(obs)
        assert np.abs(action).max() <= 1 or ppo.spaces.discrete
        after, reward, terminated, truncated, _ = world.step(action)
        ppo.observe(Transition(obs, action, reward.astype(np.float32), terminated, truncated, after, ~begins))
        found = ppo.update()
        scalars += [found] if found else []
        obs = after
    return scalars


def learned(written_out=True, **given):
    """Weights after two updates from transitions of two environments that no policy influenced."""
    ppo = make(2, written_out=written_out, **given)
    play(ppo, 16)
    return ppo


def play(ppo, steps, start=0):
    n, rng = ppo.spaces.n_envs, np.random.default_rng(start)
    for t in range(start, start + steps):
        rng = np.random.default_rng(t)
        obs = [{"state": np.random.default_rng(k).normal(size=(n, 3)).astype(np.float32)} for k in (t, t + 1)]
        ended, begins = np.full(n, t % 5 == 4), np.full(n, t % 5 == 0)
        action = ppo.act(obs[0])
        nobody = np.zeros(n, bool)
        ppo.observe(Transition(obs[0], action, rng.normal(size=n).astype(np.float32), ended, nobody, obs[1], ~begins))
        ppo.update()
