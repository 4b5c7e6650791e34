import json
from pathlib import Path

import numpy as np
import pytest
import yaml


def rows(evaluator, target, metric, values, higher_is_better=True, spread=None):
    """Rows of scores.json for pretrained, random and pixels."""
    encoders = ("pretrained", "random", "pixels")
    fixed = {"evaluator": evaluator, "target": target, "metric": metric, "higher_is_better": higher_is_better}
    return [{**fixed, "encoder": e, "value": v, "spread": spread} for e, v in zip(encoders, values, strict=True)]


def write_run(path: Path, *, probe=(0.31, 0.44, 0.56), model=0.006) -> Path:
    """A run folder with every file that a report reads."""
    (path / "figures").mkdir(parents=True)
    config = {"method": {"name": "mae", "size": "tiny", "mask_ratio": 0.75}, "loop": {"steps": 100}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [{"step": s, "loss": 1.0 / s, "lr": 1e-3 * s, "images_per_second": 300.0 + s} for s in range(1, 101)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    errors = {"model": model, "best_interpolation": 0.009, "nearest": 0.012, "linear": 0.009}
    scores = {"rows": rows("ridge", "state", "r2", probe), "reconstruction": errors}
    (path / "scores.json").write_text(json.dumps(scores))
    (path / "timing.json").write_text(json.dumps({"record": 12.0, "pretrain": 200.0}))
    (path / "command.txt").write_text("mmssl demo --budget 6m\n")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    np.savez(path / "figures/reconstruction.npz", original=frames, masked=frames // 2, reconstructed=255 - frames)
    tokens = rng.normal(size=(4, 4, 4, 8)).astype(np.float32)
    np.savez(path / "figures/features.npz", image=frames, tokens=tokens, random=tokens[::-1])
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "demo")


@pytest.fixture
def make_run():
    return write_run
