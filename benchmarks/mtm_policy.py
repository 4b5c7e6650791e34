"""A trajectory model as the policy of 16 environments: one prediction for all of them, beside one for each.

    python benchmarks/mtm_policy.py                       # the authors' size for D4RL: 512 wide, Hopper's dimensions
    python benchmarks/mtm_policy.py --dim 128

Both sides act on the same observations with windows that are full, and are run in turn; time is the process's own, so
that other work on the machine does not count. Both must give the same actions.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
import tyro

from mmssl import create_method
from mmssl.control.trajectory_policy import TrajectoryPolicy


@dataclass
class Settings:
    """What to time."""

    environments: int = 16
    dim: int = 512
    length: int = 4
    steps: int = 100
    rounds: int = 5
    threads: int = 1


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    model = create_method("mtm", dim=settings.dim, length=settings.length).eval().requires_grad_(False)
    n = settings.environments
    states = np.random.default_rng(0).normal(size=(settings.steps, n, 11)).astype(np.float32)
    together = TrajectoryPolicy(model, n, "rcbc", 1.0)
    apart = [TrajectoryPolicy(model, 1, "rcbc", 1.0) for _ in range(n)]
    sides = {
        "one call": lambda s: together.act({"state": s}),
        f"{n} calls": lambda s: np.concatenate([p.act({"state": s[i : i + 1]}) for i, p in enumerate(apart)]),
    }
    for s in states[: settings.length]:  # the windows fill up
        one, each = (act(s) for act in sides.values())
        np.testing.assert_allclose(one, each, atol=1e-4)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(settings.rounds):
        for name, act in sides.items():
            began = time.process_time()
            for s in states:
                act(s)
            times[name].append((time.process_time() - began) / settings.steps)
    for name, found in times.items():
        per = statistics.median(found)
        print(f"{name}: {1e3 * per:.2f} ms a step of {n} environments, {n / per:,.0f} actions a second")
    one, each = times.values()
    ratios = sorted(b / a for a, b in zip(one, each, strict=True))
    print(f"one call is {statistics.median(ratios):.1f} times as fast ({ratios[0]:.1f} to {ratios[-1]:.1f})")


if __name__ == "__main__":
    main(tyro.cli(Settings))
