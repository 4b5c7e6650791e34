"""A task in pixels that is solved in seconds: a bright column says which action is right."""

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from toy_loop import mean_reward

from mmssl.control.base import Algorithm, Spaces
from mmssl.control.networks import Ensemble
from mmssl.control.replay import Batch
from mmssl.envs.vector import VectorWorld, wrap_vec

SIZE, ACTIONS = 24, 2


class Column(gym.Env):
    """24 x 24 pixels, dark but for a column of 4; the reward is minus the squared distance of the action to its place.

    Episodes of ten steps are cut, never ended; `proprio` is one number of noise.
    """

    def __init__(self, size: int = SIZE, vector: bool = False):
        pictures = {"image/front": gym.spaces.Box(0, 255, (3, size, size), np.uint8)}
        vectors = {"proprio": gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)} if vector else {}
        self.observation_space = gym.spaces.Dict({**pictures, **vectors})
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.size = size

    def _look(self) -> dict[str, np.ndarray]:
        self.target = self.np_random.uniform(-0.7, 0.7)
        picture = np.zeros((3, self.size, self.size), np.uint8)
        middle = round((self.target + 1) / 2 * (self.size - 1))
        picture[:, :, max(middle - 2, 0) : middle + 2] = 255
        seen = {"image/front": picture}
        if "proprio" in self.observation_space.spaces:
            seen["proprio"] = self.np_random.standard_normal(1).astype(np.float32)
        return seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._look(), {}

    def step(self, action):
        self.time += 1
        reward = -float((action[0] - self.target) ** 2)
        return self._look(), reward, False, self.time == 10, {}


def world(n: int = 2, size: int = SIZE, vector: bool = False, stack: int = 1, seed: int = 0) -> VectorWorld:
    return wrap_vec(lambda: Column(size, vector), n, frame_stack=stack, seed=seed)


def spaces_of(size: int = SIZE, **kwargs) -> Spaces:
    return Spaces(**world(size=size, **kwargs).spaces())


def judge(algorithm: Algorithm, steps: int = 60, **kwargs) -> float:
    """Mean reward of a step of the policy, without noise; a random one has -0.5, one that stays at 0 has -0.16."""
    return mean_reward(algorithm, world(8, seed=99, **kwargs), steps)


def two_frames(side: int, vectors: int = 0) -> Spaces:
    """A stack of two pictures, numbers beside them, and `ACTIONS` actions."""
    seen = {"image/a": ((6, side, side), np.dtype(np.uint8))}
    seen |= {"proprio": ((vectors,), np.dtype(np.float32))} if vectors else {}
    return Spaces(seen, ACTIONS)


def batch_of(
    side: int, n: int = 8, vectors: int = 0, seed: int = 0, gamma: float = 0.99, double: bool = False
) -> Batch:
    """Random transitions in `two_frames`, every third one of which ended; with `double` all but pixels is float64."""
    g = torch.Generator().manual_seed(seed)
    pixels = [torch.randint(0, 256, (n, 6, side, side), dtype=torch.uint8, generator=g) for _ in range(2)]
    obs, later = (torch.randn(n, vectors, generator=g) for _ in range(2))
    action, reward = torch.rand(n, ACTIONS, generator=g) * 2 - 1, torch.randn(n, generator=g)
    numbers = [obs, action, reward, gamma * (torch.arange(n) % 3 > 0), later]
    numbers = [x.double() for x in numbers] if double else numbers
    return Batch(*numbers, {"image/a": pixels[0]}, {"image/a": pixels[1]})


def plain_critics(ensemble: Ensemble) -> list[nn.Sequential]:
    """Each critic of an ensemble as a network of its own."""
    found = []
    for k in range(ensemble.members):
        layers = []
        for weight, bias in zip(ensemble.weight, ensemble.bias, strict=True):
            layer = nn.Linear(*weight.shape[1:])
            layer.weight.data, layer.bias.data = weight[k].detach().T.clone(), bias[k, 0].detach().clone()
            layers += [layer, nn.ReLU()]
        found.append(nn.Sequential(*layers[:-1]))
    return found
