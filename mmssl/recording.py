"""`mmssl record SUITE/TASK ...`: real frames of robots at work, as Minari datasets.

    mmssl record metaworld/drawer-open dmc/cheetah-run --episodes 20 --size 96 96 --depth --workers 2

Each task becomes `<out>/mmssl/<suite>/<task>-v0`, which `minari.load_dataset` opens. An episode is a function of the
seed, the task and its number, so the number of workers changes nothing, and the same command goes on where an
interrupted one stopped. docs/recording.md describes what is stored.
"""

import errno
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmssl.control.recorded_policy import recorded_policy
from mmssl.envs.crew import Job, run_jobs
from mmssl.envs.describe import dataset_id, recipe
from mmssl.envs.estimate import check_disk, estimate, human_size
from mmssl.envs.interrupt import Interrupts
from mmssl.envs.policies import Policy
from mmssl.envs.progress import Progress
from mmssl.envs.randomize import RandomizeConfig
from mmssl.envs.rollout import RolloutConfig
from mmssl.envs.storage import RecordingFolder
from mmssl.envs.suites import Task, expand_tasks
from mmssl.errors import MmsslError
from mmssl.paths import datasets_dir


@dataclass(frozen=True)
class Recording:
    """One task to record and where."""

    task: Task
    config: RolloutConfig
    folder: RecordingFolder
    missing: tuple[int, ...]
    """Numbers of the episodes that are not on disk yet."""
    overwrite: bool = False
    """Delete what is there, once all else is known to be in order."""
    policies: tuple[Policy | None, ...] = ()
    """Those that the config names."""
    version: int = 0
    tag: str = ""

    @property
    def name(self) -> str:
        """Minari's."""
        return dataset_id(self.task, self.version, self.tag)


# fmt: off
def record(
    tasks: Annotated[tuple[str, ...], tyro.conf.Positional], *,
    episodes: int = 10, size: tuple[int, int] = (64, 64), cameras: tuple[str, ...] = (),
    depth: bool = False, segmentation: bool = False, policy: tuple[str, ...] = ("auto",), noise: float = 0.0,
    randomize: float = 0.0, randomize_camera: float | None = None, randomize_color: float | None = None,
    randomize_light: float | None = None, steps: int | None = None, every: int = 1,
    after_success: int | None = None, action_repeat: int | None = None, faithful: bool = False,
    workers: int = 1, seed: int = 0, out: Path | None = None, version: int = 0,
    tag: str = "", pictures: bool = True, overwrite: bool = False, quiet: bool = False,
) -> list[Path]:
    """Record episodes of simulated robots as Minari datasets.

    Args:
        tasks: SUITE/TASK, several of them, or patterns such as 'metaworld/*'.
        episodes: Number of episodes of each task; a larger number later extends the recording.
        size: Height and width of the pictures in pixels.
        cameras: Names of the cameras; the task's default one if left out.
        depth: Record depth too, float16 metres.
        segmentation: Record geom ids too, int16.
        policy: auto (the scripted expert where there is one, else smooth), expert, random, smooth, module:function, or
            a run of `mmssl rl`, RUN@STEPS for what it had learned by then; several take turns, an episode each.
        noise: Standard deviation of Gaussian action noise, as a share of half the action range.
        randomize: Strength 0 to 1 of the visual randomisation of camera pose, colours and light, new in each episode.
        randomize_camera: Strength for the camera pose alone, in place of the common one.
        randomize_color: Strength for the colours alone.
        randomize_light: Strength for the light alone.
        steps: Control steps after which an episode ends, in place of the suite's horizon.
        every: Record an observation at every so many steps only; actions are then stored in blocks.
        after_success: Steps recorded after the first success, in place of the suite's; -1 records all of them.
        action_repeat: Control steps for which an action is held, in place of the suite's.
        faithful: Shadows, reflections and multisampling as the simulator has them, many times slower.
        workers: Number of processes, each with its own rendering context.
        seed: Seed of the recording; episodes depend on it and on their number alone.
        out: Folder of the datasets, to be named in MINARI_DATASETS_PATH when Minari shall find them there.
        version: Version of the datasets, the N in <task>-vN.
        tag: A word in the name of the datasets, <task>-<tag>-vN, such as medium or expert.
        pictures: Whether to record pictures; without them thousands of steps a second, and no OpenGL is needed.
        overwrite: Delete what was recorded before under the same name.
        quiet: No output.

    Returns:
        The folders of the datasets, one a task.
    """
    _check(episodes=episodes, height=size[0], width=size[1], every=every, workers=workers, steps=steps,
           action_repeat=action_repeat)
    if not 0 <= noise <= 10:
        raise MmsslError(f"--noise must be from 0 to 10 (a share of half the action range), got {noise}.")
    named = [recorded_policy(name) for name in ((policy,) if isinstance(policy, str) else policy)]
    policies, labels = tuple(p for p, _ in named), tuple(label for _, label in named)
    look = RandomizeConfig(randomize, randomize_camera, randomize_color, randomize_light)
    _check_look(pictures, look.any or depth or segmentation or faithful or bool(cameras), tag)
    config = RolloutConfig(tuple(size), tuple(cameras), depth, segmentation, labels if labels[1:] else labels[0], noise,
                           look, every, after_success, faithful, seed, pictures)
    chosen = [_adjusted(task, steps, action_repeat) for task in expand_tasks(tasks)]
    root = Path(out or datasets_dir()).expanduser()
    shared = {"overwrite": overwrite, "policies": policies, "version": version, "tag": tag}
    plans = [_plan(task, config, root, episodes, shared) for task in chosen]
    say = (lambda *_: None) if quiet else print
    _run(plans, episodes, workers, say, quiet)
    return [plan.folder.path for plan in plans]
# fmt: on


def _check(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise MmsslError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")


def _check_look(pictures: bool, asked: bool, tag: str) -> None:
    if not pictures and asked:
        raise MmsslError(
            "--no-pictures leaves nothing for --cameras, --depth, --segmentation, --faithful or --randomize to do; "
            "leave these out."
        )
    if tag and not re.fullmatch(r"[A-Za-uw-z0-9][A-Za-z0-9_.-]*", tag):
        raise MmsslError(
            f"--tag must be a word of letters, digits, '-', '_' and '.', not beginning with v, got {tag!r}."
        )


def _adjusted(task: Task, steps: int | None, action_repeat: int | None) -> Task:
    changed = {k: v for k, v in (("horizon", steps), ("action_repeat", action_repeat)) if v is not None}
    return replace(task, **changed)


def _plan(task: Task, config: RolloutConfig, root: Path, episodes: int, shared: dict[str, Any]) -> Recording:
    """What is missing of one task's recording; an `MmsslError` where another one stands in its place."""
    if config.after_success is None:
        config = replace(config, after_success=task.after_success)
    elif config.after_success < 0:
        config = replace(config, after_success=None)
    folder = RecordingFolder(root / dataset_id(task, shared["version"], shared["tag"]))
    before, now = None if shared["overwrite"] else folder.recipe(), recipe(task, config)
    if before is not None and before != now:
        differing = [k for k in now if before.get(k) != now[k]]
        raise MmsslError(
            f"{folder.path} holds a recording made with other settings ({_difference(before, now, differing)}); record "
            f"with those, choose another --version or --out, or delete it with --overwrite."
        )
    done = folder.finished() if before is not None else set()
    return Recording(task, config, folder, tuple(i for i in range(episodes) if i not in done), **shared)


def _difference(before: dict, now: dict, keys: list[str]) -> str:
    parts = []
    for key in keys:
        old, new = before.get(key), now[key]
        if isinstance(new, dict) and isinstance(old, dict):
            parts.append(_difference(old, new, [k for k in new if old.get(k) != new[k]]))
        else:
            parts.append(f"{key} {old!r} there, {new!r} here")
    return ", ".join(parts)


def _run(plans: list[Recording], episodes: int, workers: int, say: Any, quiet: bool) -> None:
    todo = [plan for plan in plans if plan.missing]
    kept = sum(episodes - len(plan.missing) for plan in plans)
    if kept:
        say(f"{kept} of {episodes * len(plans)} episodes are there already.")
    jobs = [Job(p.task, p.config, p.folder, p.missing, p.version, p.policies, p.tag) for p in todo]
    if jobs:
        size = estimate(jobs)
        root = todo[0].folder.path
        total = sum(len(job.episodes) for job in jobs)
        say(f"Recording {total} episodes of {len(jobs)} tasks: {size.sentence()}, below {root.parents[2]}.")
        check_disk(size, root)
        for plan in todo:
            if plan.overwrite and plan.folder.path.exists():
                shutil.rmtree(plan.folder.path)
            plan.folder.begin(recipe(plan.task, plan.config))
    progress = Progress(sum(len(j.episodes) for j in jobs), quiet)
    try:
        with Interrupts() as interrupts:
            run_jobs(jobs, workers, progress, interrupts.check)
        for plan in plans:
            plan.folder.gather()  # what an earlier, killed command had finished
            plan.folder.close()
    except KeyboardInterrupt:
        progress.close()
        there = sum(len(plan.folder.finished()) for plan in plans)  # on disk: a worker's last word may not have come
        say(f"Stopped: {there} finished episodes are kept; the same command goes on from there.")
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC and "No space left" not in str(error):  # HDF5 has only the words
            raise
        raise MmsslError(
            f"no space left on the disk of {plans[0].folder.path}; finished episodes are kept: make room, and the same "
            f"command goes on from there."
        ) from None
    finally:
        progress.close()
        for plan in plans:
            plan.folder.release()
    _sum_up(plans, progress, say)


def _sum_up(plans: list[Recording], progress: Progress, say: Any) -> None:
    for plan in plans:
        data = plan.folder.data / "main_data.hdf5"
        say(f"{plan.name}: {plan.folder.gathered()} episodes, {human_size(data.stat().st_size)}")
    say(progress.summary())
