"""Several seeds of a run side by side, each in a process of its own."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from mmssl.config import save_config
from mmssl.control.loop import train
from mmssl.control.progress import Progress, Shown
from mmssl.control.rl_config import RLConfig
from mmssl.control.video import film_seed
from mmssl.errors import MmsslError
from mmssl.training.checkpoint import RunFolder
from mmssl.training.interrupt import StopSignal
from mmssl.training.logging import say


@dataclass(frozen=True)
class Outcome:
    """How one seed ended; `error` says why it failed, `signal` what stopped it."""

    seed: int
    steps: int = 0
    finished: bool = False
    signal: int = 0
    seconds: float = 0.0
    error: str | None = None


def run_seed(config: RLConfig, folder: Path, progress: Progress | None = None) -> Outcome:
    """Train one seed in `folder/seed-<s>/`, or go on there."""
    run = RunFolder(folder / f"seed-{config.seed}")
    with run.lock():
        run.start()
        save_config(config, run.config)
        result = train(config, run, progress=progress)
        if result.finished and config.film:
            film_seed(run.path, progress.say if progress else say)
    return Outcome(config.seed, result.steps, result.finished, result.signal, round(result.seconds, 2))


def run_seeds(config: RLConfig, folder: Path) -> list[Outcome]:
    """Train each of a recipe's `seeds`, `jobs` at once; one alone in this process, where its errors are raised.

    Ctrl-C and SIGTERM stop all of them, each with a checkpoint. A seed that fails leaves the others alone.
    """
    configs = [replace(config, seed=seed, seeds=()) for seed in config.seeds]
    if len(configs) == 1:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        return [run_seed(configs[0], folder)]
    with StopSignal() as stop:
        return _Team(configs, folder, at_once(config)).work(stop)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once(config: RLConfig) -> int:
    """How many of a recipe's seeds run at once."""
    return min(config.jobs or 2 * cores(), max(1, len(config.seeds)))


class _Team:
    """The processes of a run, and what they say."""

    def __init__(self, configs: list[RLConfig], folder: Path, jobs: int):
        self.waiting, self.folder, self.jobs = list(configs), folder, jobs
        self.threads = configs[0].threads or max(1, cores() // jobs)
        self.lines = {c.seed: Shown(c.steps, f"seed {c.seed}", place) for place, c in enumerate(configs)}
        self.running: dict[Connection, tuple[int, Any]] = {}  # pipe -> seed, process
        self.ended: dict[int, Outcome] = {}

    def work(self, stop: StopSignal) -> list[Outcome]:
        """Until all have ended."""
        told = False
        try:
            while self.running or self.waiting:
                if stop.received and not told:
                    told = True
                    self._stop(stop.received)
                while self.waiting and len(self.running) < self.jobs:
                    self._begin(self.waiting.pop(0))
                for pipe in wait(list(self.running), timeout=0.2):
                    self._hear(pipe)
        finally:
            for _, process in self.running.values():  # only after an error of ours
                process.terminate()
            for line in self.lines.values():
                line.close()
        found = [self.ended[seed] for seed in self.lines]
        return [replace(o, signal=stop.received) if o.signal else o for o in found]  # children are told by SIGTERM

    def _begin(self, config: RLConfig) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        sent = _Sent(theirs, config.seed, self.lines[config.seed].every)
        process = context.Process(target=_child, args=(config, self.folder, self.threads, sent))
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.running[ours] = (config.seed, process)

    def _stop(self, received: int) -> None:
        self.ended |= {config.seed: Outcome(config.seed, signal=received) for config in self.waiting}
        self.waiting.clear()
        for _, process in self.running.values():
            process.terminate()

    def _hear(self, pipe: Connection) -> None:
        seed, process = self.running[pipe]
        try:
            kind, *content = pipe.recv()
        except (EOFError, OSError):
            del self.running[pipe]
            process.join()
            self.ended.setdefault(seed, _vanished(seed, process.exitcode))
            return
        if kind == "ended":
            self.ended[seed] = content[0]
        else:
            getattr(self.lines[seed], kind)(*content)


def _vanished(seed: int, code: int) -> Outcome:
    """Of a process that ended without a word."""
    if code == -signal.SIGTERM:  # before it had begun to listen
        return Outcome(seed, signal=signal.SIGTERM)
    how = f"was ended by signal {-code}; was there too little memory?" if code < 0 else f"ended with exit code {code}"
    return Outcome(seed, error=f"its process {how}")


class _Sent:
    """Progress that is told to the parent process."""

    def __init__(self, pipe: Connection, seed: int, every: float):
        self.pipe, self.seed, self.every, self.next = pipe, seed, every, 0.0

    def due(self) -> bool:
        return time.monotonic() >= self.next

    def show(self, step: int, words: str, seconds_left: float | None) -> None:
        self.next = time.monotonic() + self.every
        self._send("show", step, words, seconds_left)

    def say(self, sentence: str) -> None:
        self._send("say", f"seed {self.seed}: {sentence}")

    def end(self, outcome: Outcome) -> None:
        self._send("ended", outcome)

    def _send(self, *message: Any) -> None:
        with contextlib.suppress(OSError):  # a parent that is gone; `_follow` deals with that
            self.pipe.send(message)


def _child(config: RLConfig, folder: Path, threads: int, sent: _Sent) -> None:
    """What a process of its own does. Ctrl-C reaches the parent alone, which says it to all once."""
    if hasattr(os, "setsid"):
        os.setsid()
    threading.Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        outcome = run_seed(config, folder, sent)
    except MmsslError as error:
        outcome = Outcome(config.seed, error=str(error))
    except Exception as error:
        sent.say(traceback.format_exc().rstrip())
        outcome = Outcome(config.seed, error=f"{type(error).__name__}: {error}")
    sent.end(outcome)


def _follow() -> None:
    """Save and end where the parent ends without a word."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
