"""`mmssl rl`: an algorithm on a task with several seeds, in a run folder with a folder `seed-<s>/` for each."""

import contextlib
import dataclasses
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from mmssl import paths
from mmssl.config import read_yaml, to_dict
from mmssl.control.base import Spaces
from mmssl.control.offline import read_offline
from mmssl.control.rl_config import RLConfig
from mmssl.control.saving import seed_folders
from mmssl.control.seeds import Outcome, at_once, run_seeds
from mmssl.control.worlds import load_encoder, make_algorithm, make_world, settled
from mmssl.errors import MmsslError
from mmssl.report.control import amount, between, common_end, final_scores, over_seeds, write_report
from mmssl.report.seeds import read_control_run
from mmssl.training import atomic
from mmssl.training.checkpoint import RunFolder
from mmssl.training.logging import say

# What makes a run that run: none of it can change on the way.
_FIXED = ("task", "n_envs", "observe", "proprio", "cameras", "size", "frame_stack", "action_repeat", "faithful")
_FIXED += ("encoder", "keep_obs", "pooling", "feature_stack", "algorithm.name", "offline")


def rl(config: RLConfig, run: Path | None = None, overwrite: bool = False) -> Path:
    """Train every seed of a recipe, side by side in processes of their own, or go on where the run folder holds a part.

    Args:
        config: the recipe; `seeds` are trained, or `seed` where there are none.
        run: the run folder; `runs/<algorithm>-<task>` if not given.
        overwrite: delete what an earlier run left in the folder.

    Returns:
        The run folder.

    Raises:
        MmsslError: wrong settings or another run in the folder, before anything is written; seeds that failed, after
            the others are done.
        SystemExit: the run was stopped by Ctrl-C or SIGTERM, after checkpoints were written.
    """
    config = config.resolved()
    config = dataclasses.replace(config, seeds=config.seeds or (config.seed,))
    config = _try(config)
    folder = RunFolder(run or paths.runs_dir() / f"{config.algorithm.name}-{config.task.replace('/', '-')}")
    with folder.lock():
        _start(folder, overwrite)
        _write_config(config, folder)
        _finish(folder, run_seeds(config, folder.path))
    return folder.path


def _try(config: RLConfig) -> RLConfig:
    """Make the world and the algorithm once, so that what is wrong is said before anything is written.

    Returns:
        The config with what its encoder decides.
    """
    encoder = load_encoder(config)
    config = settled(config, encoder)
    with contextlib.closing(make_world(config, config.n_envs, config.seed, encoder)) as world:
        own, spaces = config, Spaces(**world.spaces())
        if config.offline is not None:
            own, spaces, _ = read_offline(config, world)
        algorithm = make_algorithm(own, spaces, encoder, world)
    if (replay := getattr(algorithm, "replay", None)) is not None:
        replay.check_room(at_once(config))
    return config


def _start(folder: RunFolder, overwrite: bool) -> None:
    """Make the folder ready; with `overwrite`, delete what an earlier run left in it."""
    ours = folder.config.is_file()
    folder.start(overwrite)
    with contextlib.suppress(OSError):
        folder.checkpoints.rmdir()  # those of the seeds are in their own folders
    for seed in seed_folders(folder.path) if overwrite and ours else []:
        shutil.rmtree(seed)


def _write_config(config: RLConfig, folder: RunFolder) -> None:
    """Write config.yaml; where one is there, say which settings are not what they were."""
    now = to_dict(config)
    if folder.config.is_file():
        before, new = _flat(read_yaml(folder.config)), _flat(now)
        changed = [name for name in new if name in before and before[name] != new[name]]
        if fixed := [name for name in changed if name in _FIXED]:
            raise MmsslError(
                f"{folder.path} holds a run with {fixed[0]} {before[fixed[0]]}, not {new[fixed[0]]}; choose another "
                "folder with --run, or start again with --overwrite."
            )
        for name in changed:
            say(f"{folder.path}: {name} was {before[name]} and is {new[name]} from here on.")
    atomic.write_text(folder.config, yaml.safe_dump(now, sort_keys=False, width=120))
    if Path(sys.argv[0]).name == "mmssl":
        atomic.write_text(folder.command, shlex.join(["mmssl", *sys.argv[1:]]) + "\n")


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """A tree of settings by dotted names."""
    if not isinstance(tree, dict):
        return {name: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{name}.{key}".lstrip(".")).items()}


def table(run: Path) -> str:
    """The returns of a run's seeds at the last evaluation that all have had, and their best ones, as text."""
    files = read_control_run(run)
    until = common_end(files)
    if until is None:
        return f"{run}: no evaluation yet."
    rows = [(str(seed.seed), *_amounts(final_scores(seed, until))) for seed in files.judged]
    if len(rows) > 1:
        over = {which: over_seeds(files, until, which) for which in ("last", "best")}
        rows.append(("IQM", *_amounts({which: interval.value for which, interval in over.items()})))
        if between(over["last"]):
            rows.append(("95%", *(between(interval) for interval in over.values())))
    cells = [("seed", f"return at {until:,}", "best"), *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in cells)


def _amounts(scores: dict[str, float]) -> tuple[str, str]:
    return amount(scores["last"]), amount(scores["best"])


def _finish(folder: RunFolder, outcomes: list[Outcome]) -> None:
    """Say how it went: the report, the seeds that failed, how to go on."""
    stopped = max((o.signal for o in outcomes), default=0)
    failed = [o for o in outcomes if o.error is not None]
    if any(o.steps for o in outcomes):
        print(table(folder.path))
        say(f"rl: {sum(o.finished for o in outcomes)} of {len(outcomes)} seeds done; see {write_report(folder.path)}")
    for outcome in failed:
        say(f"seed {outcome.seed} failed: {outcome.error}")
    if stopped:
        steps = ", ".join(f"{o.steps:,}" for o in outcomes)
        say(f"stopped at step {steps} and saved; the same command goes on from there.")
        sys.exit(128 + stopped)
    if failed:
        names = ", ".join(str(o.seed) for o in failed)
        raise MmsslError(f"{len(failed)} of {len(outcomes)} seeds failed ({names}); the same command tries them again.")
