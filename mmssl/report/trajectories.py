"""What a masked trajectory model is worth, from `trajectories.json` and `figures/trajectories.npz` of a run.

`held_out`: question -> `errors` of the model, its specialist and simple guesses. `acting`: task -> policy -> episodes.
The arrays: `<number>/<mask>/<modality>`, with the mask `truth` for what was there.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mmssl.errors import MmsslError
from mmssl.report.figures import THEMED, Palette, themed_svg
from mmssl.report.words import Headline

FILE = "trajectories.json"
ARRAYS = Path("figures") / "trajectories.npz"
QUESTIONS = {
    "bc": ("Policy", "the action from what was observed"),
    "rcbc": ("Policy for a return", "the action, with the returns known too"),
    "forward_dynamics": ("Model of the world", "the next observation from those before it and the actions"),
    "inverse_dynamics": ("Inverse model", "the action from what was observed before and after it"),
}
ANSWERS = {"model": "this model", "specialist": "specialist", "copy": "as a step before", "mean": "the mean"}
_LINES = {
    "bc": "policy", "inverse_dynamics": "inverse model", "forward_dynamics": "next step", "open_loop": "open loop",
    "waypoints": "way-points",
}  # fmt: skip
_SHOWN = 3  # numbers of a modality that are drawn


@dataclass(frozen=True)
class Judged:
    """What stands in the files; `filled` maps an episode's number to its arrays, `<mask>/<modality>` -> (S, D)."""

    folder: Path
    found: dict[str, Any]
    filled: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)


def read_trajectories(run: Path) -> Judged | None:
    """What a run was judged as a trajectory model; None where it was not. An `MmsslError` names a damaged file."""
    if not (run / FILE).is_file():
        return None
    filled: dict[int, dict[str, np.ndarray]] = {}
    try:
        found = json.loads((run / FILE).read_text())
        if not {"held_out", "acting", "filled"} <= set(found):
            raise ValueError("it lacks held_out, acting or filled")
        if (run / ARRAYS).is_file():
            with np.load(run / ARRAYS, allow_pickle=False) as arrays:
                for key in arrays.files:
                    number, _, name = key.partition("/")
                    filled.setdefault(int(number), {})[name] = arrays[key]
    except Exception as error:  # zipfile, zlib, json and numpy each raise their own on a cut file
        raise MmsslError(
            f"{run / FILE} or {ARRAYS} cannot be read ({error}); delete both and run `mmssl trajectories` again."
        ) from None
    return Judged(run, found, filled)


def trajectory_parts(judged: Judged | None) -> dict[str, Any] | None:
    """What the template shows."""
    if judged is None:
        return None
    film = judged.found.get("film")
    moving, still = (judged.folder / "figures" / f"policy.{kind}" for kind in ("webp", "png"))
    return {
        "questions": _questions(judged.found["held_out"]),
        "steps": judged.found.get("specialist_steps"),
        "tasks": [(task, _policies(rows)) for task, rows in judged.found["acting"].items()],
        "film": {"moving": moving, "still": still, "caption": _caption(film)} if film and moving.is_file() else None,
        "drawings": _drawings(judged),
    }


def trajectory_headline(judged: Judged) -> Headline:
    """What it is worth as a policy, in the best of its ways to act, else on held-out windows."""
    errors = judged.found["held_out"]["bc"]["errors"]
    sentence = f"On held-out windows the error of its actions is {errors['model']:.3g} of their variance"
    sentence += f", a specialist's {errors['specialist']:.3g}." if "specialist" in errors else "."
    best = [_best_way(rows) for rows in judged.found["acting"].values()]
    for key, form in (("success", "{:.0%} success"), ("score", "Normalised score {:.0f}")):
        if best and all(row[key] is not None for _, row in best):
            mean, chance = (
                float(np.mean([row[key] for row in rows]))
                for rows in ([row for _, row in best], [rows["random"] for rows in judged.found["acting"].values()])
            )
            where = f"{len(best)} tasks" if len(best) > 1 else next(iter(judged.found["acting"]))
            sentence = f"In {where}, on new starts, random actions get {form.format(chance).lower()}. {sentence}"
            return Headline(f"{form.format(mean)} by mask alone", sentence, "good" if mean > chance else "bad")
    tone = "good" if errors["model"] < min(errors["mean"], errors.get("copy", np.inf)) else "even"
    return Headline(f"Its actions miss {errors['model']:.0%} of the variance", sentence, tone)


def _best_way(rows: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The way to act with the most successes, then the largest return."""
    ways = {name: row for name, row in rows.items() if name not in ("random", "demonstrations")}
    return max(ways.items(), key=lambda item: (item[1]["success"] or 0, item[1]["return"]))


def _questions(held_out: dict[str, Any]) -> list[dict[str, Any]]:
    """Bars of each question: who, error, percent of the longest that is shown."""
    shown = []
    for name, row in held_out.items():
        errors = row["errors"]
        longest = max(min(value, 1.2) for value in errors.values()) or 1.0  # far worse guesses leave no room
        bars = [
            (ANSWERS[who], value, 100 * min(value, longest) / longest, who == "model") for who, value in errors.items()
        ]
        title, about = QUESTIONS[name]
        shown.append({"title": title, "about": about, "windows": row["windows"], "bars": bars})
    return shown


def _policies(rows: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Name of a policy, and cells: wanted return, mean return and deviation, normalised score, successes, episodes."""
    table = []
    for name, row in rows.items():
        target = row.get("target_return")
        spread = float(np.std(row["returns"]))
        cells = ["" if target is None else f"{target:.3g}", f"{row['return']:,.1f} ± {spread:,.1f}"]
        cells.append("–" if row["score"] is None else f"{row['score']:.1f}")
        cells.append("–" if row["success"] is None else f"{row['success']:.0%}")
        table.append((_policy_name(name), [*cells, str(len(row["returns"]))]))
    return table


def _policy_name(name: str) -> str:
    how, _, factor = name.partition(" ")
    if how == "rcbc":
        return f"for a return, {float(factor):.0%} of the way to the best"
    return {"bc": "imitating", "random": "random actions", "demonstrations": "the demonstrations"}.get(name, name)


def _caption(film: dict[str, Any]) -> str:
    done = {True: ", done", False: ", not done", None: ""}[film["success"]]
    return f"{film['task']}, {_policy_name(film['way'])}: return {film['return']:,.1f} in {film['length']} steps{done}"


def _drawings(judged: Judged) -> list[tuple[str, list[Markup]]]:
    """Name of an episode, and a drawing of each modality that was filled in."""
    drawings = []
    for number, title in enumerate(judged.found["filled"]):
        arrays, pictures = judged.filled.get(number, {}), []
        for modality in [name.partition("/")[2] for name in arrays if name.startswith("truth/")]:
            if any(f"{mask}/{modality}" in arrays for mask in _LINES):
                label = f"{modality} of {title}, filled in"
                svg = themed_svg(lambda m=modality, a=arrays: draw_modality(a, m, THEMED), label)
                pictures.append(Markup(svg))
        drawings.append((title, pictures))
    return drawings


def draw_modality(arrays: dict[str, np.ndarray], modality: str, palette: Palette):
    """A matplotlib figure with a panel for each of the numbers that vary most: the truth pale and broad, what each mask
    made of it thin; the steps between way-points, hidden there, are shaded."""
    from matplotlib.figure import Figure

    truth = arrays[f"truth/{modality}"]
    dims = np.sort(np.argsort(-truth.std(0), kind="stable")[:_SHOWN])
    masks = [mask for mask in _LINES if f"{mask}/{modality}" in arrays]
    figure = Figure(figsize=(10.4, 1.5 * len(dims) + 0.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(dims), 1, sharex=True))
    for axes, dim in zip(panels, dims, strict=True):
        axes.plot(truth[:, dim], color=palette.muted, alpha=0.35, linewidth=5, solid_capstyle="round", label="truth")
        for mask in masks:
            said, colour = arrays[f"{mask}/{modality}"][:, dim], palette.curves[list(_LINES).index(mask)]
            style = {"marker": ".", "linestyle": "none"} if mask == "waypoints" else {"linewidth": 1.4}
            axes.plot(said, color=colour, label=_LINES[mask], **style)
        if "waypoints" in masks:
            _shade(axes, ~np.isnan(arrays[f"waypoints/{modality}"][:, dim]), palette)
        _style(axes, f"{modality} {dim}", palette)
    panels[0].legend(
        frameon=False, fontsize=8, labelcolor=palette.ink, ncols=5, loc="lower left", bbox_to_anchor=(0.12, 1)
    )
    panels[-1].set_xlabel("step", fontsize=8, color=palette.muted)
    return figure


def _shade(axes, hidden: np.ndarray, palette: Palette) -> None:
    edges = np.flatnonzero(np.diff(np.pad(hidden.astype(int), 1)))
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        axes.axvspan(first - 0.5, end - 0.5, color=palette.line, alpha=0.6, linewidth=0, zorder=0)


def _style(axes, title: str, palette: Palette) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=palette.ink)
    axes.tick_params(colors=palette.muted, labelsize=8, length=0)
    axes.margins(x=0.01)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(palette.line)
