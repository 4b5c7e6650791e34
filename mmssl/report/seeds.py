"""What the folder of a control run holds: one run folder a seed, read from its files alone.

`seed-<s>/evaluations.jsonl` has one line an evaluation (`step` in environment steps, `returns`, `lengths`, and
`successes` where the task has such), `seed-<s>/metrics.jsonl` what training said, `seed-<s>/figures/policy.*` the final
policy at work. Every file but one of a seed is optional.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.config import read_yaml
from mmssl.errors import MmsslError
from mmssl.report.figures import Series
from mmssl.report.reading import read_lines

_SEED = "seed-"
_NOT_SHOWN = ("step", "return", "episodes", "steps_per_second", "seconds", "success", "broken", "length")
"""Scalars of metrics.jsonl that the page shows elsewhere or not at all; all others are the algorithm's own."""


@dataclass(frozen=True)
class Film:
    """The final policy at work: `moving` (animated), `still` (some frames), `movie` (an mp4), and facts `about` it."""

    moving: Path | None = None
    still: Path | None = None
    movie: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SeedFiles:
    """One seed of a control run; `evaluations` and `metrics` hold one mapping a step, in step order."""

    path: Path
    seed: int
    evaluations: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    film: Film = Film()

    @property
    def steps(self) -> int:
        """Environment steps that are known to be done."""
        return max([0, *(line[-1]["step"] for line in (self.metrics, self.evaluations) if line)])

    @property
    def broken(self) -> int:
        """How often the simulation broke down."""
        return max([0, *(int(line.get("broken", 0)) for line in self.metrics)])

    def evaluated(self, key: str = "returns") -> Series:
        """Steps and means over the episodes of each evaluation."""
        lines = [line for line in self.evaluations if line.get(key)]
        return [line["step"] for line in lines], [float(np.mean(line[key])) for line in lines]

    def series(self, key: str) -> Series:
        """Steps and values of one logged scalar; entries that are not finite numbers are left out."""
        points = [(m["step"], m[key]) for m in self.metrics if isinstance(m.get(key), (int, float))]
        points = [(step, float(value)) for step, value in points if np.isfinite(value)]
        return [p[0] for p in points], [p[1] for p in points]


@dataclass(frozen=True)
class ControlRun:
    """All seeds of a run, and its settings."""

    path: Path
    config: dict[str, Any]
    seeds: tuple[SeedFiles, ...]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def algorithm(self) -> str:
        own = self.config.get("algorithm")
        return str(own.get("name", "")) if isinstance(own, dict) else ""

    @property
    def task(self) -> str:
        return str(self.config.get("task", ""))

    @property
    def total(self) -> int | None:
        """Environment steps of the whole run, None where its settings do not say it."""
        total = self.config.get("steps")
        return total if isinstance(total, int) else None

    @property
    def unfinished(self) -> list[SeedFiles]:
        """Seeds that have not made all their steps."""
        return [seed for seed in self.seeds if self.total is not None and seed.steps < self.total]

    @property
    def missing(self) -> list[int]:
        """Seeds that the settings name and that have no folder yet."""
        wanted = self.config.get("seeds")
        there = {seed.seed for seed in self.seeds}
        return [seed for seed in wanted if seed not in there] if isinstance(wanted, list) else []

    @property
    def has_success(self) -> bool:
        """Whether the task can be done or not done."""
        return bool(self.judged) and all(seed.evaluated("successes")[0] for seed in self.judged)

    @cached_property
    def judged(self) -> tuple[SeedFiles, ...]:
        """Seeds that have been evaluated at least once."""
        return tuple(seed for seed in self.seeds if seed.evaluated()[0])

    @property
    def scalars(self) -> list[str]:
        """Names of what the algorithm logged, in its order."""
        names = dict.fromkeys(name for seed in self.seeds for line in seed.metrics for name in line)
        return [name for name in names if name not in _NOT_SHOWN and any(seed.series(name)[0] for seed in self.seeds)]


def is_control_run(path: Path | str) -> bool:
    """Whether a folder was made by `mmssl rl`: whether it has a folder of a seed, or is one that was evaluated."""
    path = Path(path)
    return bool(_seed_folders(path)) or (_seed_of(path) is not None and (path / "evaluations.jsonl").is_file())


def read_control_run(path: Path | str) -> ControlRun:
    """Read the folder of a control run, or that of one of its seeds as a run of this seed alone.

    Raises an `MmsslError` where it holds no seed, or a damaged file.
    """
    path = Path(path)
    folders = _seed_folders(path)
    if not folders and is_control_run(path):
        folders = {_seed_of(path): path}
    if not folders:
        raise MmsslError(f"{path} holds no seed-<number> folder; give the folder of a run made by `mmssl rl`.")
    config = read_yaml(path / "config.yaml") if (path / "config.yaml").is_file() else {}
    return ControlRun(path, config, tuple(_read_seed(folders[seed], seed) for seed in sorted(folders)))


def _seed_folders(path: Path) -> dict[int, Path]:
    return {seed: f for f in path.glob(f"{_SEED}*") if f.is_dir() and (seed := _seed_of(f)) is not None}


def _seed_of(folder: Path) -> int | None:
    start, _, number = folder.resolve().name.rpartition(_SEED)
    return int(number) if not start and number.isdigit() else None


def _read_seed(path: Path, seed: int) -> SeedFiles:
    evaluations = read_lines(path / "evaluations.jsonl")
    for line in evaluations:
        returns = line.get("returns")
        if not isinstance(returns, list) or not returns or not np.isfinite(np.asarray(returns, np.float64)).all():
            raise MmsslError(f"{path / 'evaluations.jsonl'}: step {line['step']} has no finite returns, got {returns}.")
    return SeedFiles(path, seed, evaluations, read_lines(path / "metrics.jsonl"), _find_film(path / "figures"))


def _find_film(folder: Path) -> Film:
    files = [folder / f"policy{suffix}" for suffix in (".webp", ".png", ".mp4")]
    moving, still, movie = (path if path.is_file() else None for path in files)
    about = folder / "policy.json"
    return Film(moving, still, movie, json.loads(about.read_text()) if about.is_file() else {})


def common_steps(series: list[Series]) -> list[int]:
    """Steps at which every one of some series has a value, in order."""
    return sorted(set.intersection(*(set(steps) for steps, _ in series))) if series else []


def at_steps(series: list[Series], steps: list[int]) -> np.ndarray:
    """Values (series, T) of some series at steps that all of them have."""
    tables = [dict(zip(*one, strict=True)) for one in series]
    return np.array([[table[step] for step in steps] for table in tables], np.float64).reshape(len(series), len(steps))
