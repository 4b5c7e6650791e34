"""Stable-Baselines3's off-policy algorithms with the weights of ours, learning from batches that they are given."""

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from mmssl.control.base import Spaces
from mmssl.control.replay import Batch

WIDTH, ACTIONS, SIZE = 5, 3, 32
SPACES = Spaces({"state": ((WIDTH,), np.dtype(np.float32))}, ACTIONS)


class Nothing(gym.Env):
    """A world of which only the spaces are used."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (ACTIONS,), np.float32)


class OneBatch:
    """A replay buffer that always gives the same batch."""

    def __init__(self, samples: ReplayBufferSamples):
        self.samples = samples

    def sample(self, batch_size, env=None):
        return self.samples


def batches(count: int, gamma: float = 0.99) -> list[tuple[Batch, ReplayBufferSamples]]:
    """The same batches as both see them; a third of the transitions are true ends."""
    draw, found = torch.Generator().manual_seed(7), []
    for _ in range(count):
        obs, after = (torch.randn(SIZE, WIDTH, generator=draw) for _ in range(2))
        action = torch.rand(SIZE, ACTIONS, generator=draw) * 2 - 1
        reward, ended = torch.randn(SIZE, generator=draw), (torch.rand(SIZE, generator=draw) < 0.3).float()
        ours = Batch(obs, action, reward, gamma * (1 - ended), after, {}, {})
        found.append((ours, ReplayBufferSamples(obs, action, after, ended[:, None], reward[:, None])))
    return found


def logged_by(theirs) -> dict[str, float]:
    """What an algorithm of theirs logs from now on, name -> the newest number."""
    logged: dict[str, float] = {}
    theirs._logger = type("Logger", (), {"record": lambda _, name, value, **__: logged.update({name: value})})()
    return logged


def give_linear(layers: list[nn.Linear], own: list[nn.Linear]) -> None:
    for theirs, mine in zip(layers, own, strict=True):
        theirs.load_state_dict(mine.state_dict())


def linear(net: nn.Module) -> list[nn.Linear]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)]


def give_critics(theirs: nn.Module, ensemble: nn.Module) -> None:
    """Copy an ensemble into the critics of a policy."""
    for k, net in enumerate(theirs.q_networks):
        for layer, weight, bias in zip(linear(net), ensemble.weight, ensemble.bias, strict=True):
            layer.weight.data.copy_(weight[k].T)
            layer.bias.data.copy_(bias[k, 0])


def same_critics(theirs: nn.Module, ensemble: nn.Module, **tolerance: float) -> None:
    for k, net in enumerate(theirs.q_networks):
        for layer, weight, bias in zip(linear(net), ensemble.weight, ensemble.bias, strict=True):
            torch.testing.assert_close(weight[k].T, layer.weight, **tolerance)
            torch.testing.assert_close(bias[k, 0], layer.bias, **tolerance)
