"""A vector world in worker processes: orders travel over a pipe of each worker, arrays in memory that all share.

Workers are spawned: an OpenGL context does not survive a fork. What they compute does not depend on how many they are.
"""

import contextlib
import os
import pickle
import shutil
import signal
import sys
import weakref
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from mmssl.envs.crew import process_environment
from mmssl.envs.vector_bodies import Buffers, Here, Layout, Recipe
from mmssl.errors import MmsslError

_GO, _END, _DONE = b"go", b"end", b"done"
_ALIGN = 64  # bytes


class Shared:
    """One piece of shared memory, cut into the arrays of a vector world: buffers, actions and seeds."""

    def __init__(self, layout: Layout, action: tuple[tuple[int, ...], np.dtype], n: int, name: str | None = None):
        flags = dict.fromkeys(("terminated", "truncated", "success"), ((), np.dtype(bool)))
        rest = {"reward": ((), np.dtype(np.float64)), "seeds": ((), np.dtype(np.int64)), "actions": action, **flags}
        parts = {("obs", k): v for k, v in layout.items()} | {("", k): v for k, v in rest.items()}
        places, end = {}, 0
        for key, (shape, dtype) in parts.items():
            places[key] = end
            end += -(-n * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize // _ALIGN) * _ALIGN
        self.memory = SharedMemory(name, create=name is None, size=_affordable(end) if name is None else 0)
        arrays = {
            key: np.ndarray((n, *shape), dtype, self.memory.buf, places[key]) for key, (shape, dtype) in parts.items()
        }
        self.actions, self.seeds = arrays["", "actions"], arrays["", "seeds"]
        obs = {key: array for (kind, key), array in arrays.items() if kind}
        self.buffers = Buffers(obs, *(arrays["", k] for k in ("reward", "terminated", "truncated", "success")))

    def close(self, unlink: bool) -> None:
        """Let go of the memory; the one who made it removes it."""
        del self.actions, self.seeds, self.buffers
        with contextlib.suppress(BufferError):  # somebody still holds an array: the memory goes with it
            self.memory.close()
        if unlink:
            self.memory.unlink()


def _affordable(size: int) -> int:
    """The size; an `MmsslError` where the system has no such room, which it would say by killing us."""
    if sys.platform.startswith("linux") and os.path.isdir("/dev/shm"):
        free = shutil.disk_usage("/dev/shm").free
        if size > free:
            raise MmsslError(
                f"worker processes need {size / 1e6:.0f} MB of shared memory and /dev/shm has {free / 1e6:.0f} MB; "
                "use workers=0, fewer environments or smaller pictures, or give the container more (--shm-size)."
            )
    return size


class Workers:
    """n environments in worker processes; the same face as `Here`."""

    def __init__(self, recipe: Recipe, n: int, workers: int):
        edges = np.linspace(0, n, workers + 1).astype(int).tolist()
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        memory: list[Shared] = []
        self._end = weakref.finalize(self, _end, self.pipes, self.processes, memory)
        try:
            for first, last in pairwise(edges):
                self._start(recipe, first, last)
            self.layout, self.action_space = self._answers()[0]
            action = (self.action_space.shape, self.action_space.dtype)
            self.shared = Shared(self.layout, action, n)
            memory.append(self.shared)
            for pipe in self.pipes:
                pipe.send((self.layout, action, n, self.shared.memory.name))
            self._answers()
        except BaseException:
            self.close()
            raise
        self.buffers = self.shared.buffers

    def _start(self, recipe: Recipe, first: int, last: int) -> None:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, recipe, first, last), daemon=True)
        with process_environment(LP_NUM_THREADS="0", OMP_NUM_THREADS="1"):  # the workers themselves use the cores
            process.start()
        theirs.close()
        self.pipes.append(ours)
        self.processes.append(process)

    def step(self, actions: np.ndarray, seeds: np.ndarray) -> None:
        """As `Here.step`."""
        self.shared.actions[:], self.shared.seeds[:] = actions, seeds
        for pipe in self.pipes:
            with contextlib.suppress(OSError):  # a worker that has died is noticed when it does not answer
                pipe.send_bytes(_GO)
        self._answers()

    def _answers(self) -> list[Any]:
        """What all workers answered, in order; an error of one of them is raised here."""
        answers = []
        for place, pipe in enumerate(self.pipes):
            try:
                answer = pipe.recv_bytes()
            except (EOFError, OSError):
                raise self._death(place) from None
            answers.append(None if answer == _DONE else pickle.loads(answer))
            if isinstance(answers[-1], BaseException):
                raise answers[-1]
        return answers

    def _death(self, place: int) -> MmsslError:
        process = self.processes[place]
        process.join(10)
        return MmsslError(
            f"an environment process ended unexpectedly, exit code {process.exitcode} (-9: killed, mostly for want of "
            "memory; 1: its own message stands above); use fewer workers, or resume from the last checkpoint."
        )

    def close(self) -> None:
        """End the processes and give the memory back; it also happens at the end of the program."""
        self.buffers = Buffers({}, *(np.empty(0) for _ in range(4)))
        self._end()


def _end(pipes: list[Connection], processes: list[Any], memory: list[Shared]) -> None:
    for pipe in pipes:
        with contextlib.suppress(OSError):
            pipe.send_bytes(_END)
        pipe.close()
    for process in processes:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
    for shared in memory:
        shared.close(unlink=True)


def _work(pipe: Connection, recipe: Recipe, first: int, last: int) -> None:
    """A worker process: steps environments `first` to `last` when told, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    here, shared = None, None
    try:
        here = Here(recipe, last - first)
        pipe.send_bytes(pickle.dumps((here.layout, here.action_space)))
        shared = Shared(*pipe.recv())
        rows = slice(first, last)
        actions, seeds, here.buffers = shared.actions[rows], shared.seeds[rows], shared.buffers.rows(rows)
        pipe.send_bytes(_DONE)
        while pipe.recv_bytes() == _GO:
            here.step(actions, seeds)
            pipe.send_bytes(_DONE)
    except (EOFError, OSError):
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            pipe.send_bytes(pickle.dumps(_portable(error)))
    finally:
        if here is not None:
            here.close()
        if shared is not None:
            actions = seeds = here.buffers = None
            shared.close(unlink=False)


def _portable(error: Exception) -> Exception:
    """The error, or one of ours with its words where it cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return MmsslError(f"an environment failed: {type(error).__name__}: {error}")
