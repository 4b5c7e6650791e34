"""`mmssl demo`: record, pretrain, judge and report, in minutes, on real frames of robots at work.

Each stage is a verb of its own (`mmssl record`, `pretrain`, `probe`, `report`) with settings that fit the budget.
An interrupted demo goes on where it stopped when the same command is typed again.
"""

import dataclasses
import json
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl import paths
from mmssl.config import load_config, to_dict
from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from mmssl.data.dataset import Dataset
    from mmssl.training.pretrain import PretrainConfig

RECIPE = "mae/pretrain_tiny_demo"
ARMS = (
    "metaworld/drawer-open",
    "metaworld/button-press-topdown",
    "metaworld/reach",
    "metaworld/push",
    "metaworld/pick-place",
    "metaworld/door-open",
    "metaworld/drawer-close",
    "metaworld/window-open",
    "metaworld/peg-insert-side",
    "metaworld/faucet-open",
)
WALKERS = ("dmc/cheetah-run", "gym/Ant-v5")
"""Tasks whose states have another length than Meta-World's: they are in the pretraining and in the task probe."""


@dataclass(frozen=True)
class Plan:
    """What fits into a budget of so many seconds.

    The share of pretraining and the number of episodes depend on the budget alone, so that the same command means the
    same data; only the number of steps is measured.
    """

    budget: float

    @property
    def is_tiny(self) -> bool:
        return self.budget < 120

    @property
    def tasks(self) -> tuple[str, ...]:
        return (*ARMS[:2], WALKERS[0]) if self.is_tiny else ARMS + WALKERS

    @property
    def episodes(self) -> int:
        return 8 if self.is_tiny else max(8, min(40, round(self.budget / 15)))

    @property
    def pretraining(self) -> float:
        """Seconds of pretraining, at most."""
        return 0.25 * self.budget if self.is_tiny else 0.5 * self.budget

    @property
    def judging(self) -> float:
        """Seconds that are kept for the stages after pretraining."""
        return 0.25 * self.budget if self.is_tiny else 0.22 * self.budget

    @property
    def samples(self) -> int:
        """Samples of the training and of the held-out part that probes use, at most."""
        return 96 if self.is_tiny else 2500


class Clock:
    """Announces stages, and keeps the seconds that each took in the run's timing.json."""

    def __init__(self, budget: float, stages: tuple[str, ...]):
        self.budget, self.stages, self.began = budget, stages, time.monotonic()
        self.seconds: dict[str, float] = {}

    def left(self) -> float:
        return self.budget - (time.monotonic() - self.began)

    def start(self, stage: str, what: str) -> None:
        place = f"{self.stages.index(stage) + 1}/{len(self.stages)}"
        print(f"\n[{place}] {stage}: {what} ({words_for(max(0.0, self.left()))} left)", flush=True)
        self._stage, self._since = stage, time.monotonic()

    def stop(self) -> None:
        self.seconds[self._stage] = round(time.monotonic() - self._since, 2)

    def save(self, run: Path) -> None:
        """Add the stages of this process to those that an interrupted one had written, in their order."""
        path = run / "timing.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
        joined = {**before, **self.seconds}
        path.write_text(json.dumps({k: joined[k] for k in self.stages if k in joined}, indent=1) + "\n")


def demo(budget: str = "6m", run: Path | None = None, workers: int = 2, seed: int = 0, overwrite: bool = False) -> Path:
    """Record real frames, pretrain a small MAE on them, judge it on held-out episodes, and write a report.

    The same command goes on where an interrupted one stopped.

    Args:
        budget: Time that all of it may take: 30s, 6m, 1h.
        run: Run folder; runs/demo by default.
        workers: Processes that record.
        seed: Seed of the recording, the weights, the data order and the masks.
        overwrite: Start again where the run folder holds an earlier demo.
    """
    plan = Plan(parse_budget(budget))
    run = run or paths.runs_dir() / "demo"
    clock = Clock(plan.budget, ("record", "pretrain", "judge", "report"))
    if overwrite:
        _clear(run)
    config = _planned(plan, run, seed)  # before any work: another run may be in the folder
    _record_stage(plan, clock, workers, seed)
    _pretrain_stage(plan, run, clock, config, seed)
    _judge_stage(plan, run, clock, seed)
    clock.start("report", "one page with everything")
    from mmssl.report.html import write_report
    from mmssl.report.reading import read_run
    from mmssl.report.words import headline, probe_summary

    clock.save(run)
    page = write_report(run)
    files = read_run(run)
    summary = probe_summary(files.probes)
    print(f"\n{headline(files).title}.", *([summary.text] if summary else []))
    print(f"{words_for(time.monotonic() - clock.began)} in all. Open {page.resolve()}")
    return page


def parse_budget(text: str) -> float:
    """Seconds of "30s", "6m", "1.5h" or "45" (seconds); an `MmsslError` under 20 seconds or for other words."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|sec|min)?\s*", text)
    if not found:
        raise MmsslError(f"--budget must be a time such as 30s, 6m or 1h, got {text!r}.")
    seconds = float(found[1]) * {"m": 60, "min": 60, "h": 3600}.get(found[2] or "s", 1)
    if seconds < 20:
        raise MmsslError(f"--budget must be at least 20s, got {text!r}: every stage needs a few seconds.")
    return seconds


def words_for(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def recordings_dir(plan: Plan, seed: int) -> Path:
    """Where the recordings are kept, to be used again by the next demo with the same tasks, episodes and seed."""
    return paths.cache_dir() / "demo" / f"{len(plan.tasks)}-tasks-{plan.episodes}-episodes-seed-{seed}"


def _clear(run: Path) -> None:
    """Delete an earlier demo, but nothing that is not a run folder."""
    if run.is_dir() and any(run.iterdir()):
        if not (run / "config.yaml").is_file():
            raise MmsslError(f"{run} is not empty and holds no run: give another folder with --run.")
        shutil.rmtree(run)


def _record_stage(plan: Plan, clock: Clock, workers: int, seed: int) -> None:
    from mmssl.recording import record

    clock.start("record", f"{plan.episodes} episodes of each of {len(plan.tasks)} tasks")
    record(
        plan.tasks,
        episodes=plan.episodes,
        size=(64, 64),
        noise=0.1,
        randomize=0.5,
        steps=60 if plan.is_tiny else 160,
        every=4,
        workers=workers,
        seed=seed,
        out=recordings_dir(plan, seed),
    )
    clock.stop()


def _folders(plan: Plan, seed: int, tasks: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(recordings_dir(plan, seed) / "mmssl" / f"{task}-v0") for task in tasks if task in plan.tasks)


def _planned(plan: Plan, run: Path, seed: int) -> "PretrainConfig":
    """The configuration of pretraining: that of the interrupted demo, or the recipe whose steps are not yet known."""
    from mmssl.training.pretrain import PretrainConfig

    config = _config(plan, seed)
    before = run / "config.yaml"
    return _continued(config, load_config(PretrainConfig, before), run) if before.is_file() else config


def _pretrain_stage(plan: Plan, run: Path, clock: Clock, config: "PretrainConfig", seed: int) -> None:
    from mmssl.training.pretrain import pretrain

    if (run / "config.yaml").is_file():
        clock.start("pretrain", f"{config.loop.steps:,} steps, going on where it stopped")
    else:
        clock.start("pretrain", "measuring the speed")
        seconds = min(plan.pretraining, clock.left() - plan.judging)
        config = fitted(config, max(seconds, 0.1 * plan.budget))
        print(f"{config.loop.steps:,} steps of {config.loop.batch_size} frames", flush=True)
    pretrain(config, run)
    clock.stop()
    clock.save(run)
    if Path(sys.argv[0]).name != "mmssl":  # called from Python, where no command line says it
        (run / "command.txt").write_text(f"mmssl demo --budget {plan.budget:g}s --seed {seed}\n")


def _config(plan: Plan, seed: int) -> "PretrainConfig":
    """The demo's recipe on the demo's recordings; the number of steps is still the recipe's."""
    from mmssl.training.pretrain import PretrainConfig

    config = load_config(PretrainConfig, paths.find_resource("configs", RECIPE))
    data = dataclasses.replace(config.data, source=_folders(plan, seed, plan.tasks), cache="memory")
    loop = dataclasses.replace(config.loop, seed=seed, max_minutes=plan.pretraining / 60)
    if plan.is_tiny:  # fewer frames than a full batch
        loop = dataclasses.replace(loop, batch_size=64)
    return dataclasses.replace(config, data=data, loop=loop)


def _with_steps(config: "PretrainConfig", steps: int) -> "PretrainConfig":
    """The recipe cut to so many steps, with a warm-up of at most a tenth of them."""
    loop = dataclasses.replace(config.loop, steps=steps, epochs=None, log_every=max(1, min(20, steps // 50)))
    warmup = min(config.optim.warmup_steps or steps, max(1, steps // 10))
    optim = dataclasses.replace(config.optim, warmup_steps=warmup, warmup_epochs=None)
    return dataclasses.replace(config, loop=loop, optim=optim)


def _continued(wanted: "PretrainConfig", before: "PretrainConfig", run: Path) -> "PretrainConfig":
    """The configuration of the demo that was interrupted, if it is the one that is asked for."""
    wanted = _with_steps(wanted, before.loop.steps or 1)
    if to_dict(wanted) != to_dict(before):
        raise MmsslError(
            f"{run} holds a run with other settings (another budget, seed or version): "
            "give --overwrite to start again, or another folder with --run."
        )
    return before


def fitted(config: "PretrainConfig", seconds: float) -> "PretrainConfig":
    """The recipe with as many steps as fit into so many seconds, from a short training that is thrown away."""
    from mmssl.methods.base import create_method

    size = create_method(config.method).encoder.tokenizers["image"].config.image_size
    dataset = dataclasses.replace(config.data, image_size=size, target="none").open()
    steps = int(0.95 * seconds * _images_per_second(config, dataset) / config.loop.batch_size)
    return _with_steps(config, max(10, steps // 10 * 10))


def _images_per_second(config: "PretrainConfig", dataset: "Dataset") -> float:
    from mmssl.methods.base import create_method
    from mmssl.training.loop import fit

    trial = _with_steps(config, 10)
    # The last record is of the second half, without the slow first steps.
    loop = dataclasses.replace(trial.loop, log_every=5, max_minutes=None)
    result = fit(create_method(config.method), dataset, loop, trial.optim, config.data.augmentation, quiet=True)
    result.leave()  # where Ctrl-C came meanwhile
    return result.metrics["images_per_second"]


def _judge_stage(plan: Plan, run: Path, clock: Clock, seed: int) -> None:
    from mmssl.evaluation.probe import probe

    clock.start("judge", "on episodes that it never saw, beside a random encoder and raw pixels")
    # Several random encoders: a win by less than their spread is none.
    shared = {"limit": plan.samples, "seed": seed, "random_seeds": 3, "options": ("knn.k=[20]",)}
    alone = {**shared, "reconstruction": False}
    probe(str(run), data=_folders(plan, seed, ARMS), target="state", evaluators=("ridge:grid4",), **alone)
    if not plan.is_tiny:
        probe(str(run), target="task", evaluators=("ridge:grid4",), labels_per_class=10, draws=3, **alone)
    probe(str(run), target="task", evaluators=("knn",), **shared)
    clock.stop()
    clock.save(run)
