"""Timing whole training steps of several models side by side; what `mae_step.py` and `videomae_step.py` share.

A step is forward, backward and fused AdamW, with the same optimizer for every side, on the same input. The sides take
turns within each round, in an order that rotates, so that a slow minute of the machine hits all of them; a ratio is the
median of the rounds' own ratios, with their quartiles. The share is, for every side alike, the multiply-adds that our
model does (linear layers and attention; backward counted as twice forward), over the time and over the fastest square
matrix product that this machine did in the same run, by any library that torch can call. The peak memory is what one
step, the first with its optimizer's state, adds to that of the model and its input: on a CPU the resident memory of a
fresh process of the side's own, on a GPU what torch allocated.
"""

import math
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mmssl.nn.linear import linear

Step = Callable[[], None]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BASELINE = "transformers"


@dataclass
class Settings:
    """What to time."""

    sizes: tuple[str, ...] = ("small",)
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    batch: int = 32
    rounds: int = 7
    device: str = "cpu"
    sides: tuple[str, ...] = ("ours", "ours compiled", BASELINE)
    threads: int | None = None
    """CPU threads; default: torch's own choice."""
    clock: Literal["wall", "cpu"] = "wall"
    """`cpu` counts the processor time of this process: for a machine that others use too, with one thread."""
    memory: bool = True
    """Measure the peak memory of a step too."""


@dataclass(frozen=True)
class Task:
    """One model to time in several versions."""

    title: str
    unit: str
    """What a batch is made of."""
    make_step: Callable[[str, str, int, str], Step]
    """(side, dtype, batch, device) -> a whole training step; it must be picklable."""
    multiply_adds: float
    """Of a step of ours, for one sample."""


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


def compare(task: Task, dtype: str, settings: Settings) -> None:
    steps, memory = {}, {}
    for side in settings.sides:
        arguments = (task.make_step, side, dtype, settings.batch, settings.device, settings.threads)
        try:
            memory[side] = peak_memory(*arguments) if settings.memory else math.nan
            step = task.make_step(*arguments[1:-1])
            step()
            step()
            steps[side] = step
        except Exception as error:  # no compiler, no transformers: the other sides still say something
            print(f"  {side}: left out ({type(error).__name__}: {str(error).splitlines()[0][:80]})")
    rate, times = MatrixRate(dtype, settings), {side: [] for side in steps}
    for number in range(settings.rounds):
        rate.measure()
        order = list(steps)[number % len(steps) :] + list(steps)[: number % len(steps)]
        for side in order:
            times[side].append(seconds(steps[side], settings))
    print_table(task, dtype, settings, times, memory, rate.best)


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
        n = 8192 if device == "cuda" else 2048
        self.operands = self.operands or [torch.randn(n, n, device=device, dtype=DTYPES[self.dtype])] * 2
        a, b = self.operands
        for product in (lambda: a @ b, lambda: linear(a, b)):
            product()
            self.best = max(self.best, n**3 / min(seconds(product, self.settings) for _ in range(3)))


def peak_memory(make: Callable, side: str, dtype: str, batch: int, device: str, threads: int | None) -> float:
    """Bytes that the first step adds at its peak."""
    if device == "cuda":
        step = make(side, dtype, batch, device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(_added_by_a_step, make, side, dtype, batch, threads).result()


def _added_by_a_step(make: Callable, side: str, dtype: str, batch: int, threads: int | None) -> float:
    """In a process of its own: highest resident memory after the first step, less that before it."""
    torch.set_num_threads(threads or torch.get_num_threads())
    step = make(side, dtype, batch, "cpu")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - pages * resource.getpagesize()


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, middle, high


def print_table(task: Task, dtype: str, settings: Settings, times: dict, memory: dict, rate: float) -> None:
    work = task.multiply_adds * settings.batch
    print(f"\n{task.title}, {dtype}, batch {settings.batch}, {settings.device}, {settings.rounds} rounds, ", end="")
    print(f"{settings.clock} time; matrix product {2 * rate / 1e9:,.0f} GFLOP/s, {2 * work / 1e9:,.0f} GFLOP a step")
    baseline = times.get(BASELINE, [math.nan] * settings.rounds)
    for side, values in times.items():
        middle = statistics.median(values)
        ratio = quartiles([b / v for b, v in zip(baseline, values, strict=True)])
        print(
            f"  {side:14s} {middle:8.3f} s/step {settings.batch / middle:8.1f} {task.unit}/s   "
            f"{ratio[1]:5.2f}x {BASELINE} [{ratio[0]:.2f}, {ratio[2]:.2f}]   "
            f"{work / middle / rate:5.0%} of the matrix rate   {memory[side] / 2**20:8,.0f} MiB"
        )
