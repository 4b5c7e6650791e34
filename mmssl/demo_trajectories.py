"""The demo's second half: experts show a few tasks, one masked trajectory model learns from them, and then acts.

Its run folder is `trajectories/` in the demo's. What is hidden of a trajectory makes the model a policy: it sees the
states up to now and fills in the action.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmssl import paths
from mmssl.config import load_config
from mmssl.demo_fitting import fitted
from mmssl.demo_plan import Clock, Plan

if TYPE_CHECKING:
    from mmssl.training.pretrain import PretrainConfig

RECIPE = "mtm/pretrain_tiny_demo"
FOLDER = "trajectories"
STAGES = ("experts", "imitate", "act")
NOISE = 0.1
"""Of the experts' actions while they are recorded, so that the model sees how mistakes are mended."""


def second_half(plan: Plan, run: Path, clock: Clock, config: "PretrainConfig", workers: int, seed: int) -> None:
    """Record experts, train on what they did, and run what came of it: the stages STAGES.

    Args:
        run: the demo's folder.
        config: of the training: `recipe`, or what an interrupted demo left.
    """
    clock.start("experts", f"{plan.shown} episodes of each of {len(plan.skills)} tasks, states and actions alone")
    record_experts(plan, workers, seed)
    clock.stop()
    _imitate(plan, run / FOLDER, clock, config)
    clock.save(run)
    clock.start("act", f"{plan.tries} new episodes of each task, beside a random policy and the expert")
    act(plan, run / FOLDER, workers, seed)
    clock.stop()
    clock.save(run)


def experts_dir(plan: Plan, seed: int) -> Path:
    """Where the experts' recordings are kept for the next demo with the same tasks, episodes and seed."""
    return paths.cache_dir() / "demo" / f"{len(plan.skills)}-skills-{plan.shown}-episodes-seed-{seed}"


def record_experts(plan: Plan, workers: int, seed: int) -> None:
    from mmssl.recording import record

    record(
        plan.skills,
        episodes=plan.shown,
        pictures=False,
        policy="expert",
        noise=NOISE,
        steps=plan.horizon,
        workers=workers,
        seed=seed,
        out=experts_dir(plan, seed),
    )


def recipe(plan: Plan, seed: int) -> "PretrainConfig":
    """The demo's recipe on the experts' recordings; the number of steps is still the recipe's."""
    from mmssl.training.pretrain import PretrainConfig

    config = load_config(PretrainConfig, paths.find_resource("configs", RECIPE))
    folders = tuple(str(experts_dir(plan, seed) / "mmssl" / f"{skill}-v0") for skill in plan.skills)
    data = dataclasses.replace(config.data, source=folders)
    loop = dataclasses.replace(config.loop, seed=seed, max_minutes=plan.imitating / 60)
    return dataclasses.replace(config, data=data, loop=loop)


def _imitate(plan: Plan, run: Path, clock: Clock, config: "PretrainConfig") -> None:
    from mmssl.training.pretrain import pretrain

    if (run / "config.yaml").is_file():
        clock.start("imitate", f"{config.loop.steps:,} steps, going on where it stopped")
    else:
        clock.start("imitate", "one model for all of them; measuring the speed")
        seconds = min(plan.imitating, clock.left() - plan.acting)
        config = fitted(config, max(seconds, 0.05 * plan.budget))
        print(f"{config.loop.steps:,} steps of {config.loop.batch_size} stretches of {config.method.length} steps")
    pretrain(config, run)
    clock.stop()


def act(plan: Plan, run: Path, workers: int, seed: int) -> None:
    """Run the model, the expert and a random policy from the same starts, and fill in held-out episodes: `act.json`.

    What an earlier demo wrote of the same model stays.
    """
    from mmssl.control.movie import write_whole
    from mmssl.demo_acting import Trial, run_trials
    from mmssl.demo_filling import write_fillings
    from mmssl.training.pretrain import PretrainConfig

    config = load_config(PretrainConfig, run / "config.yaml")
    settings = {"steps": config.loop.steps, "tries": plan.tries, "horizon": plan.horizon, "seed": seed}
    path = run / "act.json"
    if path.is_file() and json.loads(path.read_text())["settings"] == settings:
        print("done before")
        return
    trials = [Trial(run, skill, plan.tries, plan.horizon, seed) for skill in plan.skills]
    skills = run_trials(trials, 1 if plan.is_tiny else workers)
    filled = write_fillings(run, config.data, run / "figures" / "filled.npz")
    write_whole(path, json.dumps({"settings": settings, "skills": skills, "filled": filled}).encode())
    print(summary(skills))


def summary(skills: dict[str, Any]) -> str:
    """Share of successes of each policy, in one sentence."""
    shares = {name: _share(skills, name) for name in ("model", "expert", "random")}
    return (
        f"The model did its task in {shares['model']} of the episodes, the expert in {shares['expert']}, a random "
        f"policy in {shares['random']}."
    )


def _share(skills: dict[str, Any], policy: str) -> str:
    done = [success for found in skills.values() for success in found[policy]["successes"]]
    return f"{sum(done) / len(done):.0%}"
