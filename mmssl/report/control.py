"""The page of a control run: learning curves over seeds, what the policy does, scores with intervals, and settings."""

import shlex
import statistics as plain
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from mmssl import __version__
from mmssl.report.curves import SMALL, Bundle, bundles_svg
from mmssl.report.page import environment, write_page
from mmssl.report.seeds import ControlRun, Film, SeedFiles, read_control_run
from mmssl.report.words import Headline
from mmssl.statistics import Interval, bootstrap, too_few

TAIL = 10
"""Evaluations whose mean is shown beside the last one, as TD3's authors do."""
_FILM_BYTES = 6_000_000  # of moving pictures in one page


def write_report(run: Path | str) -> Path:
    """Write `<run>/report.html` from what the folders of the seeds hold, and return its path; a run that still goes on
    is shown as far as it is.

    Raises an `MmsslError` where the folder is no run of `mmssl rl` or a file is damaged.
    """
    files = read_control_run(run)
    until = common_end(files)
    page = (
        environment()
        .get_template("control.html.jinja")
        .render(
            run=files,
            eyebrow=_eyebrow(files),
            headline=headline(files),
            progress=_progress(files),
            tiles=_tiles(files, until),
            learning=_learning(files),
            films=_films(files),
            scores=_scores(files, until),
            training=_training(files),
            again=_again(files),
            config=yaml.safe_dump(files.config, sort_keys=False, width=90) if files.config else "",
            version=__version__,
        )
    )
    return write_page(files.path / "report.html", page)


def common_end(run: ControlRun) -> int | None:
    """The last step at which every seed that was judged at all has been judged; None before the first."""
    return min((seed.evaluated()[0][-1] for seed in run.judged), default=None)


def final_scores(seed: SeedFiles, until: int, key: str = "returns") -> dict[str, float]:
    """Of the evaluations up to a step: the `last` one, the mean of the last TAIL (`tail`), and the `best`."""
    values = [value for step, value in zip(*seed.evaluated(key), strict=True) if step <= until]
    return {"last": values[-1], "tail": float(np.mean(values[-TAIL:])), "best": max(values), "count": len(values)}


def over_seeds(run: ControlRun, until: int, which: str = "last", key: str = "returns") -> Interval:
    """Interquartile mean over seeds of a final score, with its interval."""
    return bootstrap([final_scores(seed, until, key)[which] for seed in run.judged])


def amount(value: float) -> str:
    """A return as a person reads it."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def between(interval: Interval, percent: bool = False) -> str:
    """An interval as "4,542 to 6,355" or "40 to 80%"; "" where there is none."""
    if not np.isfinite(interval.low):
        return ""
    if percent:
        return f"{100 * interval.low:.0f} to {100 * interval.high:.0f}%"
    return f"{amount(interval.low)} to {amount(interval.high)}"


def headline(run: ControlRun) -> Headline:
    """The return, or the success rate where the task has one, at the last evaluation that all seeds have had."""
    until = common_end(run)
    if until is None:
        return Headline(run.name, "No evaluation has been made yet.", "even")
    final = over_seeds(run, until)
    title = f"Return {amount(final.value)} after {until:,} steps"
    sentence = f"{run.algorithm} on {run.task}: {_of_seeds(run)} of the return in {_episodes(run)}"
    sentence += f" is {amount(final.value)}{_within(final)}, from {amount(_first(run))} at the first evaluation."
    if run.has_success:
        rate = over_seeds(run, until, key="successes")
        title = f"Success in {100 * rate.value:.0f}% of episodes after {until:,} steps"
        shown = f"{100 * rate.value:.0f}%{_within(rate, True)}"
        sentence += f" {_of_seeds(run).capitalize()} of the success rate is {shown}."
    return Headline(title, sentence, "even")


def _within(interval: Interval, percent: bool = False) -> str:
    shown = between(interval, percent)
    return f" ({interval.confidence:.0%} interval {shown})" if shown else ""


def _of_seeds(run: ControlRun) -> str:
    n = len(run.judged)
    return "the mean" if n == 1 else f"the interquartile mean over {n} seeds"


def _episodes(run: ControlRun) -> str:
    counts = {len(line["returns"]) for seed in run.judged for line in seed.evaluations}
    return f"{counts.pop()} episodes without noise" if len(counts) == 1 else "episodes without noise"


def _first(run: ControlRun) -> float:
    return plain.fmean(seed.evaluated()[1][0] for seed in run.judged)


def _eyebrow(run: ControlRun) -> list[str]:
    seeds = ", ".join(str(seed.seed) for seed in run.seeds)
    parts = (run.algorithm, run.task, f"seed{'s' if len(run.seeds) > 1 else ''} {seeds}")
    return [part for part in parts if part]


def _progress(run: ControlRun) -> str:
    """Sentences about what is not there yet, or went wrong; "" where all is well."""
    said = []
    if run.unfinished:
        seeds = ", ".join(f"seed {seed.seed} at {seed.steps:,}" for seed in run.unfinished)
        said.append(f"Not finished: of {run.total:,} environment steps {seeds}.")
    if run.missing:
        said.append(f"Not begun: seed {', '.join(map(str, run.missing))}.")
    waiting = [str(seed.seed) for seed in run.seeds if seed not in run.judged]
    if waiting and run.judged:
        said.append(f"Seed {', '.join(waiting)} has not been evaluated yet and counts nowhere.")
    ends = {seed.evaluated()[0][-1] for seed in run.judged}
    if len(ends) > 1:
        said.append(f"What is said of all seeds is of step {min(ends):,}, the last at which all were evaluated.")
    broken = {seed.seed: seed.broken for seed in run.seeds if seed.broken}
    if broken:
        times = ", ".join(f"{count} times in seed {seed}" for seed, count in broken.items())
        said.append(f"The simulation broke down {times}; such episodes were cut (truncated) and training went on.")
    return " ".join(said)


def _tiles(run: ControlRun, until: int | None) -> list[tuple[str, str, str]]:
    """The few numbers at the top: label, value, note."""
    tiles = []
    if until is not None:
        if run.has_success:
            rate = over_seeds(run, until, key="successes")
            tiles.append(("success, last evaluation", f"{100 * rate.value:.0f}%", _interval_note(rate, True)))
        last, tail = over_seeds(run, until), over_seeds(run, until, "tail")
        tiles.append(("return, last evaluation", amount(last.value), _interval_note(last)))
        count = min(TAIL, min(int(final_scores(seed, until)["count"]) for seed in run.judged))
        if count > 1:
            tiles.append((f"return, mean of last {count}", amount(tail.value), _interval_note(tail)))
    least, most = min(seed.steps for seed in run.seeds), max(seed.steps for seed in run.seeds)
    done = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    tiles.append(("environment steps", done, f"of {run.total:,} a seed" if run.total else "a seed"))
    speeds = [value for seed in run.seeds for value in seed.series("steps_per_second")[1]]
    if speeds:
        tiles.append(("steps per second", amount(plain.median(speeds)), "of one seed, median while training"))
    return tiles


def _interval_note(interval: Interval, percent: bool = False) -> str:
    shown = between(interval, percent)
    few = "one seed" if interval.seeds == 1 else f"{interval.seeds} seeds"
    return f"{interval.confidence:.0%} interval {shown}" if shown else f"{few}, no interval"


def _learning(run: ControlRun) -> list[Markup]:
    drawings = []
    if run.judged:
        bundle = Bundle(run.name, tuple(seed.evaluated() for seed in run.judged))
        drawings.append(Markup(bundles_svg([bundle], title="Return of evaluations")))
    if run.judged and run.has_success:
        bundle = Bundle(run.name, tuple(seed.evaluated("successes") for seed in run.judged))
        drawings.append(Markup(bundles_svg([bundle], title="Success rate of evaluations")))
    return drawings


def _training(run: ControlRun) -> list[Markup]:
    """Return of training episodes, what the algorithm logged, and speed: small drawings."""
    titles = {"return": "Return of training episodes", **{name: name.replace("_", " ") for name in run.scalars}}
    titles["steps_per_second"] = "Environment steps per second"
    drawings = []
    for key, title in titles.items():
        series = tuple(s for seed in run.seeds if (s := seed.series(key))[0])
        if series:
            bundle = Bundle(run.name, series).smoothed()
            drawings.append(Markup(bundles_svg([bundle], title=title, interval=False, size=SMALL)))
    return drawings


def _films(run: ControlRun) -> list[dict[str, Any]]:
    """Films of the seeds as far as a page may hold them: pictures and a caption."""
    left, shown = _FILM_BYTES, []  # at most three, side by side
    for seed in run.seeds:
        film = seed.film
        moving = film.moving or film.still
        if moving is None:
            continue
        left -= moving.stat().st_size
        if (left >= 0 and len(shown) < 3) or not shown:
            shown.append({"moving": moving, "still": film.still or moving, "caption": _caption(seed, film)})
    return shown


def _caption(seed: SeedFiles, film: Film) -> str:
    facts = [f"seed {seed.seed}"]
    if "return" in film.about:
        facts.append(f"return {amount(film.about['return'])}")
    if "length" in film.about:
        facts.append(f"{film.about['length']:,} steps")
    if film.about.get("success") is not None:
        facts.append("success" if film.about["success"] else "no success")
    if film.movie:
        facts.append(str(film.movie.relative_to(seed.path.parent)))
    return " · ".join(facts)


def _scores(run: ControlRun, until: int | None) -> dict[str, Any] | None:
    """The table of final scores: a row a seed, and one over all of them."""
    if until is None:
        return None
    keys = [("returns", False), *([("successes", True)] if run.has_success else [])]
    shown = {False: amount, True: lambda v: f"{100 * v:.0f}%"}
    rows = []
    for seed in run.judged:
        scores = {key: final_scores(seed, until, key) for key, _ in keys}
        cells = [shown[percent](scores[key][which]) for key, percent in keys for which in ("last", "tail", "best")]
        rows.append((f"seed {seed.seed}", cells))
    if len(run.judged) > 1:
        everything = [(over_seeds(run, until, w, key), p) for key, p in keys for w in ("last", "tail", "best")]
        rows.append(("interquartile mean", [shown[p](i.value) for i, p in everything]))
        if np.isfinite(everything[0][0].low):
            rows.append((f"{everything[0][0].confidence:.0%} interval", [between(i, p) for i, p in everything]))
    count = min(int(final_scores(seed, until)["count"]) for seed in run.judged)
    return {
        "groups": ["return", "success"][: len(keys)],
        "rows": rows,
        "tail": min(TAIL, count),
        "step": until,
        "episodes": _episodes(run),
        "note": _too_few_note(len(run.judged)),
    }


def _too_few_note(seeds: int) -> str:
    note = too_few(seeds)
    if note:
        return f"{note[0].upper()}{note[1:]}."
    if seeds < 5:
        start = f"Intervals of {seeds} seeds are too narrow: they miss the truth far more often than 5 times in 100."
        return f"{start} And of 3 seeds the interquartile mean is the mean." if seeds == 3 else start
    return ""


def _again(run: ControlRun) -> str:
    """What to type: to go on, and to see the policy."""
    command = run.path / "command.txt"
    first = (
        command.read_text().strip() if command.is_file() else f"mmssl rl {run.path / 'config.yaml'} --run {run.path}"
    )
    return f"{first}\nmmssl rl play {shlex.quote(str(run.path))}"
