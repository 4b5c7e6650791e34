"""Reading processes that can be killed: one that is stuck in a sample, or dies of it, is replaced, and the run goes on.

Each worker has a pipe and a desk of its own. No lock and no queue is shared: a process that is killed while it holds a
lock would stop all the others. On its desk, two numbers in shared memory, a worker writes at which sample it is and
since when. A sample that takes too long or ends its reader is noted in the dataset's `bad`, a new worker knows of it
and gets the pieces of work of the one before it again; the sample after the bad one stands in.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import NamedTuple

import torch

from mmssl.data import transport
from mmssl.data.worker import NOWHERE, Desk, Piece, hold_signals, work
from mmssl.errors import MmsslError

PREFETCH = 2  # pieces that a worker has at once
TRIES = 3  # workers that one piece may cost before the pool gives up
_CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")


class _Answer(NamedTuple):
    """What became of a piece."""

    piece: Piece | Future | None  # a future where it is being pinned
    bad: list[tuple[int, str, str]]  # place, name, reason
    failure: Exception | None  # why the job failed


@dataclass
class _Worker:
    """A worker as the main process sees it."""

    number: int
    process: BaseProcess
    pipe: Connection
    told: int  # of the dataset's bad samples, those that this worker has been told
    pieces: dict[int, Piece] = field(default_factory=dict)  # tag -> what it has been given and not answered
    given: float = 0.0  # when it last got something to do, or answered
    late: tuple[float, float] = (0.0, 0.0)  # (since when it is at a sample, when that was first found too long)


class WorkerPool:
    """Processes that do one job on pieces of work.

    Args:
        job: `job(piece) -> piece`, run in the workers; it has `dataset`, whose `bad` takes the samples that a worker
            could not read, is stuck in, or died of.
        workers: how many processes.
        timeout: seconds that one sample may take; None or 0 for any time.
        pin: put answers into page-locked memory, in a thread.
        method: how processes start; by default "fork" on Linux, as torch does, and "spawn" elsewhere.

    Raises:
        MmsslError: no process can be started.
    """

    def __init__(
        self,
        job: Callable[[Piece], Piece],
        workers: int,
        timeout: float | None = None,
        pin: bool = False,
        method: str | None = None,
    ):
        self._job, self._root, self._timeout = job, job.dataset.root, timeout or None
        self._tick = min(1.0, self._timeout / 10) if self._timeout else 1.0  # seconds between two looks at the desks
        self._context = multiprocessing.get_context(method or ("fork" if sys.platform == "linux" else "spawn"))
        self._desk = Desk(self._context, workers)
        self._next_tag = 0
        self._deaths: Counter[int] = Counter()  # tag -> workers that died over it without a sample to blame
        self._killed: Counter[int] = Counter()  # place -> workers that were killed from outside while they read it
        self._workers: list[_Worker] = []
        # Before multiprocessing's own clean-up at exit, which asks politely and waits.
        self._finalizer = Finalize(self, _end, (self._workers,), exitpriority=100)
        for number in range(workers):
            self._workers.append(self._start(number))
        self._pinner = _pinner() if pin else None

    @property
    def ended(self) -> bool:
        return not self._workers

    def pids(self) -> list[int]:
        """Process ids of the present workers."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Kill the workers. They only read, so nothing is lost."""
        self._finalizer()
        if self._pinner is not None:
            self._pinner.shutdown(wait=False, cancel_futures=True)

    def run(self, pieces: Sequence[Piece], ordered: bool = True) -> Iterator[Piece]:
        """Do all pieces; their answers in the same order, or as they come.

        A run that is given up half way may be followed by another; two at once may not. An error ends the pool.

        Raises:
            MmsslError: too many bad samples, workers that keep dying, or what the job raised as such.
            RuntimeError: what else the job raised, with its traceback.
        """
        last = self._next_tag + len(pieces)
        try:
            yield from self._run(pieces, ordered)
        except GeneratorExit:
            raise
        except BaseException:
            if self._next_tag == last:  # else the pool is another run's
                self.close()
            raise

    def _run(self, pieces: Sequence[Piece], ordered: bool) -> Iterator[Piece]:
        first, given, handed = self._next_tag, 0, 0
        self._next_tag += len(pieces)
        answers: dict[int, _Answer] = {}
        try:
            while handed < len(pieces):
                self._check_current(first + len(pieces))
                ahead = handed + PREFETCH * len(self._workers)
                while given < min(len(pieces), ahead) and (worker := self._idlest()):
                    self._give(worker, first + given, pieces[given])
                    given += 1
                self._collect(answers, first, 0.0)
                tag = first + handed if ordered else next(iter(answers), None)
                if tag not in answers:
                    self._collect(answers, first, self._tick)
                    continue
                yield self._open(answers.pop(tag))
                handed += 1
        finally:  # of a run that is given up, what came and was not handed out
            for answer in answers.values():
                with contextlib.suppress(MmsslError):  # too many: the next run says so
                    for found in answer.bad:
                        self._root.bad.add(*found)

    def _open(self, answer: _Answer) -> Piece:
        """Note what could not be read, and give the piece, or raise why there is none."""
        for found in answer.bad:
            self._root.bad.add(*found)
        if answer.failure is not None:
            raise answer.failure
        return answer.piece.result() if isinstance(answer.piece, Future) else answer.piece

    def _check_current(self, last: int) -> None:
        if self._next_tag != last:
            raise MmsslError("a loader gives one epoch at a time; end the first one, or take a second loader.")
        if not self._workers:
            raise MmsslError("the data workers were ended while an epoch was under way; begin the epoch again.")

    def _idlest(self) -> _Worker | None:
        worker = min(self._workers, key=lambda w: len(w.pieces))
        return worker if len(worker.pieces) < PREFETCH else None

    def _give(self, worker: _Worker, tag: int, piece: Piece) -> None:
        news = self._root.bad.found[worker.told :]
        worker.told += len(news)
        if not worker.pieces:
            worker.given = time.monotonic()
        worker.pieces[tag] = piece
        parcel = transport.pack(piece)
        with contextlib.suppress(OSError):  # it has just died; `_collect` will see it and give the piece again
            transport.send(worker.pipe, (tag, news), parcel)

    def _collect(self, answers: dict[int, _Answer], first: int, seconds: float) -> None:
        """Take what comes within `seconds` into `answers` (tag -> answer), and replace who is dead or stuck."""
        ready = wait([worker.pipe for worker in self._workers], seconds)
        for worker in list(self._workers):
            if worker.pipe in ready:
                try:
                    self._receive(worker, answers, first)
                except (EOFError, OSError):
                    self._replace(worker)
            elif not ready and self._is_stuck(worker):
                worker.process.kill()
                self._replace(worker, stuck=True)

    def _receive(self, worker: _Worker, answers: dict[int, _Answer], first: int) -> None:
        (tag, bad, failure), piece = transport.receive(worker.pipe)
        del worker.pieces[tag]
        worker.given = time.monotonic()
        if tag < first:  # of an epoch that was given up
            for found in bad:
                self._root.bad.add(*found)
            return
        if self._pinner and failure is None:
            piece = self._pinner.submit(_pin, piece)
        answers[tag] = _Answer(piece, bad, failure)

    def _is_stuck(self, worker: _Worker) -> bool:
        """True where a worker has been too long at one sample, on two looks with time between them.

        One look is not enough: after the whole group of processes was stopped (Ctrl-Z) and goes on, all are late.
        """
        if not self._timeout or not worker.pieces:
            return False
        since, now = self._desk.read(worker.number)[1] or worker.given, time.monotonic()
        if now - since <= self._timeout:
            return False
        if worker.late[0] != since:
            worker.late = (since, now)
        return now - worker.late[1] > min(2.0, self._timeout / 10)

    def _replace(self, worker: _Worker, stuck: bool = False) -> None:
        """A new worker, with the pieces of one that is dead or stuck; the sample is blamed where it is at fault."""
        self._workers.remove(worker)
        worker.process.join(1.0)
        worker.process.kill()  # one that lives on, but cannot be heard
        ended_by = _ended_by(_bury(worker))
        place, since = self._desk.read(worker.number)  # it cannot move on any more
        late = self._timeout is not None and time.monotonic() - since > self._timeout
        reason = None if place == NOWHERE else self._reason(place, late, ended_by, stuck)
        if reason is not None:
            self._root.bad.add(place, self._root.sample_name(place), reason)
        elif worker.pieces:
            self._count_death(next(iter(worker.pieces)), ended_by, stuck)
        new = self._start(worker.number)
        self._workers.append(new)
        for tag, piece in worker.pieces.items():
            self._give(new, tag, piece)

    def _reason(self, place: int, late: bool, ended_by: str, stuck: bool) -> str | None:
        """Why the sample at `place` is to blame for the end of its reader; None where it is not."""
        if stuck:
            return f"took longer than {self._timeout:g} s" if late else None
        if ended_by in _CRASHES or not ended_by.startswith("SIG"):
            return f"the decoder crashed ({ended_by})"
        self._killed[place] += 1  # most likely for want of memory, and not always the sample's fault
        return f"its reader was killed twice ({ended_by})" if self._killed[place] == 2 else None

    def _count_death(self, tag: int, ended_by: str, stuck: bool) -> None:
        """Give up where one piece has cost too many workers."""
        self._deaths[tag] += 1
        if self._deaths[tag] < TRIES:
            return
        if stuck:
            raise MmsslError(
                f"a data worker took longer than {self._timeout:g} s at no sample in particular, {TRIES} times; "
                "give it more time (worker_timeout), or read in the main process (workers 0) to see where it stands."
            )
        raise MmsslError(
            f"a data worker ended by itself {TRIES} times at the same piece of work ({ended_by}), most likely for want "
            "of memory; use fewer workers."
        )

    def _start(self, number: int) -> _Worker:
        self._desk.wipe(number)
        ours, theirs = self._context.Pipe()
        # The system ends a child with the thread that made it; any thread but the main one may end long before us.
        bound = threading.current_thread() is threading.main_thread()
        told, args = len(self._root.bad.found), (theirs, self._job, self._desk, number, os.getpid(), bound)
        process = self._context.Process(target=work, args=args, daemon=True, name=f"mmssl-data-{number}")
        try:
            with hold_signals():  # until the worker has said what they shall do
                process.start()
        except OSError as error:
            raise MmsslError(f"data worker {number + 1} cannot be started ({error}); use fewer workers.") from None
        theirs.close()  # so that the end of the worker is the end of the pipe
        return _Worker(number, process, ours, told)


def _ended_by(code: int | None) -> str:
    """The signal's name, or "exit code 3"."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _end(workers: list[_Worker]) -> None:
    """Kill all and wait for their ends, so that no zombie is left."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        _bury(worker)
    workers.clear()


def _bury(worker: _Worker) -> int | None:
    """Wait for the end of a killed worker and close what belongs to it. Returns its exit code."""
    worker.pipe.close()
    worker.process.join(5.0)  # one that waits for a dead disk does not even hear a kill
    code = worker.process.exitcode
    if code is not None:
        worker.process.close()
    return code


def _pinner() -> ThreadPoolExecutor:
    """One thread that copies into page-locked memory, for the GPU that this thread works with."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def begin() -> None:
        torch.set_num_threads(1)  # of this thread alone
        if device is not None:
            torch.cuda.set_device(device)

    return ThreadPoolExecutor(1, "mmssl-pin", begin)


def _pin(piece: Piece) -> Piece:
    return {key: value.pin_memory() for key, value in piece.items()}
