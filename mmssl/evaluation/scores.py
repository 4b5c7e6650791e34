"""The rows of a run's `scores.json`, and the table that people read."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmssl.errors import MmsslError
from mmssl.training.atomic import write_text

SPREAD = "/spread"
ERRORS = ("rmse", "abs_rel")  # metrics that are better when lower


@dataclasses.dataclass(frozen=True)
class Score:
    """One number: what was asked, of which encoder, and what came out."""

    evaluator: str  # its name, and what makes it another question than by default, e.g. "ridge grid4, 10 per class"
    target: str
    encoder: str  # pretrained | random | pixels | a name of the caller's
    metric: str
    value: float
    spread: float | None = None  # standard deviation over seeds or draws; None for a single one
    higher_is_better: bool = True

    @property
    def question(self) -> tuple[str, str, str]:
        """What may be compared: the same evaluator, target and metric."""
        return self.evaluator, self.target, self.metric


def to_scores(evaluator: str, target: str, encoder: str, found: dict[str, float]) -> list[Score]:
    """Scores from an evaluator's result, in which `<metric>/spread` stands beside `<metric>`."""
    names = [name for name in found if not name.endswith(SPREAD)]
    return [
        Score(evaluator, target, encoder, name, found[name], found.get(name + SPREAD), name not in ERRORS)
        for name in names
    ]


def write_scores(
    run: Path,
    rows: Iterable[Score],
    reconstruction: dict[str, float] | None = None,
    explained: dict[str, float] | None = None,
) -> Path:
    """Put rows into `RUN/scores.json`, in place of older answers to the same questions; the rest stays.

    Args:
        reconstruction: name -> squared error on masked patches, replaces the old one.
        explained: name -> share of the norm-pix target's variance, likewise, under "reconstruction_explained".
    """
    path = Path(run) / "scores.json"
    held = _read(path)
    rows = [dataclasses.asdict(row) for row in rows]
    new = {_identity(row) for row in rows}
    held["rows"] = [row for row in held.get("rows", []) if _identity(row) not in new] + rows
    if reconstruction is not None:
        held["reconstruction"] = reconstruction
    if explained is not None:
        held["reconstruction_explained"] = explained
    write_text(path, json.dumps(held, indent=1) + "\n")
    return path


def _identity(row: dict) -> tuple:
    return tuple(row.get(key) for key in ("evaluator", "target", "metric", "encoder"))


def _read(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text())
    except ValueError as error:
        raise MmsslError(f"{path} is not valid JSON ({error}); delete it or make it again.") from None
    if not isinstance(held, dict):
        raise MmsslError(f"{path} must hold a mapping; delete it or make it again.")
    return held


def table(rows: Sequence[Score]) -> str:
    """Aligned text: one line a question, one column an encoder, `value ± spread`, the best of a line starred."""
    encoders = list(dict.fromkeys(row.encoder for row in rows))
    lines = [["evaluator", "target", "metric", *encoders]]
    for question in dict.fromkeys(row.question for row in rows):
        found = {row.encoder: row for row in rows if row.question == question}
        best = max(found.values(), key=lambda row: row.value if row.higher_is_better else -row.value)
        cells = [_cell(found.get(name), found.get(name) is best and len(found) > 1) for name in encoders]
        lines.append([*question, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _cell(row: Score | None, best: bool) -> str:
    if row is None:
        return "-"
    spread = "" if row.spread is None else f" ± {row.spread:.3f}"
    return f"{row.value:.3f}{spread}{' *' if best else ''}"
