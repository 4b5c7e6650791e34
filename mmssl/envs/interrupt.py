"""Ctrl-C and SIGTERM end a recording, wherever they strike."""

import signal
from types import FrameType


class Interrupts:
    """Inside the block SIGINT and SIGTERM raise `KeyboardInterrupt`; outside the main thread signals are left alone.

    An exception raised while Python runs a finalizer, or a callback out of C, is printed and lost ("Exception ignored
    in ..."), and the recording would run on as if nobody had pressed a key. So the signal is remembered too, and
    `check()`, called at every step, raises it again.
    """

    def __init__(self) -> None:
        self.struck = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._strike)
        except ValueError:  # not the main thread
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _strike(self, _number: int, _frame: FrameType | None) -> None:
        self.struck = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if a signal has come."""
        if self.struck:
            raise KeyboardInterrupt
