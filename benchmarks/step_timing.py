"""Timing whole training steps of several models side by side; what the `*_step.py` files beside it share.

A step is forward, backward and fused AdamW, with the same optimizer for every side, on the same input. The sides take
turns within each round, in an order that rotates, so that a slow minute of the machine hits all of them; a ratio is the
median of the rounds' own ratios, with their quartiles. The share is the multiply-adds that our model does (linear
layers and attention; backward counted as twice forward; the same number for every side, unless a task counts each
side's own), over the time and over the fastest square matrix product that this machine did in the same run, by any
library that torch can call. The peak memory is what one step, the first with its optimizer's state, adds to that of the
model and its input: on a CPU the resident memory of its process, on a GPU what torch allocated.

On a CPU every side has a process of its own, with the allocator as its training loop leaves it: ours is told to keep
freed memory (`mmssl.training.memory`), others have glibc's defaults. `--same-allocator` tells all of them.
"""

import math
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mmssl.nn.linear import MULTIPLIES_BF16, linear
from mmssl.training.memory import keep_freed_memory

Step = Callable[[], None]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BASELINE = "transformers"
OTHERS = ("transformers", "timm")
"""How the sides that are not ours begin."""


@dataclass
class Settings:
    """What to time."""

    sizes: tuple[str, ...] = ("small",)
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    batch: int = 32
    rounds: int = 7
    device: str = "cpu"
    sides: tuple[str, ...] = ("ours", "ours compiled", BASELINE)
    baseline: str = BASELINE
    """The side that the others are compared with."""
    threads: int | None = None
    """CPU threads; default: torch's own choice."""
    clock: Literal["wall", "cpu"] = "wall"
    """`cpu` counts the processor time of this process: for a machine that others use too, with one thread."""
    memory: bool = True
    """On a GPU: measure the peak memory of a step too."""
    same_allocator: bool = False
    """On a CPU: every side keeps freed memory, not ours alone."""


@dataclass(frozen=True)
class Task:
    """One model to time in several versions."""

    title: str
    unit: str
    """What a batch is made of."""
    make_step: Callable[[str, str, int, str], Step]
    """(side, dtype, batch, device) -> a whole training step; it must be picklable."""
    multiply_adds: float | dict[str, float]
    """Of a step of ours, for one sample; or of each side's own."""


def training_step(model: nn.Module, loss: Callable[[], Tensor], dtype: str, device: str) -> Step:
    """Forward under autocast, backward and AdamW, as one call."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    cast = torch.autocast(device, torch.bfloat16) if dtype == "bf16" else nullcontext()

    def step() -> None:
        with cast:
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def run(tasks: list[Task], settings: Settings) -> None:
    """Time every task in every precision, and print a table of each."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, sides {', '.join(settings.sides)}")
    for task in tasks:
        for dtype in settings.dtypes:
            compare(task, dtype, settings)


class Side:
    """One model to time: on a CPU in a process of its own, on a GPU in this one."""

    def __init__(self, task: Task, side: str, dtype: str, settings: Settings):
        make = partial(task.make_step, side, dtype, settings.batch, settings.device)
        if settings.device == "cpu":
            self.process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            keep = settings.same_allocator or not side.startswith(OTHERS)
            threads = settings.threads or torch.get_num_threads()
            self.peak = self.process.submit(_begin, make, threads, keep).result()
            self.seconds = lambda: self.process.submit(_time, settings).result()
        else:
            step = make()
            self.peak = _peak_on_gpu(step) if settings.memory else math.nan
            step()
            self.seconds = lambda: seconds(step, settings)


_step: Step  # of this process, where it is a side's own


def _begin(make: Callable[[], Step], threads: int, keep: bool) -> float:
    """Make the side's step and do it twice; bytes that the first one added at its peak."""
    global _step
    if keep:
        keep_freed_memory()
    torch.set_num_threads(threads)
    _step = make()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    _step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - pages * resource.getpagesize()
    _step()
    return peak


def _time(settings: Settings) -> float:
    return seconds(_step, settings)


def _peak_on_gpu(step: Step) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def compare(task: Task, dtype: str, settings: Settings) -> None:
    sides = {}
    for side in settings.sides:
        try:
            sides[side] = Side(task, side, dtype, settings)
        except Exception as error:  # no compiler, no transformers: the other sides still say something
            print(f"  {side}: left out ({type(error).__name__}: {str(error).splitlines()[0][:80]})")
    rate, times = MatrixRate(dtype, settings), {side: [] for side in sides}
    for number in range(settings.rounds):
        rate.measure()
        order = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
        for side in order:
            times[side].append(sides[side].seconds())
    print_table(task, dtype, settings, times, {name: side.peak for name, side in sides.items()}, rate.best)


def seconds(call: Step, settings: Settings) -> float:
    clock = time.process_time if settings.clock == "cpu" else time.perf_counter
    start = clock()
    call()
    if settings.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


@dataclass
class MatrixRate:
    """The fastest square matrix product seen, in multiply-adds a second; fp32 by MKL and by oneDNN."""

    dtype: str
    settings: Settings
    best: float = 0.0
    operands: list[Tensor] = field(default_factory=list)

    def measure(self) -> None:
        device = self.settings.device
        slow = device == "cpu" and self.dtype == "bf16" and not MULTIPLIES_BF16  # torch loops there, for minutes
        n = 8192 if device == "cuda" else 512 if slow else 2048
        self.operands = self.operands or [torch.randn(n, n, device=device, dtype=DTYPES[self.dtype])] * 2
        a, b = self.operands
        for product in (lambda: a @ b, lambda: linear(a, b)):
            product()
            self.best = max(self.best, n**3 / min(seconds(product, self.settings) for _ in range(3)))


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, middle, high


def _counts(task: Task, settings: Settings) -> dict[str, float]:
    """Multiply-adds of each side, for one sample."""
    counts = task.multiply_adds
    return counts if isinstance(counts, dict) else dict.fromkeys(settings.sides, counts)


def print_table(task: Task, dtype: str, settings: Settings, times: dict, memory: dict, rate: float) -> None:
    work = {side: settings.batch * count for side, count in _counts(task, settings).items()}
    print(f"\n{task.title}, {dtype}, batch {settings.batch}, {settings.device}, {settings.rounds} rounds, ", end="")
    steps = " / ".join(f"{2 * count / 1e9:,.0f}" for count in sorted(set(work.values()), reverse=True))
    print(f"{settings.clock} time; matrix product {2 * rate / 1e9:,.0f} GFLOP/s, {steps} GFLOP a step")
    baseline = times.get(settings.baseline, [math.nan] * settings.rounds)
    for side, values in times.items():
        middle = statistics.median(values)
        ratio = quartiles([b / v for b, v in zip(baseline, values, strict=True)])
        print(
            f"  {side:14s} {middle:8.3f} s/step {settings.batch / middle:8.1f} {task.unit}/s   "
            f"{ratio[1]:5.2f}x {settings.baseline} [{ratio[0]:.2f}, {ratio[2]:.2f}]   "
            f"{work[side] / middle / rate:5.0%} of the matrix rate   {memory[side] / 2**20:8,.0f} MiB"
        )
