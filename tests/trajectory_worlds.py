"""A pendulum on a cart: a small run of MTM on episodes of simple steering, for tests of what judges it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mmssl.data.loading import DataConfig
from mmssl.data.trajectory_files import Trajectory
from mmssl.data.trajectory_writing import write_trajectories
from mmssl.envs.vector import make_vec
from mmssl.methods.mtm_settings import MTMConfig
from mmssl.training.loop import LoopConfig
from mmssl.training.optim import OptimConfig
from mmssl.training.pretrain import PretrainConfig, pretrain

TASK = "gym/InvertedPendulum-v5"
GAINS = np.array([0.0, 6.0, 0.0, 1.0], np.float32)
"""Of a linear policy that holds the pole for a while; actions in the environment's units, [-3, 3]."""


def balance(states: np.ndarray) -> np.ndarray:
    """Actions (n, 1) of states (n, 4), in the environment's units."""
    return np.clip(states @ GAINS, -3, 3)[:, None].astype(np.float32)


def episodes(count: int = 10, steps: int = 40, seed: int = 0) -> list[Trajectory]:
    """Episodes of the linear policy."""
    world, found = make_vec(TASK, 1, seed=seed), []
    for number in range(count):
        obs, _ = world.reset()
        rows = {"state": [], "action": [], "reward": []}
        for _ in range(steps):
            action = balance(obs["state"])
            rows["state"].append(obs["state"][0].copy())
            rows["action"].append(action[0])
            obs, reward, terminated, _, _ = world.step(world.from_env(action))
            rows["reward"].append([float(reward[0])])
            if terminated[0]:
                break
        arrays = {name: np.asarray(x, np.float32) for name, x in rows.items()}
        found.append(Trajectory(arrays, {"state": obs["state"][0].copy()}, TASK, number, f"episode {number}"))
    world.close()
    return found


def small_run(folder: Path, steps: int = 150, **method) -> Path:
    """A run of a tiny MTM on such episodes."""
    write_trajectories(folder, episodes(), "own/pendulum-v0")
    plain = {"widths": {"state": 4, "action": 1, "return": 1}, "dim": 32, "heads": 2, "min_std": 1e-4, "drop": 0.0}
    config = PretrainConfig(
        method=replace(MTMConfig(), **{**plain, **method}),
        loop=LoopConfig(steps=steps, batch_size=64, log_every=50),
        data=DataConfig(source=(str(folder / "own/pendulum-v0"),)),
        optim=OptimConfig(lr=3e-3, warmup_steps=10),
    )
    return pretrain(config, folder / "run").path
