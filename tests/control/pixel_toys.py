"""A task in pixels that is solved in seconds: a bright column says which action is right."""

import gymnasium as gym
import numpy as np

from mmssl.control.base import Algorithm, Spaces, Transition
from mmssl.envs.vector import VectorWorld, wrap_vec

SIZE = 24


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


def live(algorithm: Algorithm, world: VectorWorld, steps: int, obs=None) -> dict[str, np.ndarray]:
    """Some steps of the loop; the last observation."""
    obs = world.reset()[0] if obs is None else obs
    for _ in range(steps):
        begins = world.starting.copy()
        action = algorithm.act(obs)
        next_obs, reward, terminated, truncated, _ = world.step(action)
        algorithm.observe(
            Transition(obs, action, reward.astype(np.float32), terminated, truncated, next_obs, valid=~begins)
        )
        algorithm.update()
        obs = next_obs
    return obs


def judge(algorithm: Algorithm, steps: int = 60, **kwargs) -> float:
    """Mean reward of a step of the policy, without noise; a random one has -0.5, one that stays at 0 has -0.16."""
    fresh, policy, total = world(8, seed=99, **kwargs), algorithm.policy(), []
    obs = fresh.reset()[0]
    for _ in range(steps):
        begins = fresh.starting.copy()
        obs, reward, *_ = fresh.step(policy.act(obs))
        total += reward[~begins].tolist()
    return float(np.mean(total))
