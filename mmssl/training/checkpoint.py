"""The run folder, and checkpoints in it that are whole or not there.

A checkpoint is a folder `checkpoints/step_00001000/` with three files: `model.safetensors` (every parameter and
buffer), `state.pt` (optimizer, time and meters: plain tensors and numbers, read with `torch.load(weights_only=True)`)
and `manifest.json` (the step, and size and SHA-256 of the other two). No file holds pickled code.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.training import atomic
from mmssl.training.lock import folder_lock, is_main_process

_OURS = ["config.yaml", "command.txt", "metrics.jsonl", "evaluations.jsonl", "tensorboard", "checkpoints", "export"]
_OURS += ["figures", "report.html", "scores.json", "trajectories.json", "timing.json", "skipped.txt"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk: its folder and the number of steps done."""

    path: Path
    step: int

    def damage(self) -> str | None:
        """What is wrong with the files, or None if they are as they were written."""
        try:
            files = json.loads((self.path / "manifest.json").read_text())["files"]
        except (OSError, ValueError, KeyError) as error:
            return f"its manifest cannot be read ({error})"
        for name, expected in files.items():
            file = self.path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes of {expected['bytes']}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} is not what was written (checksum)"
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, on the CPU."""
        return safetensors.torch.load_file(self.path / "model.safetensors")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of parameters and buffers by name; reads the file's head alone."""
        with safetensors.safe_open(self.path / "model.safetensors", framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def state(self) -> dict[str, Any]:
        """Everything but the model, on the CPU."""
        return torch.load(self.path / "state.pt", weights_only=True, map_location="cpu")


class RunFolder:
    """A folder `runs/<name>/` and the names in it."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.export = self.path / "export"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"
        self.timing = self.path / "timing.json"
        self.command = self.path / "command.txt"
        self.skipped = self.path / "skipped.txt"

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder against other processes; makes it if need be."""
        return folder_lock(self.path)

    def start(self, overwrite: bool = False) -> None:
        """Make the folder ready; with `overwrite`, delete what an earlier run left in it. Call it under `lock`.

        In a distributed run the main process does it, and the others return at once.
        """
        if not is_main_process():
            return
        if self.path.is_file():
            raise MmsslError(f"{self.path} is a file; a run needs a folder, choose another name with --run.")
        strangers = [p.name for p in self.path.glob("*") if p.name not in _OURS and not p.name.startswith(".")]
        if strangers and not self.config.is_file():
            raise MmsslError(
                f"{self.path} holds {strangers[0]!r} and no config.yaml: it is not a run folder; "
                "choose a new or empty one with --run."
            )
        if overwrite:
            self._clear()
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.checkpoints):
            atomic.clean(folder)

    def _clear(self) -> None:
        for name in _OURS:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
            else:
                (self.path / name).unlink(missing_ok=True)

    def all_checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint with a complete name, oldest first, unchecked."""
        found = [(p.name.removeprefix("step_"), p) for p in self.checkpoints.glob("step_*") if p.is_dir()]
        return [Checkpoint(p, int(n)) for n, p in sorted(found) if n.isdigit()]

    def latest(self, say: Callable[[str], None] = print) -> Checkpoint | None:
        """Newest checkpoint whose checksums hold; `say` is told about each damaged one that is passed over."""
        damaged = []
        for checkpoint in reversed(self.all_checkpoints()):
            reason = checkpoint.damage()
            if reason is None:
                return checkpoint
            damaged.append(f"{checkpoint.path} is damaged: {reason}")
            say(f"{damaged[-1]}; trying the one before it.")
        if damaged:
            raise MmsslError(f"no checkpoint in {self.path} can be read ({damaged[0]}); start again with --overwrite.")
        return None

    def save(self, step: int, model: nn.Module, state: dict[str, Any], keep: int) -> Checkpoint:
        """Write a checkpoint of `step`, then delete all but the newest `keep`.

        Raises an `MmsslError` if the disk is full; the older checkpoints are then still there.
        """
        tensors = model_tensors(model)
        size = int(1.05 * (_bytes(tensors) + _bytes(state))) + 1_000_000
        atomic.need_space(self.path, size, f"the checkpoint of step {step}")
        final = self.checkpoints / f"step_{step:08d}"
        try:
            with atomic.atomic_folder(final) as folder:
                safetensors.torch.save_file(tensors, folder / "model.safetensors")
                torch.save(state, folder / "state.pt")
                (folder / "manifest.json").write_text(json.dumps({"step": step, "files": _manifest(folder)}, indent=1))
        except Exception as error:
            if atomic.is_no_space(error):
                raise atomic.no_space(self.path, f"the checkpoint of step {step}", size) from None
            raise
        for old in self.all_checkpoints()[: -max(keep, 1)]:
            atomic.remove_folder(old.path)
        return Checkpoint(final, step)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, contiguous, on the CPU; tied ones are written twice, as safetensors demands."""
    seen: set[int] = set()
    tensors = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        tied = value.untyped_storage().data_ptr() in seen
        tensors[name] = value.clone() if tied else value
        seen.add(value.untyped_storage().data_ptr())
    return tensors


def restore_model(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy `tensors` into the model; an `MmsslError` that names what differs if they are of another architecture."""
    check_architecture(model, {name: tuple(value.shape) for name, value in tensors.items()}, source)
    model.load_state_dict(tensors)


def check_architecture(model: nn.Module, shapes: dict[str, tuple[int, ...]], source: Path) -> None:
    """Raise an `MmsslError` that names what differs if the tensors in `source` are not those of the model."""
    mine = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differences = [f"{k} is only in the checkpoint" for k in shapes if k not in mine]
    differences += [f"{k} is only in the model" for k in mine if k not in shapes]
    differences += [
        f"{k} is {shapes[k]} in the checkpoint and {shape} in the model"
        for k, shape in mine.items()
        if k in shapes and shapes[k] != shape
    ]
    if differences:
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise MmsslError(
            f"{source} is a checkpoint of another architecture: {'; '.join(differences[:4])}{more}. "
            "Use the recipe it was trained with, choose another folder with --run, or start again with --overwrite."
        )


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """The optimizer's memory of each parameter, by parameter name."""
    named = ((n, p) for g in optimizer.param_groups for n, p in zip(g["names"], g["params"], strict=True))
    return {name: dict(optimizer.state[p]) for name, p in named if p in optimizer.state}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, dict], source: Path) -> None:
    """Give the optimizer its memory back; rates and decays stay as the recipe of now says."""
    plain = optimizer.state_dict()
    names = [name for group in optimizer.param_groups for name in group["names"]]
    for name in state:
        if name not in names:
            raise MmsslError(f"{source} also trained {name!r}, which is frozen now; start again with --overwrite.")
    kind = type(optimizer).__name__
    wanted = {"AdamW": "exp_avg", "LARS": "momentum", "SGD": "momentum_buffer"}[kind]
    if any(wanted not in memory for memory in state.values()):
        raise MmsslError(f"{source} was written by another optimizer than {kind}; keep optim.name or use --overwrite.")
    plain["state"] = {i: state[name] for i, name in enumerate(names) if name in state}
    optimizer.load_state_dict(plain)


def _manifest(folder: Path) -> dict[str, dict]:
    files = sorted(p for p in folder.iterdir() if p.name != "manifest.json")
    return {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(tree: Any) -> int:
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    if isinstance(tree, dict):
        return sum(_bytes(value) for value in tree.values())
    return 64
