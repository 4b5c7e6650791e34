"""Does a trajectory model's state encoder speed up TD3? Raw states, a frozen encoder, a fine-tuned one; seed by seed.

    python benchmarks/mtm_rl.py --data DIR/mmssl/gym/HalfCheetah-v5-medium-replay-v0 --runs runs/mtm-rl
    python benchmarks/mtm_rl.py --data ... --runs ... --where offline --sides raw frozen --seeds 0
    python benchmarks/mtm_rl.py --table

The model is pretrained once on the recordings; then `td3_mtm` learns with the same networks and settings on each side,
offline from the same recordings, as the authors do, or online in the environment, which they do not. Data, networks,
batches and the number of updates are smaller than theirs (ExORL's `proto` data of the walker, 1,024 x 1,024, 1,024 and
100,000). A job is one setting, side and seed, and uses one thread; several processes of this script share the jobs.
What is done is a line of `mtm_rl_results.jsonl`, beside this file, and is not run again; a job that was stopped goes on
from its checkpoint.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from mmssl import cli
from mmssl.config import from_dict
from mmssl.control.loop import train
from mmssl.control.rl_config import RLConfig
from mmssl.errors import MmsslError
from mmssl.statistics import bootstrap
from mmssl.training.checkpoint import RunFolder
from mmssl.training.lock import folder_lock

RESULTS = Path(__file__).with_name("mtm_rl_results.jsonl")
TASK = "gym/HalfCheetah-v5"
WHERE = {"offline": (20_000, 2000), "online": (30_000, 2500)}  # updates or environment steps, and between evaluations
SIDES = ("raw", "frozen", "frozen+raw", "fine-tuned")
MODEL = {
    "method": {
        "name": "mtm", "widths": {"state": 17, "action": 6, "return": 1}, "length": 4, "dim": 64, "depth": 2,
        "heads": 4, "decoder_depth": 1,
    },
    "data": {"split": "train", "target": "none"},
    "optim": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.005, "warmup_steps": 100},
    "loop": {"steps": 3000, "batch_size": 128, "log_every": 100, "checkpoint_every": 1000},
}  # fmt: skip
AGENT = {"name": "td3_mtm", "hidden": (256, 256), "batch_size": 256, "lr": 3e-4, "random_steps": 5000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="recordings of HalfCheetah-v5: a folder or an id")
    parser.add_argument("--runs", type=Path, default=Path("runs/mtm-rl"))
    parser.add_argument("--where", nargs="+", choices=WHERE, default=list(WHERE))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="write the results as a table")
    args = parser.parse_args()
    if args.table:
        print(table(read_results(args.results)))
        return
    if args.data is None:
        parser.error("--data is needed: the recordings")
    torch.set_num_threads(1)
    if set(args.sides) != {"raw"}:
        pretrain(args.runs / "model", args.data)
    for where in args.where:
        for seed in args.seeds:
            for side in args.sides:
                _job(args, where, side, seed)


def pretrain(run: Path, data: str) -> None:
    """Pretrain the trajectory model, or go on, unless it is done."""
    run.parent.mkdir(parents=True, exist_ok=True)
    recipe = run.with_name("model.yaml")
    recipe.write_text("# measured: by benchmarks/mtm_rl.py\n" + yaml.safe_dump(MODEL))
    if not (run / "report.html").is_file():
        cli.main(["pretrain", str(recipe), "--data", data, "--run", str(run)])


def config_of(where: str, side: str, seed: int, data: str, model: Path) -> RLConfig:
    """The recipe of one job."""
    steps, every = WHERE[where]
    given: dict[str, Any] = {"algorithm": {**AGENT, "end_to_end": side == "fine-tuned"}, "task": TASK, "seed": seed}
    given |= {"steps": steps, "eval_every": every, "checkpoint_every": steps // 5, "eval_episodes": 10}
    given |= {"offline": data} if where == "offline" else {}
    given |= {} if side == "raw" else {"encoder": str(model), "keep_obs": side == "frozen+raw"}
    return from_dict(RLConfig, given)


def _job(args: argparse.Namespace, where: str, side: str, seed: int) -> None:
    """Run one job, unless it is done or another process is at it."""
    folder = args.runs / where / f"{side}-{seed}"
    try:
        with folder_lock(folder):
            if (where, side, seed) in read_results(args.results):
                return
            print(f"{where}, {side}, seed {seed}", flush=True)
            files = RunFolder(folder)
            files.start()
            result = train(config_of(where, side, seed, args.data, args.runs / "model"), files)
            if not result.finished:
                raise SystemExit(f"stopped at step {result.steps} of {result.total}.")
            line = {"where": where, "side": side, "seed": seed, "data": Path(args.data).name}
            line |= {"hours": round(result.seconds / 3600, 2)}
            line |= {"curve": [[e["step"], round(float(np.mean(e["returns"])), 1)] for e in result.evaluations]}
            with open(args.results, "a") as file:
                file.write(json.dumps(line) + "\n")
    except MmsslError as error:
        print(f"{where}, {side}, seed {seed}: {error}", flush=True)


def read_results(file: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """(where, side, seed) -> its line."""
    lines = map(json.loads, file.read_text().splitlines() if file.is_file() else [])
    return {(line["where"], line["side"], line["seed"]): line for line in lines}


def table(results: dict[tuple[str, str, int], dict[str, Any]]) -> str:
    """Markdown: for each setting and side the last evaluation, the mean of all of them, and the time."""
    head = "| where | side | seeds, last evaluation | mean [95 %] | mean over the curve | hours a seed |"
    rows = [head, "|---|---|---|---|---|---|"]
    for where in WHERE:
        for side in SIDES:
            lines = [line for (w, s, _), line in sorted(results.items()) if (w, s) == (where, side)]
            if not lines:
                continue
            last = [line["curve"][-1][1] for line in lines]
            area = [float(np.mean([score for _, score in line["curve"][1:]])) for line in lines]
            mean = f"{np.mean(last):,.0f}"
            if len(last) > 2:
                found = bootstrap(last, "mean")
                mean += f" [{found.low:,.0f}, {found.high:,.0f}]"
            seeds, hours = ", ".join(f"{score:,.0f}" for score in last), np.mean([line["hours"] for line in lines])
            rows.append(f"| {where} | {side} | {seeds} | {mean} | {np.mean(area):,.0f} | {hours:.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
