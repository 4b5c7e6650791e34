"""Our side in `returns.py`: the library's own training loop."""

import json
from pathlib import Path
from typing import Any

from mmssl.config import from_dict
from mmssl.control.loop import train
from mmssl.control.rl_config import RLConfig
from mmssl.errors import MmsslError
from mmssl.training.checkpoint import RunFolder


def run(experiment: Any, seed: int, folder: Path) -> float:
    """Train, or go on from the newest checkpoint; the seconds that it took, evaluations left out."""
    settings = {"steps": experiment.steps, "eval_every": experiment.every, "checkpoint_every": experiment.steps // 5}
    name = {"name": experiment.algorithm, **experiment.settings}
    config = from_dict(RLConfig, {"algorithm": name, "task": experiment.task, "seed": seed, **settings})
    files = RunFolder(folder)
    files.start()
    result = train(config, files)
    if not result.finished:
        raise MmsslError(f"stopped at step {result.steps} of {result.total}.")
    _add_training(files)
    return result.seconds


def _add_training(files: RunFolder) -> None:
    """Put the returns of training episodes since the evaluation before into each line of evaluations.jsonl."""
    evaluations = [json.loads(line) for line in files.evaluations.read_text().splitlines()]
    records = [json.loads(line) for line in files.metrics.read_text().splitlines()]
    before = 0
    for evaluation in evaluations:
        since = [r for r in records if before < r["step"] <= evaluation["step"] and r["episodes"]]
        evaluation["training"] = [r["return"] for r in since for _ in range(r["episodes"])]
        before = evaluation["step"]
    files.evaluations.write_text("".join(json.dumps(line) + "\n" for line in evaluations))
