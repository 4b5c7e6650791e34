"""The loop around a toy task, and what it shows of an algorithm."""

import copy
from collections.abc import Callable

import numpy as np

from mmssl.control.base import Algorithm, Transition
from mmssl.envs.vector import VectorWorld


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


def mean_reward(algorithm: Algorithm, fresh: VectorWorld, steps: int) -> float:
    """Of a step of the policy, without noise."""
    policy, total, obs = algorithm.policy(), [], fresh.reset()[0]
    for _ in range(steps):
        valid = ~fresh.starting
        obs, reward, *_ = fresh.step(policy.act(obs))
        total += reward[valid].tolist()
    return float(np.mean(total))


def weights(algorithm: Algorithm) -> dict[str, np.ndarray]:
    """Copies of all weights that an algorithm trains or averages."""
    names = ("actor", "critic", "target_actor", "target_critic", "contrast")
    nets = {name: getattr(algorithm, name) for name in names if hasattr(algorithm, name)}
    tensors = {f"{n}.{k}": v for n, net in nets.items() for k, v in net.state_dict().items()}
    tensors |= {"log_alpha": algorithm.log_alpha} if hasattr(algorithm, "log_alpha") else {}
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def assert_two_runs_are_equal_and_one_goes_on(
    make: Callable[[int], Algorithm], world_of: Callable[[], VectorWorld], steps: int
) -> None:
    """Bit by bit: two runs of one seed, and after as many steps again one of them and its state in another object."""
    first, second, other = make(3), make(3), make(4)
    one, two = world_of(), world_of()
    obs = [live(run, place, steps) for run, place in ((first, one), (second, two))]
    assert_same(first, second)
    assert any(not np.array_equal(x, weights(first)[name]) for name, x in weights(make(3)).items()), "nothing learned"
    other.load_state_dict(copy.deepcopy(second.state_dict()))
    live(first, one, steps, obs[0])
    live(other, two, steps, obs[1])
    assert_same(first, other)
    assert any(not np.array_equal(x, weights(make(4))[name]) for name, x in weights(make(3)).items()), "one seed"


def assert_same(one: Algorithm, other: Algorithm) -> None:
    for name, value in weights(one).items():
        np.testing.assert_array_equal(value, weights(other)[name])
