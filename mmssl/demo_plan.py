"""What fits into the budget of a demo, and the clock that says where its time goes."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from mmssl.errors import MmsslError

ARMS = (
    "metaworld/drawer-open",
    "metaworld/button-press-topdown",
    "metaworld/reach",
    "metaworld/push",
    "metaworld/pick-place",
    "metaworld/door-open",
    "metaworld/drawer-close",
    "metaworld/window-open",
    "metaworld/peg-insert-side",
    "metaworld/faucet-open",
)
WALKERS = ("dmc/cheetah-run", "gym/Ant-v5")
"""Tasks whose states have another length than Meta-World's: they are in the pretraining and in the task probe."""
SKILLS = (
    "metaworld/drawer-open",
    "metaworld/button-press-topdown",
    "metaworld/door-open",
    "metaworld/window-open",
    "metaworld/hammer",
    "metaworld/pick-place",
)
"""What one trajectory model learns from experts. A random policy never does any of them in `Plan.horizon` steps."""


@dataclass(frozen=True)
class Plan:
    """What fits into a budget of so many seconds.

    The shares of training and the number of episodes depend on the budget alone, so that the same command means the
    same data; only the number of steps is measured.
    """

    budget: float

    @property
    def is_tiny(self) -> bool:
        return self.budget < 120

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks whose pictures are recorded."""
        return (*ARMS[:2], WALKERS[0]) if self.is_tiny else ARMS + WALKERS

    @property
    def episodes(self) -> int:
        """Episodes of each of them."""
        return 8 if self.is_tiny else max(8, min(40, round(self.budget / 20)))

    @property
    def pretraining(self) -> float:
        """Seconds of pretraining on pictures, at most."""
        return (0.2 if self.is_tiny else 0.26) * self.budget

    @property
    def judging(self) -> float:
        """Seconds that are kept for judging what pictures taught, and for the page."""
        return (0.2 if self.is_tiny else 0.22) * self.budget

    @property
    def samples(self) -> int:
        """Samples of the training and of the held-out part that probes use, at most."""
        return 96 if self.is_tiny else 1500

    @property
    def skills(self) -> tuple[str, ...]:
        """Tasks that experts show to the trajectory model."""
        return SKILLS[:2] if self.is_tiny else SKILLS

    @property
    def shown(self) -> int:
        """Episodes that the expert of each of them shows."""
        return 5 if self.is_tiny else max(10, min(60, round(self.budget / 10)))

    @property
    def horizon(self) -> int:
        """Steps after which an episode of a skill ends. Experts need 50 to 110."""
        return 60 if self.is_tiny else 200

    @property
    def imitating(self) -> float:
        """Seconds of pretraining on trajectories, at most."""
        return (0.1 if self.is_tiny else 0.2) * self.budget

    @property
    def acting(self) -> float:
        """Seconds that are kept for running and filming policies."""
        return (0.15 if self.is_tiny else 0.16) * self.budget

    @property
    def tries(self) -> int:
        """Episodes of each skill for each policy."""
        return 2 if self.is_tiny else max(10, min(50, round(self.budget / 24)))


class Clock:
    """Announces stages, and keeps the seconds that each took in the run's timing.json."""

    def __init__(self, budget: float, stages: tuple[str, ...]):
        self.budget, self.stages, self.began = budget, stages, time.monotonic()
        self.seconds: dict[str, float] = {}

    def left(self) -> float:
        return self.budget - (time.monotonic() - self.began)

    def start(self, stage: str, what: str) -> None:
        place = f"{self.stages.index(stage) + 1}/{len(self.stages)}"
        print(f"\n[{place}] {stage}: {what} ({words_for(max(0.0, self.left()))} left)", flush=True)
        self._stage, self._since = stage, time.monotonic()

    def stop(self) -> None:
        self.seconds[self._stage] = round(time.monotonic() - self._since, 2)

    def save(self, run: Path) -> None:
        """Add the stages of this process to those that an interrupted one had written, in their order."""
        path = run / "timing.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
        joined = {**before, **self.seconds}
        path.write_text(json.dumps({k: joined[k] for k in self.stages if k in joined}, indent=1) + "\n")


def parse_budget(text: str) -> float:
    """Seconds of "30s", "6m", "1.5h" or "45" (seconds); an `MmsslError` under 20 seconds or for other words."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|sec|min)?\s*", text)
    if not found:
        raise MmsslError(f"--budget must be a time such as 30s, 6m or 1h, got {text!r}.")
    seconds = float(found[1]) * {"m": 60, "min": 60, "h": 3600}.get(found[2] or "s", 1)
    if seconds < 20:
        raise MmsslError(f"--budget must be at least 20s, got {text!r}: every stage needs a few seconds.")
    return seconds


def words_for(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
