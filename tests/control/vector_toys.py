"""A task in vectors that is solved in seconds, and the loop around it."""

import gymnasium as gym
import numpy as np

from mmssl.control.base import Algorithm, Spaces, Transition
from mmssl.envs.vector import VectorWorld, wrap_vec


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


def live(algorithm: Algorithm, world: VectorWorld, steps: int, obs=None) -> dict[str, np.ndarray]:
    """Some steps of the loop; the last observation."""
    obs = world.reset()[0] if obs is None else obs
    for _ in range(steps):
        valid, action = ~world.starting, algorithm.act(obs)
        assert action.dtype == np.float32 and np.abs(action).max() <= 1
        after, reward, terminated, truncated, _ = world.step(action)
        algorithm.observe(Transition(obs, action, reward.astype(np.float32), terminated, truncated, after, valid))
        algorithm.update()
        obs = after
    return obs


def judge(algorithm: Algorithm, steps: int = 60) -> float:
    """Mean reward of a step of the policy, without noise; one that stays at 0 has -0.33, a random one -1."""
    fresh, policy, total = world(8, seed=99), algorithm.policy(), []
    obs = fresh.reset()[0]
    for _ in range(steps):
        valid = ~fresh.starting
        obs, reward, *_ = fresh.step(policy.act(obs))
        total += reward[valid].tolist()
    return float(np.mean(total))


def weights(algorithm: Algorithm) -> dict[str, np.ndarray]:
    """Copies of all weights that an algorithm trains or averages."""
    names = ("actor", "critic", "target_actor", "target_critic")
    nets = {name: getattr(algorithm, name) for name in names if hasattr(algorithm, name)}
    return {f"{n}.{k}": v.detach().numpy().copy() for n, net in nets.items() for k, v in net.state_dict().items()}
