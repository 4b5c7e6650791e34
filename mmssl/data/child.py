"""A question to a file that may hang or crash whoever asks, asked by a process that may be killed."""

import contextlib
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

from mmssl.errors import MmsslError

T = TypeVar("T")


def in_child(question: Callable[[], T], seconds: float) -> T | None:
    """The answer, or None where it takes longer or the process crashes. Where none can be forked, it is asked here.

    Raises:
        MmsslError: what the question raised as such.
    """
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return question()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_ask, args=(question, theirs), daemon=True)
    process.start()
    theirs.close()
    answer = failure = None
    with contextlib.suppress(EOFError):  # it crashed
        if ours.poll(seconds):
            answer, failure = ours.recv()
    process.kill()
    process.join(5.0)
    ours.close()
    if failure is not None:
        raise failure
    return answer


def _ask(question: Callable, pipe: Connection) -> None:
    try:
        pipe.send((question(), None))
    except MmsslError as error:
        pipe.send((None, error))
