"""Recording in one process or in several: who records which episode, and what happens when somebody stops.

The parent hands a few episodes at a time to whichever worker is free, over a pipe of the worker's own, so that the
death of a worker is noticed at once and blocks nobody. Workers are spawned: an OpenGL context does not survive a fork.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from mmssl.envs.describe import minari_metadata
from mmssl.envs.policies import Policy
from mmssl.envs.rollout import Recorder, RolloutConfig
from mmssl.envs.storage import METADATA, RecordingFolder, write_json
from mmssl.envs.suites import Task
from mmssl.errors import MmsslError

_CHUNK = 10  # episodes at most that a worker gets at once; opening a world costs as much as recording about one


@dataclass(frozen=True)
class Job:
    """Episodes of one task, and the folder they go to."""

    task: Task
    config: RolloutConfig
    folder: RecordingFolder
    episodes: tuple[int, ...]
    version: int
    policies: tuple[Policy | None, ...] = ()
    """The policies that the config names, None for those of which the name says all."""
    tag: str = ""
    """A word in the name of the data set."""


class Worker:
    """Records jobs; keeps the world of its last task open for the next job of that task."""

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._key: Any = None

    def recorder(self, job: Job) -> Recorder:
        key = (job.task, job.config)
        if self._recorder is None or self._key != key:
            self.close()
            self._recorder, self._key = Recorder(job.task, job.config, job.policies), key
        return self._recorder

    def record(self, job: Job, report: Callable[[dict], None], alive: Callable[[], None] = lambda: None) -> None:
        recorder = self.recorder(job)
        write_json(job.folder.parts / METADATA, minari_metadata(recorder, job.version, job.tag))
        for episode in job.episodes:
            report(recorder.record(episode, job.folder.part(episode), alive))

    def close(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None


def run_jobs(
    jobs: list[Job], workers: int, progress: Callable[[dict], None], check: Callable[[], None] = lambda: None
) -> None:
    """Record all jobs, then gather each task's episodes; on an interruption or an error those finished so far.

    `progress` is called with `Recorder.record`'s answer after each episode; `check` between steps, to raise what shall
    end the recording.
    """
    finished = False
    try:
        if workers == 1:
            _alone(jobs, progress, check)
        else:
            _together(jobs, workers, progress, check)
        finished = True
    finally:
        if not finished:
            _rescue(jobs)


def _alone(jobs: list[Job], progress: Callable[[dict], None], check: Callable[[], None]) -> None:
    worker = Worker()
    try:
        for job in jobs:
            worker.record(job, progress, check)
            job.folder.gather()
    finally:
        worker.close()


def _rescue(jobs: list[Job]) -> None:
    """Gather what is finished; what cannot be gathered now (a full disk) will be when the command goes on."""
    for job in jobs:
        with contextlib.suppress(OSError, MmsslError):
            job.folder.gather()


def split(jobs: list[Job], workers: int) -> list[tuple[int, Job]]:
    """Jobs cut into chunks small enough that all workers end at about the same time, each with its job's place."""
    total = sum(len(job.episodes) for job in jobs)
    size = max(1, min(_CHUNK, -(-total // (2 * workers))))
    chunks = []
    for place, job in enumerate(jobs):
        for start in range(0, len(job.episodes), size):
            part = job.episodes[start : start + size]
            chunks.append((place, replace(job, episodes=part)))
    return chunks


def _together(jobs: list[Job], workers: int, progress: Callable[[dict], None], check: Callable[[], None]) -> None:
    chunks = deque(split(jobs, workers))
    left = [len(job.episodes) for job in jobs]
    crew: dict[Connection, Any] = {}
    try:
        for _ in range(min(workers, len(chunks))):
            ours, theirs = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs,), daemon=True)
            with process_environment(LP_NUM_THREADS="0", OMP_NUM_THREADS="1"):  # the workers themselves use the cores
                process.start()
            theirs.close()
            crew[ours] = process
        while crew:
            for connection in wait(list(crew)):
                check()
                _serve(connection, crew, chunks, jobs, left, progress)
    finally:
        for connection, process in crew.items():
            connection.close()
            process.terminate()
        for process in crew.values():
            process.join(10)


def _serve(connection: Any, crew: dict, chunks: deque, jobs: list[Job], left: list[int], progress: Any) -> None:
    """React to one message of a worker."""
    try:
        kind, content = connection.recv()
    except (EOFError, ConnectionResetError):
        process = crew.pop(connection)
        process.join(10)
        raise MmsslError(
            f"a recording process ended unexpectedly, exit code {process.exitcode} (-9: killed, mostly for want of "
            f"memory; 1: its own message stands above); finished episodes are kept, and the same command goes on."
        ) from None
    if kind == "episode":
        place, result = content
        progress(result)
        left[place] -= 1
        if left[place] == 0:
            jobs[place].folder.gather()
    elif kind == "error":
        raise content
    if kind == "free":
        if chunks:
            connection.send(chunks.popleft())
        else:
            connection.send(None)
            crew.pop(connection).join(10)


def _work(connection: Connection) -> None:
    """A worker process: asks for a chunk, records it, tells of each episode, until there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    parent = os.getppid()

    def alive() -> None:
        if os.getppid() != parent:  # the parent was killed
            sys.exit(1)

    worker = Worker()
    try:
        while True:
            connection.send(("free", None))
            chunk = connection.recv()
            if chunk is None:
                return
            place, job = chunk
            worker.record(job, lambda result, place=place: connection.send(("episode", (place, result))), alive)
    except (EOFError, BrokenPipeError):
        return
    except (MmsslError, OSError) as error:
        connection.send(("error", error))
    finally:
        worker.close()


@contextlib.contextmanager
def process_environment(**values: str) -> Any:
    """Environment variables that children started inside get; what the user set stays."""
    new = {k: v for k, v in values.items() if k not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for key in new:
            os.environ.pop(key, None)
