"""Ctrl-C and SIGTERM ask the loop to save and end; a second Ctrl-C ends the process at once."""

import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Context in which the first SIGINT or SIGTERM sets `received` and does nothing else.

    From then on both signals have the system's own effect, so that the second one ends even a process that is stuck.
    Outside the main thread Python allows no handlers, and `received` stays 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
