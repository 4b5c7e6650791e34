"""`mmssl pretrain`: a method, data and a loop make a run folder."""

import contextlib
import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import yaml

from mmssl import paths
from mmssl.config import read_yaml, to_dict
from mmssl.data.loading import DataConfig, Dataset
from mmssl.data.vetting import vet_once
from mmssl.methods.base import Method, MethodConfig, create_method
from mmssl.training import atomic
from mmssl.training.asked import as_asked, check_data, settle_statistics
from mmssl.training.checkpoint import RunFolder, check_architecture
from mmssl.training.distributed import Processes, seed_all
from mmssl.training.logging import say
from mmssl.training.loop import FitResult, LoopConfig, fit
from mmssl.training.optim import OptimConfig
from mmssl.training.pictures import save_pictures
from mmssl.weights.export import export_encoder
from mmssl.weights.init import load_into


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining recipe."""

    method: MethodConfig
    """what is learned: the method's name and its settings"""
    loop: LoopConfig
    """how long, and with which batches"""
    data: DataConfig = field(default_factory=DataConfig)
    """on what; `--data` on the command line sets data.source. What they do not say, the method does: image_size, of
    sound audio.sample_rate and audio.seconds (as many as fill its spectrogram), of captions text, and of recorded data
    cameras and extras"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """how the weights are updated"""


def pretrain(
    config: PretrainConfig,
    run: Path | None = None,
    overwrite: bool = False,
    init: str | Path | None = None,
    shared_only: bool = False,
) -> RunFolder:
    """Run a recipe, or go on with it where the run folder holds a part of it.

    Args:
        config: the recipe.
        run: the run folder; `runs/<method>` if not given.
        overwrite: delete what an earlier run left in the folder.
        init: start from these weights: whatever `mmssl.load_method` or `mmssl.load` takes.
        shared_only: take from `init` what it shares with the recipe's method, where they are of other modalities
            (`--init-shared`).

    Returns:
        The run folder, with the encoder for users in `export/`, pictures in `figures/` and `report.html`.

    Raises:
        MmsslError: wrong settings, no data, another run in the folder, a loss that is not finite, a full disk.
        SystemExit: the run was stopped by Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    folder = RunFolder(run if run is not None else paths.runs_dir() / config.method.name)
    team = Processes(config.loop.device, config.loop.precision)
    with folder.lock():
        folder.start(overwrite)
        team.wait()  # until the main process has made the folder ready
        _pretrain(config, folder, init, team, shared_only)
    return folder


def _pretrain(
    config: PretrainConfig, run: RunFolder, init: str | Path | None, team: Processes, shared_only: bool
) -> None:
    """Train, and in the main process write everything that users look at."""
    seed_all(config.loop.seed)
    method = create_method(config.method)
    tell = say if team.is_main else _silence
    data = as_asked(method, dataclasses.replace(config.data, target=config.data.target or "none"), tell)
    dataset = data.open()
    check_data(method, dataset)
    if data.vet:
        vet_once(dataset, run.skipped, config.loop.workers or None, say, team.is_main)
    if not run.all_checkpoints():  # the weights that a run goes on from, and those of --init, have their own
        settle_statistics(method, dataset, tell)
    if init is not None and run.all_checkpoints():
        say(f"{run.path} holds a checkpoint: going on from it, --init {init} is not read again.")
    elif init is not None:
        say(load_into(method, init, shared_only))
    if team.is_main:
        _check_newest(method, run)
        _write_config(config, run)
    result = fit(method, dataset, config.loop, config.optim, data.augmentation, run, label="pretrain")
    if not team.is_main:
        return
    _tell_bad_files(dataset)
    if result.signal:
        say(f"stopped at step {result.steps} of {result.total} and saved; the same command goes on from there.")
        result.leave()
    _finish(method, config, data, run, result)


def _check_newest(method: Method, run: RunFolder) -> None:
    """Refuse another architecture before anything is written. Damaged checkpoints are dealt with when they are read."""
    for checkpoint in run.all_checkpoints()[-1:]:
        with contextlib.suppress(OSError, safetensors.SafetensorError):
            check_architecture(method, checkpoint.shapes(), checkpoint.path)


def _write_config(config: PretrainConfig, run: RunFolder) -> None:
    """Write config.yaml; where one is there, say which settings are not what they were."""
    now = to_dict(config)
    if run.config.is_file() and run.all_checkpoints():
        before = read_yaml(run.config)
        for name, old, new in _changes(before, now):
            say(f"{run.path}: {name} was {old} and is {new} from here on.")
    atomic.write_text(run.config, yaml.safe_dump(now, sort_keys=False, width=120))
    if Path(sys.argv[0]).name == "mmssl":
        atomic.write_text(run.command, shlex.join(["mmssl", *sys.argv[1:]]) + "\n")


def _changes(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [k for k in now if k in before]
        return [c for k in keys for c in _changes(before[k], now[k], f"{name}.{k}".lstrip("."))]
    return [] if before == now else [(name, before, now)]


def _tell_bad_files(dataset: Dataset) -> None:
    if dataset.bad.count:
        names = ", ".join(list(dataset.bad.names)[:5])
        say(f"{dataset.bad.count} unreadable files were left out: {names}")
    if dataset.text_encoder is not None and dataset.text_encoder.cut:
        length = dataset.text_encoder.encoding.length
        say(f"texts were cut {dataset.text_encoder.cut} times: they have more than {length} tokens (data.text.length)")


def _finish(method: Method, config: PretrainConfig, data: DataConfig, run: RunFolder, result: FitResult) -> None:
    """export/, figures/, timing.json and report.html."""
    method.cpu().eval()
    with atomic.atomic_folder(run.export) as folder:
        export_encoder(method.encoder, folder, to_dict(config), shown_as=run.export)
    save_pictures(method, data, run.figures)
    before = json.loads(run.timing.read_text()) if run.timing.is_file() else {}
    atomic.write_text(run.timing, json.dumps({**before, "pretrain": round(result.seconds, 2)}, indent=1) + "\n")
    from mmssl.report.html import write_report

    say(f"pretrain: {result.steps} steps in {result.seconds / 60:.1f} minutes; see {write_report(run.path)}")


def _silence(sentence: str) -> None:
    """Where nothing is to be said."""
