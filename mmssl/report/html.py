"""`report.html`: one self-contained page from the files of a run folder, and a comparison of several runs.

Nothing outside the page is loaded: style, curves (SVG), pictures (PNG in base64) and moving ones (WebP) are inside it.
Who asks the browser for less motion sees still ones. The verb is `mmssl report RUN...`.
"""

import statistics
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import tyro
import yaml
from markupsafe import Markup

from mmssl import __version__
from mmssl.errors import MmsslError
from mmssl.report import control, words
from mmssl.report.acting import acting_parts, read_acting
from mmssl.report.control_comparison import write_control_comparison
from mmssl.report.figures import curves_svg, pca_colours, shrink
from mmssl.report.page import by_name, config_differences, environment, write_page
from mmssl.report.reading import Probe, RunFiles, Score, read_run
from mmssl.report.seeds import is_control_run, read_control_run
from mmssl.report.spectrograms import NAMES, SOUNDS, Spectrograms, legend, player
from mmssl.report.trajectories import read_trajectories, trajectory_headline, trajectory_parts

ENCODER_NAMES = {
    "pretrained": "pretrained",
    "random": "random",
    "pixels": "raw pixels",
    "logmel": "log-mel statistics",
    "spectrogram": "raw spectrogram",
    "copy": "held still",
    "chance": "chance",
}
UNITS = {"images": "images", "clips": "clips", "pairs": "pairs of frames", "sounds": "clips"}
_SOUND_BYTES = 1_500_000  # of sounds in one page


def report(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], *, out: Path | None = None) -> None:
    """Write report.html into each run folder; with several runs also a page that compares them.

    Args:
        runs: Run folders, as `mmssl demo`, `mmssl pretrain` and `mmssl rl` make them.
        out: Where the comparison goes; by default comparison.html beside the first run.
    """
    if not runs:
        raise MmsslError("no run folder was given: type `mmssl report RUN`, with one run folder or more.")
    _all_control(runs)
    for run in runs:
        path = write_report(run)
        said = control.headline(read_control_run(run)) if is_control_run(run) else words.headline(read_run(run))
        print(f"{path}: {said.title}")
    if len(runs) > 1:
        print(write_comparison(runs, out))


def _all_control(runs: tuple[Path, ...] | list[Path]) -> bool:
    """Whether runs are those of `mmssl rl`; an `MmsslError` where some are and some are not."""
    kinds = {is_control_run(run) for run in runs}
    if len(kinds) > 1:
        raise MmsslError("runs of `mmssl rl` are compared with one another; leave the other runs out.")
    return kinds == {True}


def write_report(run: Path | str) -> Path:
    """Write `<run>/report.html` from the files that the run folder holds, and return its path.

    Parts whose files are missing are left out. Raises an `MmsslError` where the folder is no run or a file is damaged.
    """
    if is_control_run(run):
        return control.write_report(run)
    files, acting = read_run(run), acting_parts(read_acting(Path(run)))
    judged = read_trajectories(Path(run))
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            run=files,
            headline=words.headline(files) if judged is None else trajectory_headline(judged),
            acting=acting,
            trajectories=trajectory_parts(judged),
            tiles=([acting["tile"]] if acting else []) + _tiles(files),
            fillings=_fillings(files),
            triples=_triples(files),
            sounds=_sounds(files.spectrograms),
            modalities=files.modalities,
            shown=words.shown(files, baseline="interpolated" in files.pictures.get("reconstruction", {})),
            summary=words.probe_summary(files.fitted),
            fitted=_scores(files.fitted),
            tracking=_scores(files.tracking),
            tracks=_tracks(files),
            features=_feature_pictures(files),
            curves=_curves({files.name: files}),
            stages=_stages(files.timing),
            config=yaml.safe_dump(files.config, sort_keys=False, width=90) if files.config else "",
            command=_command(files),
            version=__version__,
        )
    )
    return write_page(files.path / "report.html", page)


def write_comparison(runs: tuple[Path, ...] | list[Path], out: Path | None = None) -> Path:
    """Write one page that lays several runs beside each other: overlaid curves and a table of every score."""
    if _all_control(runs):
        return write_control_comparison(runs, out)
    files = by_name([read_run(run) for run in runs])
    rows = [
        (
            "masked-patch error / best interpolation",
            [words.error_ratio(f) for f in files.values()],
            False,
        )
    ]
    rows = [row for row in rows if any(value is not None for value in row[1])]
    page = (
        _environment()
        .get_template("comparison.html.jinja")
        .render(
            names=list(files),
            headlines={name: words.headline(f) for name, f in files.items()},
            curves=_curves(files),
            ratios=[(label, values, _best(values, higher)) for label, values, higher in rows],
            probes=_compared_probes(list(files.values())),
            differences=config_differences({name: run.config for name, run in files.items()}),
            version=__version__,
        )
    )
    return write_page(out or Path(runs[0]).resolve().parent / "comparison.html", page)


def _environment() -> jinja2.Environment:
    made = environment()
    made.filters |= {
        "metric": words.metric,
        "score": lambda s: words.score(s.value, s.spread) if isinstance(s, Score) else "–",
        "encoder": lambda name: ENCODER_NAMES.get(name, name),
    }
    return made


def _tiles(run: RunFiles) -> list[tuple[str, str, str]]:
    """The few numbers at the top: label, value, note."""
    tiles = []
    ratio = words.error_ratio(run)
    if ratio is not None:
        tiles.append(
            ("error on masked patches", f"{ratio:.2f}×", f"{words.best_guess(run).removeprefix('the ')} = 1.00")
        )
    for probe in run.probes[:1]:
        if "pretrained" in probe.scores:
            others = [f"{ENCODER_NAMES.get(n, n)} {words.number(s.value)}" for n, s in probe.scores.items()][1:3]
            value = words.number(probe.scores["pretrained"].value)
            tiles.append((f"{probe.name}, {words.metric(probe.metric)}", value, " · ".join(others)))
    steps, losses = run.series("loss")
    if steps:
        tiles.append(
            ("training steps", f"{steps[-1]:,}", f"loss {words.number(losses[0])} → {words.number(losses[-1])}")
        )
    _, speed = run.series("images_per_second")
    if speed:
        rate = statistics.median(speed)
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        tiles.append((f"{UNITS[run.kind]} per second", shown, "median while training"))
    if run.timing:
        tiles.append(("time in all", words.duration(sum(run.timing.values())), " · ".join(run.timing)))
    return tiles


def _fillings(run: RunFiles) -> list[tuple[str, str, list[tuple[str, float, float, bool]]]]:
    """Charts of how well masked patches were filled in: title, note, bars (name, value, percent, own), best first."""
    charts, unit = [], "squared decibels" if run.kind == "sounds" else "pixels in 0..1"
    if run.reconstruction:
        charts.append(("Squared error on masked patches", f"{unit}, shorter is better", run.reconstruction, False))
    if run.explained:
        title = "Explained variance of normalised patches"
        charts.append((title, "each patch without its own mean and contrast, longer is better", run.explained, True))
    if run.norm_pix:
        charts.reverse()  # first what the model was trained for
    filled = []
    for title, note, scores, higher in charts:
        if "model" not in scores:
            continue
        names = scores if not words.interpolations(scores) else [n for n in scores if n != "best_interpolation"]
        longest = max(max(scores.values()), 1e-12)
        ordered = sorted(names, key=scores.get, reverse=higher)
        bars = [(n.replace("_", " "), scores[n], 100 * max(scores[n], 0) / longest, n == "model") for n in ordered]
        filled.append((title, note, bars))
    return filled


def _triples(run: RunFiles) -> list[list[tuple[str, np.ndarray]]]:
    """Rows of named pictures, each (H, W, 3), or (T, H, W, 3) to be animated."""
    pictures = run.pictures.get("reconstruction", {})
    if not {"original", "masked", "reconstructed"} <= set(pictures):
        return []
    original, most = pictures["original"], 8
    if original.ndim == 5 and original.shape[1] == 2:
        pictures, most = _pairs(pictures), 6
    elif original.ndim == 5:
        pictures, most = {key: shrink(clips) for key, clips in pictures.items()}, 4
    return [[(key, images[i]) for key, images in pictures.items()] for i in _spread(len(original), most)]


def _sounds(found: Spectrograms | None, most: int = 6) -> dict[str, Any]:
    """The colour bar and some clips: spectrograms, and players of their sounds as far as a page may hold them."""
    if found is None:
        return {}
    scale, left, clips = found.scale(), _SOUND_BYTES, []
    for i in _spread(len(found), most):
        files = {name: found.sounds[i][name] for name in SOUNDS if name in found.sounds.get(i, {})}
        left -= sum(path.stat().st_size for path in files.values())
        players = [(SOUNDS[name], player(path)) for name, path in files.items()] if left >= 0 else []
        clips.append(([(name, found.picture(name, i, scale)) for name in NAMES], players))
    return {"clips": clips, "legend": legend(scale), "left_out": left < 0}


def _pairs(clips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A past and a future frame (n, 2, H, W, 3) as still pictures side by side."""
    named = {"masked future": "masked", "reconstructed": "reconstructed", "without a model": "interpolated"}
    between = {name: clips[key][:, 1] for name, key in named.items() if key in clips}
    return {"past": clips["original"][:, 0], **between, "future": clips["original"][:, 1]}


def _tracks(run: RunFiles, most: int = 6) -> list[tuple[str, Path, Path]]:
    """Sequence, its moving overlay and its still one; where one is missing the other stands in."""
    names = list(run.tracks)
    chosen = [(name, run.tracks[name]) for name in (names[i] for i in _spread(len(names), most))]
    return [(n, files.get(".webp", files.get(".png")), files.get(".png", files.get(".webp"))) for n, files in chosen]


def _scores(probes: list[Probe]) -> dict[str, Any]:
    """What the page says about some probes: bars, a table and verdicts."""
    return {
        "probes": [(probe, _bars(probe)) for probe in probes],
        "encoders": list(dict.fromkeys(name for probe in probes for name in probe.scores)),
        "verdicts": [v for v in map(words.verdict, probes) if v],
    }


def _spread(total: int, most: int) -> list[int]:
    """At most `most` places of `total`, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(int)).tolist()


def _feature_pictures(run: RunFiles, most: int = 6) -> list[list[tuple[str, np.ndarray]]]:
    pictures = run.pictures.get("features", {})
    if not pictures:
        return []
    first = "spectrogram" if run.kind == "sounds" else "frame"
    columns = {first: pictures["image"], "pretrained": pca_colours(pictures["tokens"])}
    if "random" in pictures:
        columns["random"] = pca_colours(pictures["random"])
    return [[(name, images[i]) for name, images in columns.items()] for i in _spread(len(pictures["image"]), most)]


def _bars(probe: Probe) -> list[dict[str, Any]]:
    """Bars of one probe in percent of the width, with room left of zero where a score is negative."""
    values = [s.value for s in probe.scores.values()]
    # Scores far below zero (an R2 of -3) would leave no room for the others: they are cut at -1 or at half the range.
    high = max([*values, 1.0 if all(0 <= v <= 1 for v in values) else 0.0])
    low = min(0.0, max(min(values), -max(high, 1e-9)))
    span = (high - low) or 1.0
    bars = []
    for name, s in probe.scores.items():
        shown = max(s.value, low)
        left = (min(shown, 0.0) - low) / span
        bars.append({"encoder": name, "score": s, "left": 100 * left, "width": 100 * abs(shown) / span})
    return bars


def _curves(runs: dict[str, RunFiles]) -> list[Markup]:
    parts = [("loss", "Loss", True), ("lr", "Learning rate", False)]
    drawings = []
    for key, title, smoothed in parts:
        series = {name: run.series(key) for name, run in runs.items()}
        series = {name: s for name, s in series.items() if s[0]}
        if series:
            drawings.append(Markup(curves_svg(series, title=title, smoothed=smoothed)))
    return drawings


def _stages(timing: dict[str, float]) -> list[tuple[str, float, float]]:
    total = sum(timing.values()) or 1.0
    return [(stage, seconds, 100 * seconds / total) for stage, seconds in timing.items()]


def _command(run: RunFiles) -> str:
    """What to type to get this run again: the command that made it, or one from its configuration."""
    if run.command:
        return run.command
    return f"mmssl pretrain {run.path / 'config.yaml'} --run {run.path}-again" if run.config else ""


def _best(values: list[float | None], higher_is_better: bool) -> float | None:
    known = [v for v in values if v is not None]
    return (max if higher_is_better else min)(known) if len(set(known)) > 1 else None


def _compared_probes(runs: list[RunFiles]) -> list[dict[str, Any]]:
    """One row a question and encoder: the score of each run, None where the run was not asked."""
    keys = dict.fromkeys((p.name, p.metric, p.higher_is_better) for run in runs for p in run.probes)
    rows = []
    for name, metric, higher in keys:
        asked = [next((p for p in run.probes if (p.name, p.metric) == (name, metric)), None) for run in runs]
        for encoder in dict.fromkeys(e for p in asked if p for e in p.scores):
            scores = [p.scores.get(encoder) if p else None for p in asked]
            best = _best([s.value if s else None for s in scores], higher) if encoder == "pretrained" else None
            rows.append({"name": name, "metric": metric, "encoder": encoder, "scores": scores, "best": best})
    return rows
