"""Tiny episodes in memory and on disk: every number says where it belongs."""

from pathlib import Path

import numpy as np

from mmssl.data.trajectory_files import Trajectory
from mmssl.data.trajectory_writing import write_trajectories


def episode(number: int, steps: int, task: str = "own/toy", ended: bool = False, seed: int = 0) -> Trajectory:
    """state (number, step, noise), one action of two numbers and a reward a step; it ends at step + 1."""
    draw = np.random.default_rng([seed, number])
    state = np.stack([np.full(steps + 1, number), np.arange(steps + 1), draw.normal(size=steps + 1)], 1)
    state = state.astype(np.float32)
    action = (10 * state[:-1, :2] + 1).astype(np.float32)
    reward = draw.normal(size=(steps, 1)).astype(np.float32)
    arrays = {"state": state[:-1], "proprio": -state[:-1, :1], "action": action, "reward": reward}
    last = {"state": state[-1], "proprio": -state[-1, :1]}
    return Trajectory(arrays, last, task, number, f"episode {number}", ended)


def write_toys(root: Path, lengths, name: str = "own/toy-v0", task: str = "own/toy", **kwargs) -> Path:
    """A Minari dataset of episodes of these lengths."""
    return write_trajectories(root, [episode(k, n, task) for k, n in enumerate(lengths)], name, **kwargs)


def slow_windows(episodes: list[Trajectory], length: int, stride: int, short: str):
    """(episode's place, first step, valid steps) of every window, counted out one by one."""
    found = []
    for place, e in enumerate(episodes):
        if len(e) < length:
            if short == "pad":
                found.append((place, 0, len(e)))
            continue
        first = 0
        while first + length <= len(e):
            found.append((place, first, length))
            first += stride
    return found
