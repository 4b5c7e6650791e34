"""Our own run folders and checkpoints, read by their layout (training writes them)."""

import re
from pathlib import Path
from typing import Any

from mmssl.config import from_dict, read_yaml
from mmssl.encoder import load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.base import Method, MethodConfig, create_method
from mmssl.weights.files import read_state

WEIGHTS = "model.safetensors"


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def is_checkpoint(folder: Path) -> bool:
    """Whether this is one checkpoint inside a run: runs/NAME/checkpoints/step_N."""
    return (folder / WEIGHTS).is_file() and folder.parent.name == "checkpoints" and is_run(folder.parent.parent)


def newest_checkpoint(run: Path) -> Path:
    """Folder of the checkpoint with the most steps; an `MmsslError` where the run has none."""
    steps = {}
    for weights in run.glob(f"checkpoints/step_*/{WEIGHTS}"):
        if match := re.fullmatch(r"step_(\d+)", weights.parent.name):
            steps[int(match[1])] = weights.parent
    if not steps:
        raise MmsslError(f"the run {run} has no checkpoint yet; start it again, the same command goes on with it.")
    return steps[max(steps)]


def read_run_config(run: Path) -> dict[str, Any]:
    """The resolved recipe of a run, as plain values."""
    return read_yaml(run / "config.yaml")


def build_method(checkpoint: Path) -> Method:
    """The method of a checkpoint folder, with its weights, in evaluation mode."""
    run = checkpoint.parent.parent
    settings = read_run_config(run).get("method")
    if settings is None:
        raise MmsslError(f"the run {run} trained no pretraining method (its config.yaml has no 'method').")
    config = from_dict(MethodConfig, settings, f"{run / 'config.yaml'}: method")
    method = create_method(config)
    load_strictly(method, read_state(checkpoint / WEIGHTS)[0], str(checkpoint / WEIGHTS))
    return method.eval()
