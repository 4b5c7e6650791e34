"""Several control runs beside each other: learning curves, final scores, and how often one beats another."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mmssl import __version__
from mmssl.errors import MmsslError
from mmssl.report.control import TAIL, amount, between, common_end, final_scores, headline, over_seeds
from mmssl.report.curves import Bundle, bundles_svg
from mmssl.report.page import by_name, config_differences, environment, write_page
from mmssl.report.seeds import ControlRun, read_control_run
from mmssl.statistics import LEAST, improvement

_NO_SEEDS = ("seed", "seeds", "jobs", "threads", "workers", "device")  # settings that make no other experiment


def write_control_comparison(runs: tuple[Path, ...] | list[Path], out: Path | None = None) -> Path:
    """Write a page that compares control runs task by task, and return its path.

    Raises an `MmsslError` where a run has not been evaluated yet.
    """
    files = by_name([read_control_run(run) for run in runs])
    for name, run in files.items():
        if not run.judged:
            raise MmsslError(f"{name} has not been evaluated yet; leave it out, or wait for its first evaluation.")
    tasks = dict.fromkeys(run.task for run in files.values())
    configs = {name: {k: v for k, v in run.config.items() if k not in _NO_SEEDS} for name, run in files.items()}
    page = (
        environment()
        .get_template("control_comparison.html.jinja")
        .render(
            names=list(files),
            headlines={name: headline(run) for name, run in files.items()},
            tasks=[_task(task, {n: r for n, r in files.items() if r.task == task}) for task in tasks],
            tail=TAIL,
            differences=config_differences(configs),
            version=__version__,
        )
    )
    return write_page(out or Path(runs[0]).resolve().parent / "comparison.html", page)


def _task(task: str, runs: dict[str, ControlRun]) -> dict[str, Any]:
    """What the page shows of the runs on one task."""
    key = "successes" if all(run.has_success for run in runs.values()) else "returns"
    bundles = [Bundle(name, tuple(seed.evaluated(key) for seed in run.judged)) for name, run in runs.items()]
    title = {"returns": "Return of evaluations", "successes": "Success rate of evaluations"}[key]
    return {
        "name": task,
        "curve": Markup(bundles_svg(bundles, title=title)),
        "rows": [_row(name, run) for name, run in runs.items()],
        "pairs": [_pair(a, b, runs[a], runs[b], key) for a, b in combinations(runs, 2)],
        "few": [name for name, run in runs.items() if len(run.judged) < LEAST],
    }


def _row(name: str, run: ControlRun) -> list[str]:
    """Name, seeds, step, and the scores at the last step that all its seeds have reached."""
    until = common_end(run)
    last, tail = over_seeds(run, until), over_seeds(run, until, "tail")
    rate = over_seeds(run, until, key="successes") if run.has_success else None
    success = f"{100 * rate.value:.0f}%" if rate else "–"
    shown = [amount(last.value), between(last) or "none", amount(tail.value), success]
    return [name, str(len(run.judged)), f"{until:,}", *shown]


def _pair(a: str, b: str, x: ControlRun, y: ControlRun, key: str) -> dict[str, Any]:
    """How often a seed of a beats a seed of b, at the last step that both have reached."""
    until = min(common_end(x), common_end(y))
    scores = [[final_scores(seed, until, key)["last"] for seed in run.judged] for run in (x, y)]
    found = improvement(*scores)
    known = bool(np.isfinite(found.low))
    verdict = "not told apart"
    if not known:
        verdict = found.note
    elif found.low > 0.5:
        verdict = f"{a} is better"
    elif found.high < 0.5:
        verdict = f"{b} is better"
    interval = f"{found.low:.2f} to {found.high:.2f}" if known else "none"
    return {"cells": [f"{a} over {b}", f"{until:,}", f"{found.value:.2f}", interval], "verdict": verdict}
