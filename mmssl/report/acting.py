"""What a trajectory model did when it acted, from `act.json` and its figures: a table, films, and what it filled in.

`act.json`: `skills` maps a task to the policies `model`, `expert` and `random`, each with `successes` and `lengths` of
its episodes, and to `film`; `filled` has the `errors` of each mask. `figures/filled.npz`: `<task>/<name>`, the names of
`mmssl.demo_filling.fill_episode`.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mmssl.errors import MmsslError
from mmssl.report.figures import THEMED, Palette, themed_svg
from mmssl.report.words import Headline

POLICIES = {"model": "this model", "expert": "its expert", "random": "random"}
_PANELS = (
    ("policy", "action", "Policy: from the states up to now, the action"),
    ("inverse", "action", "Inverse model: from the states, the next one too, the action"),
    ("waypoints", "state", "Way-points: from two states of each stretch, those between"),
    ("dream", "state", "World model: from one state and all actions, every later state"),
)
_SHOWN = {
    "state": ((0, "hand x"), (1, "hand y"), (2, "hand z"), (3, "gripper")),
    "action": ((0, "move x"), (1, "move y"), (2, "move z"), (3, "grip")),
}
"""Dimensions of Meta-World that are drawn, with their names."""


@dataclass(frozen=True)
class Acting:
    """How a trajectory model acted; `folder` is its run folder."""

    folder: Path
    settings: dict[str, Any]
    skills: dict[str, dict[str, Any]]
    errors: dict[str, float]
    filled: dict[str, dict[str, np.ndarray]]

    def done(self, policy: str) -> list[bool]:
        """Whether each episode of a policy came to success, over all skills."""
        return [success for found in self.skills.values() for success in found[policy]["successes"]]


def read_acting(run: Path) -> Acting | None:
    """What stands in a trajectory model's folder, or in `trajectories/` of a demo's; None where nothing does."""
    folder = next((f for f in (run, run / "trajectories") if (f / "act.json").is_file()), None)
    if folder is None:
        return None
    try:
        found = json.loads((folder / "act.json").read_text())
        filled: dict[str, dict[str, np.ndarray]] = {}
        if (folder / "figures" / "filled.npz").is_file():
            with np.load(folder / "figures" / "filled.npz") as arrays:
                for key in arrays.files:
                    task, _, name = key.rpartition("/")
                    filled.setdefault(task, {})[name] = arrays[key]
        return Acting(folder, found["settings"], found["skills"], found["filled"]["errors"], filled)
    except (ValueError, KeyError, OSError) as error:
        raise MmsslError(
            f"{folder / 'act.json'} or its figures cannot be read ({error}); delete it and run again."
        ) from None


def wilson(done: int, tries: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927), which needs no large numbers and stays in [0, 1]."""
    if tries == 0:
        return 0.0, 1.0
    share, scale = done / tries, 1 + z * z / tries
    middle = (share + z * z / (2 * tries)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / tries + z * z / (4 * tries * tries))
    return max(0.0, middle - half), min(1.0, middle + half)


def share(done: list[bool]) -> str:
    """ "83% (64 to 93)": the share of successes and its interval."""
    low, high = wilson(sum(done), len(done))
    return f"{_percent(done)} ({100 * low:.0f} to {100 * high:.0f})"


def acting_headline(acting: Acting) -> Headline:
    """One sentence about all skills; the tone says whether the interval lies above the random policy's."""
    own, expert, chance = (acting.done(name) for name in POLICIES)
    better = wilson(sum(own), len(own))[0] > wilson(sum(chance), len(chance))[1]
    title = f"{_percent(own)} success on new starts, by mask alone"
    sentence = (
        f"One small model of states and actions does {len(acting.skills)} tasks that experts showed it. From starts "
        f"that it never saw it comes to success in {share(own)} of {len(own)} episodes, the scripted expert in "
        f"{share(expert)}, a random policy in {share(chance)}."
    )
    return Headline(title, sentence, "good" if better else "bad")


def acting_parts(acting: Acting | None) -> dict[str, Any] | None:
    """What the template shows."""
    if acting is None:
        return None
    own, expert, chance = (acting.done(name) for name in POLICIES)
    return {
        "headline": acting_headline(acting),
        "bars": [(POLICIES[n], n, sum(acting.done(n)) / len(acting.done(n))) for n in POLICIES],
        "rows": _rows(acting),
        "films": _films(acting),
        "fillings": _drawings(acting),
        "errors": acting.errors,
        "horizon": acting.settings["horizon"],
        "tile": ("success by mask alone", _percent(own), f"expert {_percent(expert)} · random {_percent(chance)}"),
    }


def _percent(done: list[bool]) -> str:
    return f"{sum(done) / len(done):.0%}"


def _rows(acting: Acting) -> list[tuple[str, list[str]]]:
    """Task, shares of the policies, and the steps that the model and the expert needed where they succeeded."""
    rows = []
    for task, found in acting.skills.items():
        cells = [share(found[name]["successes"]) for name in POLICIES]
        rows.append((task.rpartition("/")[2], cells + [_steps(found[name]) for name in ("model", "expert")]))
    cells = [share(acting.done(name)) for name in POLICIES]
    return [*rows, ("all of them", [*cells, "", ""])]


def _steps(found: dict[str, list]) -> str:
    lengths = [n for n, done in zip(found["lengths"], found["successes"], strict=True) if done]
    return f"{np.median(lengths):.0f}" if lengths else "–"


def _films(acting: Acting) -> list[dict[str, Any]]:
    """One a task: the moving picture, a still one and a caption."""
    films = []
    for task, found in acting.skills.items():
        film = found.get("film")
        if film and (acting.folder / "figures" / film["moving"]).is_file():
            said = [f"{POLICIES[n]} {_ending(film[n])}" for n in ("model", "expert")]
            paths = {k: acting.folder / "figures" / film[k] for k in ("moving", "still")}
            films.append({**paths, "caption": f"{task.rpartition('/')[2]}: {', '.join(said)}"})
    return films


def _ending(film: dict[str, Any]) -> str:
    return f"done in {film['length']} steps" if film["success"] else f"not done in {film['length']} steps"


def _drawings(acting: Acting, most: int = 2) -> list[tuple[str, Markup]]:
    """Held-out episodes of some tasks, filled in under each mask."""
    tasks = list(acting.filled)
    places = np.unique(np.linspace(0, len(tasks) - 1, min(most, len(tasks))).round().astype(int))
    drawings = []
    for task in (tasks[i] for i in places):
        svg = themed_svg(lambda chosen=task: draw_filled(acting.filled[chosen], THEMED), f"{task} filled in")
        drawings.append((task.rpartition("/")[2], Markup(svg)))
    return drawings


def draw_filled(filled: dict[str, np.ndarray], palette: Palette):
    """A matplotlib figure: a panel a mask, the truth as pale broad lines and what was filled in as thin ones on it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 5.6), layout="constrained")
    for axes, (name, truth, title) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for i, (dim, label) in enumerate(_SHOWN[truth]):
            if dim < filled[truth].shape[1]:
                colour = palette.curves[i]
                axes.plot(filled[truth][:, dim], color=colour, alpha=0.3, linewidth=5, solid_capstyle="round")
                style = {"marker": ".", "linestyle": "none"} if name == "waypoints" else {"linewidth": 1.4}
                axes.plot(filled[name][:, dim], color=colour, label=label, **style)
        _style(axes, title, palette)
    return figure


def _style(axes, title: str, palette: Palette) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=palette.ink)
    axes.tick_params(colors=palette.muted, labelsize=8, length=0)
    axes.grid(True, axis="y", color=palette.line, linewidth=1)
    axes.margins(x=0.01)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(palette.line)
    axes.legend(frameon=False, fontsize=8, labelcolor=palette.ink, ncols=4, loc="best")
