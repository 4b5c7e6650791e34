"""Do our algorithms learn what Stable-Baselines3's and the published ones do? Equal settings and steps, seed by seed.

    python benchmarks/returns.py --runs runs/returns                    # every job that is not done; in the background
    python benchmarks/returns.py --runs runs/returns --only td3-halfcheetah --sides ours --seeds 0
    python benchmarks/returns.py --table

A job is one experiment, side and seed, and uses one thread; several processes of this script share the jobs. What is
done is a line of `returns_results.jsonl`, beside this file, and is not run again. A job of ours that was stopped goes
on from its checkpoint, one of Stable-Baselines3 begins again. Both sides are judged by the same code: ten episodes
without noise in worlds of their own. TD3's settings are those of its paper (10,000 random steps on HalfCheetah, 1,000
elsewhere), with which the published curves were made; PPO's are CleanRL's but for 8 environments times 256 steps in
place of 1 times 2,048, time limits bootstrapped and no clipped value loss, of which Stable-Baselines3 has another form.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from returns_table import read_results, table

from mmssl.errors import MmsslError
from mmssl.training.lock import folder_lock

RESULTS = Path(__file__).with_name("returns_results.jsonl")
TD3 = {"hidden": (400, 300), "lr": 1e-3, "batch_size": 100}


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes:
        steps, every: environment steps of a run, and between evaluations.
        random_steps: of TD3, before it learns.
        published: mean, lowest and highest of the published seeds at `steps`, and where they are from.
        gated: ours must not be worse.
        published_as: what the published figure is of: `evaluation` without noise, or episodes of `training`.
    """

    algorithm: str
    task: str
    steps: int
    every: int
    published: tuple[float, float, float, str]
    gated: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    published_as: str = "evaluation"


AUTHOR = "the author's learning curves, 10 seeds"
EXPERIMENTS = {
    "td3-pendulum": Experiment(
        "td3", "gym/InvertedPendulum-v5", 30_000, 5000, (1000, 1000, 1000, AUTHOR), True, {**TD3, "random_steps": 1000}
    ),
    "td3-halfcheetah": Experiment(
        "td3", "gym/HalfCheetah-v5", 100_000, 5000, (5514, 4542, 6355, AUTHOR), True, {**TD3, "random_steps": 10_000}
    ),
    "ppo-halfcheetah": Experiment(
        "ppo",
        "gym/HalfCheetah-v5",
        1_000_000,
        50_000,
        (1443, 1397, 1489, "CleanRL, 3 seeds, mean and deviation"),
        published_as="training",
    ),
    "td3-hopper": Experiment(
        "td3", "gym/Hopper-v5", 100_000, 5000, (659, 25, 2790, AUTHOR), False, {**TD3, "random_steps": 1000}
    ),
    "td3-walker2d": Experiment(
        "td3", "gym/Walker2d-v5", 100_000, 5000, (770, 156, 2320, AUTHOR), False, {**TD3, "random_steps": 1000}
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/returns"))
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--sides", nargs="+", choices=("ours", "sb3"), default=["ours", "sb3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the results as a table")
    args = parser.parse_args()
    if args.table:
        print(table(args.results, EXPERIMENTS))
        return
    torch.set_num_threads(1)
    for name in args.only:
        for seed in args.seeds:
            for side in args.sides:
                _job(args, name, side, seed)


def _job(args: argparse.Namespace, name: str, side: str, seed: int) -> None:
    """Run one job, unless it is done or another process is at it."""
    folder = args.runs / name / f"{side}-{seed}"
    try:
        with folder_lock(folder):
            if (name, side, seed) in read_results(args.results):
                return
            print(f"{name}, {side}, seed {seed}", flush=True)
            seconds = _run(side, EXPERIMENTS[name], seed, folder)
            with open(args.results, "a") as file:
                file.write(json.dumps(summary(name, side, seed, seconds, folder)) + "\n")
    except MmsslError as error:
        print(f"{name}, {side}, seed {seed}: {error}", flush=True)


def summary(name: str, side: str, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """A line of the results: mean returns at each evaluation, and of the training episodes before the last one."""
    evaluations = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    curve = [[e["step"], round(float(np.mean(e["returns"])), 1)] for e in evaluations]
    training = evaluations[-1]["training"]
    last = round(float(np.mean(training)), 1) if training else None
    job = {"experiment": name, "side": side, "seed": seed}
    return {**job, "hours": round(seconds / 3600, 2), "training": last, "curve": curve}


def _run(side: str, experiment: Experiment, seed: int, folder: Path) -> float:
    if side == "sb3":
        from returns_sb3 import run
    else:
        from returns_ours import run
    return run(experiment, seed, folder)


if __name__ == "__main__":
    main()
