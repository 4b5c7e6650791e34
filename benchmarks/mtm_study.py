"""What a masked trajectory model learns from little data, and from data of which half has no actions. Seed by seed.

    mmssl record gym/HalfCheetah-v5 --no-pictures --policy random ... (docs/recording.md), or any recordings of one task
    python benchmarks/mtm_study.py --data DIR/HalfCheetah-v5-medium-replay-v0 --task gym/HalfCheetah-v5
    python benchmarks/mtm_study.py --table

A job is one condition and one seed: a training, then what `mmssl trajectories` finds of it: errors on held-out episodes
(in variances of these, the same for all conditions) beside specialists of as many steps, and returns in the
environment. Several processes of this script share the jobs. What is done is a line of `mtm_study_results.jsonl`,
beside this file, and is not run again; a job that was stopped goes on from its checkpoint.

Conditions: 1, 5, 25 and 100 % of the episodes; half of the episodes, all with actions; and all episodes, of which half
lacks the actions. The claim of the paper is that the last one is better than the one before it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmssl.data.loading import DataConfig
from mmssl.data.trajectory_sampling import TrajectorySampling
from mmssl.errors import MmsslError
from mmssl.methods.mtm_settings import MTMConfig
from mmssl.training.lock import folder_lock
from mmssl.training.loop import LoopConfig
from mmssl.training.optim import OptimConfig
from mmssl.training.pretrain import PretrainConfig, pretrain
from mmssl.trajectories import Acts, Held, trajectories

RESULTS = Path(__file__).with_name("mtm_study_results.jsonl")
CONDITIONS: dict[str, dict[str, float]] = {
    "1 %": {"fraction": 0.01},
    "5 %": {"fraction": 0.05},
    "25 %": {"fraction": 0.25},
    "100 %": {},
    "half": {"fraction": 0.5},
    "half without actions": {"without_action": 0.5},
}
SHOWN = ("bc", "rcbc", "forward_dynamics", "inverse_dynamics")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--task", default="gym/HalfCheetah-v5")
    parser.add_argument("--runs", type=Path, default=Path("runs/mtm_study"))
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rollouts", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the results as a table")
    args = parser.parse_args()
    if args.table:
        print(table(read_results(args.results)))
        return
    if not args.data:
        parser.error("--data is needed: folders of recordings of one task")
    torch.set_num_threads(1)
    for seed in args.seeds:
        for name in args.only:
            _job(args, name, seed)


def _job(args: argparse.Namespace, name: str, seed: int) -> None:
    """Run one job, unless it is done or another process is at it."""
    folder = args.runs / name.replace(" ", "_").replace("%", "percent") / f"seed-{seed}"
    try:
        with folder_lock(folder):
            if (name, seed) in {(line["condition"], line["seed"]) for line in read_results(args.results)}:
                return
            print(f"{name}, seed {seed}", flush=True)
            found = _run(args, name, seed, folder / "run")
            with open(args.results, "a") as file:
                file.write(json.dumps(summary(args, name, seed, found)) + "\n")
    except MmsslError as error:
        print(f"{name}, seed {seed}: {error}", flush=True)


def _run(args: argparse.Namespace, name: str, seed: int, folder: Path) -> dict[str, Any]:
    sampling = TrajectorySampling(**CONDITIONS[name])
    data = DataConfig(source=tuple(args.data), trajectory=sampling)
    widths = replace(data, target="none").open().widths
    config = PretrainConfig(
        method=MTMConfig(widths=dict(widths), dim=args.dim),
        loop=LoopConfig(steps=args.steps, batch_size=args.batch, seed=seed, log_every=100),
        data=data,
        optim=OptimConfig(lr=1e-3, weight_decay=0.005, betas=(0.9, 0.999), warmup_steps=args.steps // 20),
    )
    pretrain(config, folder)
    acts = Acts(rollouts=args.rollouts, factors=(0.6, 0.8, 1.0), film=False)
    return trajectories(folder, task=(args.task,), held=Held(), acts=acts, seed=seed, device="cpu", quiet=True)


def summary(args: argparse.Namespace, name: str, seed: int, found: dict[str, Any]) -> dict[str, Any]:
    """A line of the results: errors by question and by who answers, mean return and score of each way to act."""
    acting = {
        task: {way: {k: row[k] for k in ("return", "score", "success")} for way, row in rows.items()}
        for task, rows in found["acting"].items()
    }
    settings = {k: getattr(args, k) for k in ("steps", "batch", "dim", "rollouts")}
    errors = {question: row["errors"] for question, row in found["held_out"].items()}
    return {"condition": name, "seed": seed, "data": found["data"], **settings, "errors": errors, "acting": acting}


def read_results(file: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, file.read_text().splitlines())) if file.is_file() else []


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row for each condition; mean and standard deviation over seeds, a specialist's error behind a /."""
    head = ["condition", "seeds", *(f"{name}, MTM / specialist" for name in SHOWN), "best return, by mask alone"]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in CONDITIONS:
        chosen = [line for line in lines if line["condition"] == name]
        if chosen:
            cells = [_errors([line["errors"].get(question, {}) for line in chosen]) for question in SHOWN]
            rows.append(f"| {name} | {len(chosen)} | {' | '.join(cells)} | {_returns(chosen)} |")
    return "\n".join(rows)


def _errors(found: list[dict[str, float]]) -> str:
    return " / ".join(
        f"{np.mean(values):.3f} ± {np.std(values):.3f}"
        for who in ("model", "specialist")
        if len(values := [errors[who] for errors in found if who in errors])
    )


def _returns(lines: list[dict[str, Any]]) -> str:
    best = []
    for line in lines:
        for rows in line["acting"].values():
            best.append(max(row["return"] for way, row in rows.items() if way not in ("random", "demonstrations")))
    return f"{np.mean(best):,.0f} ± {np.std(best):,.0f}" if best else "–"


if __name__ == "__main__":
    main()
