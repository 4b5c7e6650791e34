"""How far a run is, for the eye: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Protocol

from tqdm import tqdm

from mmssl.training.logging import say


class Progress(Protocol):
    """What a training tells its progress to."""

    def due(self) -> bool:
        """Whether something new should be shown."""

    def show(self, step: int, words: str, seconds_left: float | None) -> None:
        """So far it is, and so it stands."""

    def say(self, sentence: str) -> None:
        """A sentence for the user."""


class Shown:
    """Progress on stderr.

    Args:
        total: steps of the run.
        label: the word before it.
        place: line of the bar on a terminal, where there are several.
        quiet: show nothing.
    """

    def __init__(self, total: int, label: str, place: int = 0, quiet: bool = False):
        self.total, self.label, self.quiet = total, label, quiet
        self.on_terminal = sys.stderr.isatty()
        hidden = quiet or not self.on_terminal
        self.bar = tqdm(total=total, desc=label, unit="step", position=place, disable=hidden, dynamic_ncols=True)
        self.every, self.next = 0.5 if self.on_terminal else 10.0, 0.0

    def due(self) -> bool:
        return time.monotonic() >= self.next

    def show(self, step: int, words: str, seconds_left: float | None) -> None:
        if self.next == 0.0:  # what an earlier process did is no speed of this one
            self.bar.initial = self.bar.n = min(step, self.total)
        self.next = time.monotonic() + self.every
        if self.on_terminal:
            self.bar.set_postfix_str(words, refresh=False)
            self.bar.update(min(step, self.total) - self.bar.n)
        else:
            left = "" if seconds_left is None else f", {tqdm.format_interval(seconds_left)} left"
            self.say(f"{self.label}: step {step:,}/{self.total:,}, {words}{left}")

    def say(self, sentence: str) -> None:
        if not self.quiet:
            say(sentence)

    def close(self) -> None:
        self.bar.close()
