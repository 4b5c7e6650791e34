"""A task in vectors that is solved in seconds."""

import gymnasium as gym
import numpy as np
import pytest
from toy_loop import mean_reward

from mmssl.control.base import Algorithm, AlgorithmConfig, Spaces, create_algorithm
from mmssl.envs.vector import VectorWorld, wrap_vec
from mmssl.errors import MmsslError

QUICK = {"hidden": (32, 32), "lr": 5e-3, "batch_size": 32, "random_steps": 200, "discount": 0.9, "tau": 0.02}
QUICK |= {"updates_per_step": 0.5, "capacity": 3000}
"""Settings with which it is."""


class Copy(gym.Env):
    """The reward is minus the squared distance of the action to the two numbers that are seen.

    Episodes of six steps end, or are cut.
    """

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-3, 1, (2,), np.float32)

    def __init__(self, cut: bool = False):
        self.cut = cut

    def _look(self) -> np.ndarray:
        self.seen = self.np_random.uniform(-0.7, 0.7, 2).astype(np.float32)
        return self.seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._look(), {}

    def step(self, action):
        self.time += 1
        reward = -float(np.square((action + 1) / 2 - self.seen).sum())
        end = self.time == 6
        return self._look(), reward, end and not self.cut, end and self.cut, {}


def world(n: int = 2, cut: bool = False, seed: int = 0) -> VectorWorld:
    return wrap_vec(lambda: Copy(cut), n, seed=seed)


def spaces_of(n: int = 2) -> Spaces:
    return Spaces(**world(n).spaces())


def judge(algorithm: Algorithm, steps: int = 60) -> float:
    """Mean reward of a step of the policy, without noise; one that stays at 0 has -0.33, a random one -1."""
    return mean_reward(algorithm, world(8, seed=99), steps)


def assert_vectors_and_numbers_alone(config: AlgorithmConfig) -> None:
    """Discrete actions and pictures are refused, in one sentence each."""
    state = {"state": ((4,), np.dtype(np.float32))}
    words = f"{config.name} needs continuous actions and this task has 2 discrete; take ppo"
    with pytest.raises(MmsslError, match=words):
        create_algorithm(config, Spaces(state, 2, discrete=True))
    with pytest.raises(MmsslError, match=f"{config.name} learns from vectors"):
        create_algorithm(config, Spaces({"image/front": ((3, 8, 8), np.dtype(np.uint8))}, 2))
