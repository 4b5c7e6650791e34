"""`mmssl demo`: record, pretrain, judge and report, in minutes, on robots at work.

Its first half is about pictures: a small MAE, judged by probes. Its second half (`mmssl.demo_trajectories`) is about
what robots do: a small MTM that acts. Each stage is a verb of its own (`mmssl record`, `pretrain`, `probe`, `report`)
with settings that fit the budget. An interrupted demo goes on where it stopped when the same command is typed again.
"""

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl import demo_trajectories as trajectories
from mmssl import paths
from mmssl.config import load_config
from mmssl.demo_fitting import fitted, planned
from mmssl.demo_plan import ARMS, Clock, Plan, parse_budget, words_for
from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from mmssl.training.pretrain import PretrainConfig

RECIPE = "mae/pretrain_tiny_demo"
STAGES = ("record", "pretrain", "judge", *trajectories.STAGES, "report")


def demo(budget: str = "8m", run: Path | None = None, workers: int = 2, seed: int = 0, overwrite: bool = False) -> Path:
    """Pretrain a small MAE on frames of robots and a small MTM on what experts do, judge both, and write a report.

    The MAE is judged on held-out episodes, the MTM acts in the simulator beside a random policy and the expert.

    The same command goes on where an interrupted one stopped.

    Args:
        budget: Time that all of it may take: 30s, 8m, 1h.
        run: Run folder; runs/demo by default.
        workers: Processes that record.
        seed: Seed of the recording, the weights, the data order and the masks.
        overwrite: Start again where the run folder holds an earlier demo.
    """
    plan = Plan(parse_budget(budget))
    run = run or paths.runs_dir() / "demo"
    clock = Clock(plan.budget, STAGES)
    if overwrite:
        _clear(run)
    config = planned(_config(plan, seed), run)  # before any work: another run may be in the folder
    skills = planned(trajectories.recipe(plan, seed), run / trajectories.FOLDER)
    _record_stage(plan, clock, workers, seed)
    _pretrain_stage(plan, run, clock, config, seed)
    _judge_stage(plan, run, clock, seed)
    trajectories.second_half(plan, run, clock, skills, workers, seed)
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


def _pretrain_stage(plan: Plan, run: Path, clock: Clock, config: "PretrainConfig", seed: int) -> None:
    from mmssl.training.pretrain import pretrain

    if (run / "config.yaml").is_file():
        clock.start("pretrain", f"{config.loop.steps:,} steps, going on where it stopped")
    else:
        clock.start("pretrain", "measuring the speed")
        seconds = min(plan.pretraining, clock.left() - plan.judging - plan.imitating - plan.acting)
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
