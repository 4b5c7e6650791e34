"""Suites: the YAML files in `envs/` that name tasks, cameras, action repeat and horizon.

A task is asked for as "suite/task". Its value in the YAML is the instruction sentence, or a mapping that also overrides
the suite's fields for that task.
"""

import fnmatch
import string
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

from mmssl.config import from_dict, read_yaml
from mmssl.errors import MmsslError, unknown_name
from mmssl.paths import find_resource, list_resources


@dataclass(frozen=True)
class Camera:
    """A camera of the model (all fields left out), possibly rolled, or a view of our own (`distance` given)."""

    roll: float = 0.0
    """Degrees by which the camera is turned about its viewing axis, so that the picture stands upright."""
    lookat: tuple[float, float, float] | None = None
    """Point in metres at which a view of our own looks; where `track` is given, an offset is ignored by MuJoCo."""
    distance: float | None = None
    """Metres between that point and the camera."""
    azimuth: float = 90.0
    elevation: float = -30.0
    track: str | None = None
    """Name of a body that the view follows."""

    def __post_init__(self) -> None:
        if self.distance is None and (self.lookat or self.track):
            raise MmsslError("a camera with lookat or track needs a distance in metres.")


@dataclass(frozen=True)
class Reference:
    """Mean undiscounted returns of whole episodes, the ends of the scale of `mmssl.envs.scores.normalized_score`."""

    random: float
    expert: float

    def __post_init__(self) -> None:
        if not self.expert > self.random:
            raise MmsslError(
                f"an expert's reference must be above the random one, got {self.expert} and {self.random}."
            )


@dataclass(frozen=True)
class Task:
    """One task with everything that its suite says about it."""

    suite: str
    name: str
    family: str
    id: str
    instruction: str
    horizon: int
    action_repeat: int = 1
    camera: str | None = None
    """Camera used when none is asked for; None means the model's first one."""
    cameras: dict[str, Camera] = field(default_factory=dict)
    proprio: tuple[tuple[int, int], ...] | None = None
    """Slices of the state that are proprioception; None means position and velocity of the actuated joints."""
    after_success: int | None = None
    """Steps recorded after the first success, None for all of them."""
    typical_steps: int | None = None
    """Usual length of an episode, for the estimate of disk space."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment itself."""
    reference: Reference | None = None
    """What random actions and an expert get; None where nobody measured it."""

    @property
    def full_name(self) -> str:
        return f"{self.suite}/{self.name}"


@dataclass(frozen=True)
class Suite:
    """The content of one file in `envs/`; all but `family` and `tasks` are defaults that a task may override."""

    family: str
    tasks: dict[str, Any]
    id: str = "${task}"
    """The environment's own name, with `${task}` for the task's name."""
    horizon: int = 1000
    action_repeat: int = 1
    camera: str | None = None
    cameras: dict[str, Camera] = field(default_factory=dict)
    proprio: tuple[tuple[int, int], ...] | None = None
    after_success: int | None = None
    typical_steps: int | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    """By task; a task may also have its own `reference`."""

    def __post_init__(self) -> None:
        for name in self.references:
            if name not in self.tasks:
                raise unknown_name("task in references", name, self.tasks)


@cache
def load_suite(name: str) -> Suite:
    """The suite called `name`, or in the YAML file at that path."""
    path = find_resource("envs", name)
    try:
        return from_dict(Suite, read_yaml(path))
    except MmsslError as error:
        raise MmsslError(f"{path}: {error}") from None


def list_suites() -> list[str]:
    return list_resources("envs")


def list_tasks(suite: str | None = None) -> list[str]:
    """Full names, "suite/task", of all tasks of one suite or of all."""
    suites = [suite] if suite else list_suites()
    return [f"{s}/{task}" for s in suites for task in load_suite(s).tasks]


def find_task(full_name: str) -> Task:
    """The task called "suite/task"; an `MmsslError` with the list of suites or tasks where there is none."""
    suite_name, _, name = full_name.rpartition("/")
    if not suite_name:
        raise MmsslError(f"a task is written SUITE/TASK, got {full_name!r}; the suites are {', '.join(list_suites())}.")
    suite = load_suite(suite_name)
    if name not in suite.tasks:
        raise unknown_name(f"task of the suite {suite_name!r}", name, suite.tasks)
    short = suite_name.rsplit("/", 1)[-1].removesuffix(".yaml")
    given = suite.tasks[name]
    given = {"instruction": given} if isinstance(given, str) else dict(given or {})
    inherited = {f.name: getattr(suite, f.name) for f in fields(Suite) if f.name not in ("tasks", "references")}
    inherited["id"] = string.Template(suite.id).safe_substitute(task=name)
    own_cameras = given.pop("cameras", {})
    values = {"instruction": name.replace("-", " "), "suite": short, "name": name, **inherited, **given}
    task = from_dict(Task, {"reference": suite.references.get(name), **values}, full_name)
    cameras = {k: from_dict(Camera, v or {}, f"{full_name}.cameras.{k}") for k, v in own_cameras.items()}
    return replace(task, cameras={**task.cameras, **cameras})


def expand_tasks(patterns: tuple[str, ...]) -> list[Task]:
    """Tasks for names and for patterns such as "metaworld/*", in the order given, each once."""
    names: dict[str, None] = {}
    for pattern in patterns:
        suite, _, name = pattern.rpartition("/")
        if suite and any(c in name for c in "*?["):
            matched = fnmatch.filter(list_tasks(suite), pattern)
            if not matched:
                raise unknown_name(f"pattern of tasks of the suite {suite!r}", name, load_suite(suite).tasks)
            names.update(dict.fromkeys(matched))
        else:
            names[pattern] = None
    if not names:
        raise MmsslError(f"no task given; write SUITE/TASK, where the suites are {', '.join(list_suites())}.")
    return [find_task(name) for name in names]
