"""How far a recording is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

from tqdm import tqdm


class Progress:
    """Called with the answer of `Recorder.record` after each episode."""

    def __init__(self, total: int, quiet: bool = False, seconds_between_lines: float = 10.0):
        self.total, self.episodes, self.pictures, self.steps, self.successes = total, 0, 0, 0, 0
        self._start = self._last_line = time.monotonic()
        self._between = seconds_between_lines
        self._lines = not quiet and not sys.stderr.isatty()
        self._bar = tqdm(total=total, unit="episode", disable=quiet or self._lines or not total, file=sys.stderr)

    def __call__(self, result: dict[str, Any]) -> None:
        self.episodes += 1
        self.pictures += result["pictures"]
        self.steps += result["steps"]
        self.successes += result["success"]
        self._bar.set_postfix_str(self._pace(), refresh=False)
        self._bar.update()
        if self._lines and (time.monotonic() - self._last_line >= self._between or self.episodes == self.total):
            self._last_line = time.monotonic()
            left = self.seconds() / self.episodes * (self.total - self.episodes)
            line = f"{self.episodes}/{self.total} episodes, {self._pace()}, {_clock(left)} left"
            print(line, file=sys.stderr, flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def speed(self) -> float:
        """Pictures (of all cameras) a second since the start; steps where there are no pictures."""
        return (self.pictures or self.steps) / max(self.seconds(), 1e-9)

    def _pace(self) -> str:
        return f"{self.speed():.0f} {self._unit}/s"

    @property
    def _unit(self) -> str:
        return "frames" if self.pictures or not self.steps else "steps"

    def summary(self) -> str:
        return f"{self.pictures or self.steps} {self._unit} in {_clock(self.seconds())}, {self._pace()}."

    def close(self) -> None:
        self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
