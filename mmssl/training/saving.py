"""When the loop saves, what it saves, and the watch that keeps a spoiled model from being saved."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.training.checkpoint import RunFolder, optimizer_state, restore_model, restore_optimizer
from mmssl.training.distributed import Processes
from mmssl.training.logging import Meter
from mmssl.training.loop_config import LoopConfig


class Clock:
    """Training time of a run over all its processes in a row, and speed since it was last asked for."""

    def __init__(self, max_minutes: float | None):
        self.seconds = 0.0  # as all processes agreed on after the last step
        self._limit = max_minutes * 60 if max_minutes is not None else None
        self.start(0.0)

    def start(self, before: float) -> None:
        """Begin to count, on top of the `before` seconds of earlier processes."""
        self.seconds = before
        self._zero = time.monotonic() - before
        self._mark = (time.monotonic(), 0)

    def read(self) -> float:
        """Seconds of training until now."""
        return time.monotonic() - self._zero

    def used(self) -> float:
        """Fraction of the time limit that is used up; 0 without a limit."""
        return min(self.seconds / self._limit, 1.0) if self._limit is not None else 0.0

    def rate(self, samples: int) -> float:
        """Samples a second since the last call, if this process has trained on `samples` up to now."""
        (then, before), self._mark = self._mark, (time.monotonic(), samples)
        return (samples - before) / max(self._mark[0] - then, 1e-9)


class NanWatch:
    """Remembers on the device the first step whose loss or gradient was not finite; reading it is the only wait."""

    def __init__(self, device: torch.device, run: RunFolder | None):
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._run = run

    def add(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Look at the loss and the gradient's norm of step number `step`, counted from 1."""
        good = torch.isfinite(loss) & torch.isfinite(norm)
        self._first = torch.where((self._first == 0) & ~good, step, self._first)

    def check(self) -> None:
        """Raise an `MmsslError` if some step was bad."""
        if first := int(self._first):
            good = self._run.all_checkpoints() if self._run is not None else []
            last = f"the last good checkpoint is {good[-1].path}" if good else "there is no good checkpoint yet"
            raise MmsslError(
                f"the loss or its gradient became NaN or infinite at step {first}; {last}. "
                "Lower optim.base_lr, set loop.clip_grad (1.0 say), or use loop.precision fp32."
            )


class Saver:
    """The training state between process and disk. `step` counts the optimizer steps done."""

    def __init__(self, run: RunFolder | None, team: Processes, loop: LoopConfig, model: nn.Module):
        self.step = 0
        self._run, self._team, self._loop, self._model = run, team, loop, model
        self._saved_step, self._saved_at = 0, time.monotonic()

    def resume(self, optimizer: torch.optim.Optimizer, meter: Meter, clock: Clock, say: Callable[[str], None]) -> None:
        """Take over the newest checkpoint that is whole, if there is one; raises if it is of another architecture."""
        self._optimizer, self._meter, self._clock = optimizer, meter, clock
        before = 0.0
        if self._run is not None and (checkpoint := self._newest(say)) is not None:
            state = checkpoint.state()
            restore_model(self._model, checkpoint.tensors(), checkpoint.path)
            restore_optimizer(optimizer, state["optimizer"], checkpoint.path)
            meter.restore(state["meter"])
            self.step = self._saved_step = checkpoint.step
            before = state["seconds"]
            say(f"going on from {checkpoint.path}")
        clock.start(before)

    def _newest(self, say: Callable[[str], None]):
        # One process reads the checksums; all of them take the checkpoint that it found.
        return self._team.share(self._run.latest(say) if self._team.is_main else None)

    def due(self) -> bool:
        """True if the step or the time asks for a checkpoint now."""
        loop = self._loop
        by_step = loop.checkpoint_every > 0 and self.step % loop.checkpoint_every == 0
        minutes = (time.monotonic() - self._saved_at) / 60
        return self._run is not None and (by_step or 0 < loop.checkpoint_minutes <= minutes)

    def save(self) -> None:
        """Write a checkpoint of this step, unless it is there."""
        if self._run is not None and self._team.is_main and self.step != self._saved_step:
            memory = optimizer_state(self._optimizer)
            state = {"optimizer": memory, "seconds": self._clock.seconds, "meter": self._meter.state()}
            self._run.save(self.step, self._model, state, self._loop.keep)
        self._team.wait()
        self._saved_step, self._saved_at = self.step, time.monotonic()
