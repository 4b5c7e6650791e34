"""What a run says: metrics.jsonl and tensorboard in its folder, a bar on a terminal, a line now and then elsewhere."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmssl.training import atomic
from mmssl.training.checkpoint import RunFolder


class Meter:
    """Sums kept on the device between two logs, so that no step waits for a number."""

    def __init__(self, device: torch.device):
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._calls = 0

    def add(self, **values: Tensor | float) -> None:
        """Add scalars: the logged loss is the sum of "loss" over that of "count", the rest are means over the calls."""
        self._calls += 1
        for name, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float64 if self._device.type == "cpu" else torch.float32)
            value = value.detach().to(self._device, non_blocking=True)
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    def read(self) -> dict[str, float]:
        """Means since the last read, in one transfer, and an empty meter."""
        if not self._sums:
            return {}
        names, values = list(self._sums), torch.stack(list(self._sums.values())).tolist()
        sums = dict(zip(names, values, strict=True))
        calls, self._calls, self._sums = self._calls, 0, {}
        loss, count = sums.pop("loss"), sums.pop("count")
        return {
            "loss": loss / count if count else float("nan"),
            **{name: value / calls for name, value in sums.items()},
        }

    def state(self) -> dict[str, Any]:
        """The open sums, for a checkpoint."""
        return {"calls": self._calls, "sums": dict(self._sums)}

    def restore(self, state: dict[str, Any]) -> None:
        self._calls = state["calls"]
        self._sums = {name: value.to(self._device) for name, value in state["sums"].items()}


class RunLog:
    """Context that writes a run's metrics and shows its progress.

    Args:
        run: the run folder, or None to write no file.
        start: steps done before; metrics of later ones, which an interrupted process had written, are dropped.
        total: steps of the whole run.
        label: the word before the bar or the line.
        quiet: show nothing.
        unit: what a sample is called, "images" or "clips". The metric is `images_per_second` in any case.
    """

    def __init__(
        self,
        run: RunFolder | None,
        start: int,
        total: int,
        label: str = "train",
        quiet: bool = False,
        unit: str = "images",
    ):
        self._file = self._board = None
        if run is not None:
            self._file = open(kept_records(run.metrics, start), "a")  # noqa: SIM115 (closed in __exit__)
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run.tensorboard), purge_step=start + 1 if start else None)
        self._total, self._label, self._quiet, self._unit = total, label, quiet, unit
        self._on_terminal = sys.stderr.isatty()
        hidden = quiet or not self._on_terminal
        self._bar = tqdm(total=total, initial=start, desc=label, unit="step", disable=hidden, dynamic_ncols=True)
        self._began, self._start = time.monotonic(), start

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()
            self._board.close()

    def step(self) -> None:
        """One step is done."""
        self._bar.update(1)

    def say(self, sentence: str) -> None:
        """A sentence for the user, above the bar."""
        if not self._quiet:
            say(sentence)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics after `step` steps, to the files and the eye."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
        shown = f"loss {metrics['loss']:.4f}, lr {metrics['lr']:.2e}, {self._speed(metrics['images_per_second'])}"
        if self._on_terminal:
            self._bar.set_postfix_str(shown)
        else:
            self.say(f"{self._label}: step {step}/{self._total}, {shown}, {self._time_left(step)} left")

    def _speed(self, rate: float) -> str:
        return f"{rate:.0f} {self._unit}/s" if rate >= 10 else f"{rate:.1f} {self._unit}/s"

    def _time_left(self, step: int) -> str:
        rate = (time.monotonic() - self._began) / max(step - self._start, 1)
        return tqdm.format_interval(rate * (self._total - step))


def say(sentence: str) -> None:
    """A sentence on stderr, above the bar if there is one."""
    tqdm.write(sentence, file=sys.stderr)


def kept_records(path: Path, start: int) -> Path:
    """A file of JSON lines, after every record of a step beyond `start`, or cut short, has been dropped."""
    old = path.read_text().splitlines() if path.is_file() else []
    kept = [line for line in old if (step := _step_of(line)) is not None and step <= start]
    if kept != old:
        atomic.write_text(path, "".join(f"{line}\n" for line in kept))
    return path


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
