"""What `returns.py` found, as a table: final evaluations of both sides, seed by seed, and the published figure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SIDES = {"ours": "ours", "sb3": "Stable-Baselines3"}
FEWEST = 3  # seeds of which an interval is given
HEAD = """| experiment | side | seeds, last evaluation | mean [95 % interval] | episodes of training |
|---|---|---|---|---|"""


def table(results: Path, experiments: Mapping[str, Any]) -> str:
    """Markdown: a row for each side of each experiment, and a line that says whether ours is worse."""
    rows, verdicts = [HEAD], []
    for name, experiment in experiments.items():
        found = {side: _scores(results, name, side, experiment.steps) for side in SIDES}
        rows += [_row(name, side, seeds) for side, seeds in found.items() if seeds]
        if any(found.values()):
            mean, low, high, source = experiment.published
            rows.append(f"| {name} | published | | {mean:,} [{low:,} to {high:,}] ({source}) | |")
        if all(found.values()):
            verdicts.append(_verdict(name, found, experiment))
    return "\n".join([*rows, "", *verdicts])


def read_results(file: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """(experiment, side, seed) -> its line."""
    lines = map(json.loads, file.read_text().splitlines() if file.is_file() else [])
    return {(line["experiment"], line["side"], line["seed"]): line for line in lines}


def _scores(file: Path, name: str, side: str, steps: int) -> dict[int, dict[str, float]]:
    """Seed -> mean return of the last evaluation, and of the training episodes since the one before."""
    found = {}
    for (experiment, whose, seed), line in sorted(read_results(file).items()):
        if (experiment, whose) == (name, side):
            last, score = line["curve"][-1]
            assert last >= steps, f"{name} of {side}, seed {seed}, ended at step {last}"
            training = float("nan") if line["training"] is None else line["training"]
            found[seed] = {"evaluation": score, "training": training}
    return found


def _row(name: str, side: str, seeds: Mapping[int, Mapping[str, float]]) -> str:
    scores = _column(seeds, "evaluation")
    each = ", ".join(f"{score:,.0f}" for score in scores)
    training = _column(seeds, "training").mean()
    mean = f"{scores.mean():,.0f}"
    if len(scores) >= FEWEST:
        low, high = np.percentile(_means(scores), [2.5, 97.5])
        mean += f" [{low:,.0f}, {high:,.0f}]"
    return f"| {name} | {SIDES[side]} | {each} | {mean} | {training:,.0f} |"


def _column(seeds: Mapping[int, Mapping[str, float]], key: str) -> np.ndarray:
    return np.array([score[key] for score in seeds.values()])


def _means(scores: np.ndarray, resamples: int = 10_000) -> np.ndarray:
    """Means of seeds drawn anew, with replacement."""
    rng = np.random.default_rng(0)
    return scores[rng.integers(len(scores), size=(resamples, len(scores)))].mean(1)


def _verdict(name: str, found: Mapping[str, Mapping[int, Mapping[str, float]]], experiment: Any) -> str:
    """Whether ours lies below the other side by more than the intervals of the means allow, and below the published."""
    ours, theirs = (_column(found[side], "evaluation") for side in SIDES)
    if min(len(ours), len(theirs)) < FEWEST:
        return f"- {name}: {len(ours)} and {len(theirs)} seeds, too few to compare."
    low, high = np.percentile(_means(ours) - _means(theirs), [2.5, 97.5])
    against = "worse" if high < 0 else "better" if low > 0 else "no different"
    _, lowest, highest, _ = experiment.published
    mean = _column(found["ours"], experiment.published_as).mean()
    place = "below" if mean < lowest else "above" if mean > highest else "within"
    gate = "" if experiment.gated else " (reported, not gated)"
    return (
        f"- {name}{gate}: ours less Stable-Baselines3's {ours.mean() - theirs.mean():+,.0f} "
        f"[{low:+,.0f}, {high:+,.0f}], {against}; the mean ({experiment.published_as}) is {place} "
        "the range of the published seeds."
    )
