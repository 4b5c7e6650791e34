"""What a run of reinforcement learning writes down: metrics.jsonl, evaluations.jsonl and tensorboard."""

import contextlib
import json
import time
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.training.checkpoint import RunFolder
from mmssl.training.logging import kept_records


class Means:
    """Means of scalars since the last record, summed where they are, so that no step waits for a device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, scalars: dict[str, Tensor | float]) -> None:
        for name, value in scalars.items():
            value = torch.as_tensor(value, dtype=torch.float32).detach()
            if name in self.sums:
                self.sums[name] += value
                self.counts[name] += 1
            else:  # a copy: a captured update writes its scalars to the same place each time
                self.sums[name], self.counts[name] = value.clone(), 1

    def values(self) -> dict[str, float]:
        """The means, in one transfer."""
        if not self.sums:
            return {}
        device = next((value.device for value in self.sums.values() if value.device.type != "cpu"), "cpu")
        sums = torch.stack([value.to(device) for value in self.sums.values()]).tolist()
        return {name: total / self.counts[name] for name, total in zip(self.sums, sums, strict=True)}

    def spoiled(self) -> str | None:
        """The name of a scalar that is not finite."""
        return next((name for name, value in self.values().items() if not isfinite(value)), None)

    def clear(self) -> None:
        self.sums, self.counts = {}, {}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any], device: str) -> None:
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])


class Ended:
    """Training episodes that ended since the last record; `success` where the task has such a thing."""

    def __init__(self, with_success: bool) -> None:
        self.names = ("return", "length", "success")[: 2 + with_success]
        self.rows: list[list[float]] = []  # return, length, success

    def add(self, infos: dict[str, Any]) -> None:
        """Take note of the ends in a world's infos."""
        rows, episode = np.flatnonzero(infos["_episode"]), infos["episode"]
        self.rows += [[float(episode[key][i]) for key in ("r", "l", "success")] for i in rows.tolist()]

    def values(self) -> dict[str, float]:
        """Means of `return`, `length` and `success`, and how many `episodes`; where there were none, that alone."""
        means = np.mean(self.rows, axis=0).tolist() if self.rows else []
        return {**dict(zip(self.names, means, strict=False)), "episodes": len(self.rows)}


class Stopwatch:
    """Seconds of training; evaluations and saving stand aside."""

    def __init__(self, before: float = 0.0):
        self._zero = time.perf_counter() - before

    def read(self) -> float:
        return time.perf_counter() - self._zero

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Time inside the block does not count."""
        began = time.perf_counter()
        yield
        self._zero += time.perf_counter() - began


class ControlLog:
    """Context that writes a run's records; those of steps beyond `start`, of an interrupted process, are dropped.

    Args:
        run: the run folder, or None to write no file.
        start: environment steps done before.
    """

    def __init__(self, run: RunFolder | None, start: int):
        self._files: dict[str, Any] = {}
        self._board = None
        if run is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        for kind in ("metrics", "evaluations"):
            self._files[kind] = open(kept_records(getattr(run, kind), start), "a")  # noqa: SIM115 (closed in __exit__)
        self._board = SummaryWriter(str(run.tensorboard), purge_step=start + 1 if start else None)

    def __enter__(self) -> "ControlLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()
        if self._board is not None:
            self._board.close()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._write("metrics", {"step": step, **values}, values)

    def evaluation(self, record: dict[str, Any]) -> None:
        """A record of evaluations.jsonl: step, returns, lengths, successes where the task has such, seconds."""
        shown = {"evaluation/return": np.mean(record["returns"]), "evaluation/length": np.mean(record["lengths"])}
        if "successes" in record:
            shown["evaluation/success"] = np.mean(record["successes"])
        self._write("evaluations", record, shown)

    def _write(self, kind: str, record: dict[str, Any], shown: dict[str, float]) -> None:
        if not self._files:
            return
        self._files[kind].write(json.dumps(record) + "\n")
        self._files[kind].flush()
        for name, value in shown.items():
            self._board.add_scalar(name, value, record["step"])


def read_records(path: Path, until: int) -> list[dict[str, Any]]:
    """The records of a file of JSON lines up to a step."""
    lines = kept_records(path, until).read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]
