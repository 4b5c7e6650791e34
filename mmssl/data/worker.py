"""What runs inside a worker process of `mmssl.data.workers`, and the desk on which it says where it is."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from mmssl.data import transport
from mmssl.data.dataset import Dataset
from mmssl.errors import MmsslError

Piece = dict[str, Tensor]  # what a worker gets, and what it gives

NOWHERE = -1  # the place of a worker that is at no sample
_HELD = {signal.SIGINT, signal.SIGTERM}
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


class Desk:
    """Where each worker is and since when: (place, seconds of the system's clock, 0 for idle), in shared memory.

    Args:
        context: of multiprocessing.
        workers: how many.
    """

    def __init__(self, context: Any, workers: int):
        self._values = context.RawArray(ctypes.c_double, 2 * workers)

    def write(self, number: int, place: int) -> None:
        """Worker `number` begins with a sample. Its time is wiped first: no new place stands beside an old time."""
        self._values[2 * number + 1] = 0.0
        self._values[2 * number] = place
        self._values[2 * number + 1] = time.monotonic()

    def wipe(self, number: int) -> None:
        """Worker `number` is at no sample."""
        self._values[2 * number + 1] = 0.0
        self._values[2 * number] = NOWHERE

    def read(self, number: int) -> tuple[int, float]:
        """(place, since when) of worker `number`."""
        return int(self._values[2 * number]), self._values[2 * number + 1]


def work(pipe: Connection, job: Callable[[Piece], Piece], desk: Desk, number: int, parent: int, bound: bool) -> None:
    """Do pieces until the main process is gone.

    Args:
        pipe: brings (tag, bad samples that others met) with a piece; takes (tag, own new bad samples, failure) with
            the answer.
        job: what to do; it has `dataset`.
        desk: where to say at which sample this worker is.
        number: of this worker.
        parent: process id of the main process.
        bound: whether the system may kill this process with the thread that started it.
    """
    _settle(parent, bound)
    dataset: Dataset = job.dataset.root
    dataset.announce = partial(desk.write, number)
    dataset.bad.tell = []
    logging.getLogger("mmssl.data").disabled = True  # the main process says it, once
    told = len(dataset.bad.found)
    while (call := _next_call(pipe, parent)) is not None:
        (tag, news), piece = call
        for bad in news:
            dataset.bad.know(*bad)
        desk.write(number, NOWHERE)
        parcel, failure = _answer(job, piece)
        desk.wipe(number)
        found = dataset.bad.found[told:]
        told += len(found)
        transport.send(pipe, (tag, found, failure), parcel)


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait; a process that is started meanwhile begins with them held, until `work` lets them in."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answer(job: Callable[[Piece], Piece], piece: Piece) -> tuple[transport.Parcel | None, Exception | None]:
    try:
        return transport.pack(job(piece)), None
    except MmsslError as error:
        return None, error
    except Exception:
        return None, RuntimeError(f"a data worker failed:\n{traceback.format_exc()}")


def _next_call(pipe: Connection, parent: int) -> tuple[Any, Piece] | None:
    """What the main process says next; None once it has gone. The pipe alone does not tell: siblings hold it open."""
    try:
        while not pipe.poll(5.0):
            if os.getppid() != parent:
                return None
        return transport.receive(pipe)
    except (EOFError, OSError):
        return None


def _settle(parent: int, bound: bool) -> None:
    """A worker leaves Ctrl-C and SIGTERM to the main process, which saves first, and uses one core.

    A SIGTERM to the whole process group (Slurm, systemd, docker) would else end the workers under a main process that
    still finishes its step; half a minute later they end whatever it does. If the main process is killed, the system
    kills a worker with it, even one that is stuck.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    torch.set_num_threads(1)
    if bound and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
