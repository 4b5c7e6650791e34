"""`mmssl trajectories RUN`: one masked trajectory model judged as all that a mask makes of it.

On held-out episodes as a policy, a policy for a return, a model of the dynamics and an inverse one, beside specialists
that were trained for one of these alone; and in the environment, beside random actions and the demonstrations.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from mmssl.config import from_dict, read_yaml
from mmssl.control.evaluate import Episodes
from mmssl.control.trajectory_worlds import Acting, film_episode, run_episodes
from mmssl.data.loading import DataConfig
from mmssl.data.trajectories import TrajectoryWindows
from mmssl.envs.scores import normalized_score
from mmssl.envs.suites import find_task
from mmssl.errors import MmsslError
from mmssl.evaluation.sources import choose_device
from mmssl.evaluation.specialists import SpecialistConfig, train_specialist
from mmssl.evaluation.trajectory_filling import fill_in
from mmssl.evaluation.trajectory_questions import QUESTIONS, Question, answer, held_out, judge, questions_of, scales_of
from mmssl.methods.base import Method
from mmssl.methods.mtm import MTM
from mmssl.report.html import write_report
from mmssl.report.reading import read_lines
from mmssl.report.trajectories import ARRAYS, FILE
from mmssl.training.asked import as_asked, check_data
from mmssl.training.atomic import write_text
from mmssl.weights.load import load_method

_DRAWN = 2  # episodes that are filled in for the report


@dataclass(frozen=True)
class Held:
    """How held-out episodes are judged."""

    windows: int = 4000
    """held-out windows at most, evenly spread"""
    specialists: bool = True
    """train a plain network for each question beside it"""
    specialist_steps: int | None = None
    """steps of each of them; by default as many as the run had"""


@dataclass(frozen=True)
class Acts:
    """How it acts in the environment."""

    rollouts: int = 10
    """episodes of each policy; 0 for none"""
    factors: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
    """wanted returns: the least of the training's and these parts of the way to the largest"""
    history: int | None = None
    """steps of the window that it knows, the present among them; by default all"""
    past_actions: bool = False
    """let it know its own earlier actions"""
    film: bool = True
    """film the best of its ways to act"""


def trajectories(
    run: Annotated[Path, tyro.conf.Positional],
    *,
    data: tuple[str, ...] = (),
    task: tuple[str, ...] = (),
    held: Annotated[Held, tyro.conf.OmitArgPrefixes] = Held(),
    acts: Annotated[Acts, tyro.conf.OmitArgPrefixes] = Acts(),
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Judge a masked trajectory model on held-out episodes and in the environment; the run's report shows it.

    Args:
        run: a run of `mmssl pretrain` with the method mtm.
        data: recordings in place of the run's own; those of its dimensions alone.
        task: SUITE/TASK in which it acts; by default those of the recordings.
        held: the held-out episodes.
        acts: the environment.
        seed: of the starts and of the specialists.
        device: auto, cpu, cuda or mps.
        quiet: no table.

    Returns:
        What stands in the run's `trajectories.json`.

    Raises:
        MmsslError: a run that is no MTM, data or a task of other dimensions than in training.
    """
    if held.windows < 1 or acts.rollouts < 0 or seed < 0:
        raise MmsslError(
            f"windows must be 1 or more, rollouts and seed 0 or more, got {held.windows}, {acts.rollouts} and {seed}."
        )
    model, config = open_run(run, device)
    train, test = open_data(model, config, data)
    questions = questions_of(model, acts.past_actions)
    budget = SpecialistConfig(held.specialist_steps or _steps_of(run), config["loop"]["batch_size"], seed=seed)
    tasks = _tasks(task, test, acts.rollouts)
    found: dict[str, Any] = {"data": test.name, "demonstrations": demonstrations(train)}
    tell = (lambda sentence: None) if quiet else (lambda sentence: print(sentence, flush=True))
    found["acting"] = act_in(
        model, tasks, ways_of(model, train, acts), acts.rollouts, seed, found["demonstrations"], tell
    )
    found["held_out"] = judge_questions(
        model, questions, (train, test), held.windows, budget if held.specialists else None, tell
    )
    found["specialist_steps"] = budget.steps if held.specialists else None
    found["filled"] = draw_episodes(model, questions, test, run)
    found["film"] = _film(model, found["acting"], ways_of(model, train, acts), run, seed) if acts.film else None
    write_text(run / FILE, json.dumps(found, indent=1) + "\n")
    page = write_report(run)
    if not quiet:
        print(words_of(found), f"report: {page}", sep="\n\n")
    return found


def open_run(run: Path, device: str = "auto") -> tuple[MTM, dict[str, Any]]:
    """The model of a run, and the run's configuration.

    Raises:
        MmsslError: no run folder, or the run of another method.
    """
    if not (run / "config.yaml").is_file():
        raise MmsslError(f"{run} is no run folder; give one of `mmssl pretrain` with the method mtm.")
    config = read_yaml(run / "config.yaml")
    name = (config.get("method") or {}).get("name") if isinstance(config.get("method"), dict) else None
    if name != "mtm":
        raise MmsslError(f"{run} is a run of {name or 'no method'}; `mmssl trajectories` judges runs of mtm.")
    model: Method = load_method(run, device=choose_device(device))
    return model.requires_grad_(False).eval(), config


def open_data(model: MTM, config: dict[str, Any], data: tuple[str, ...] = ()) -> tuple[TrajectoryWindows, ...]:
    """The training and the test part of the run's own recordings, or of `data`.

    Raises:
        MmsslError: other dimensions than in training, or data that are no trajectories.
    """
    own = from_dict(DataConfig, config.get("data") or {}, "data")
    own = replace(as_asked(model, replace(own, source=data or own.source)), target="none")
    parts = tuple(replace(own, split=split).open() for split in ("train", "test"))
    for part in parts:
        if not isinstance(part, TrajectoryWindows):
            raise MmsslError(f"{part.name!r} holds no trajectories; give recordings or a Minari dataset.")
        check_data(model, part)
    return parts


def _steps_of(run: Path) -> int:
    metrics = read_lines(run / "metrics.jsonl")
    return max((entry["step"] for entry in metrics), default=0) or 1000


def _tasks(given: tuple[str, ...], dataset: TrajectoryWindows, rollouts: int) -> list[str]:
    """Where the model acts: what was asked for, which must exist, else tasks of the recordings that are in a suite."""
    if not rollouts:
        return []
    if given:
        return [find_task(name).full_name for name in given]
    found = []
    for name in dataset.tasks:
        try:
            found.append(find_task(name).full_name)
        except MmsslError:
            print(f"{name} is in no suite, so that nothing can act there; --task SUITE/TASK says where.")
    return found


def demonstrations(dataset: TrajectoryWindows) -> dict[str, dict[str, Any]]:
    """Task -> what the episodes of the training brought."""
    found: dict[str, dict[str, Any]] = {}
    for episode in dataset.episodes:
        row = found.setdefault(episode.task, {"returns": [], "lengths": [], "successes": []})
        row["returns"].append(round(episode.total, 3))
        row["lengths"].append(len(episode))
        if episode.success is not None:
            row["successes"].append(episode.success)
    return found


def ways_of(model: MTM, dataset: TrajectoryWindows, acts: Acts) -> dict[str, Acting]:
    """The ways in which a model acts: it imitates, and where it knows returns it wants several of them."""
    shared = {"history": acts.history, "past_actions": acts.past_actions}
    ways = {"bc": Acting("bc", **shared)}
    if "return" in model.config.widths:
        low, high = (float(x) for x in dataset.range_of("return"))
        for factor in acts.factors:
            ways[f"rcbc {factor:g}"] = Acting("rcbc", low + (high - low) * factor, **shared)
    return ways


def act_in(
    model: MTM,
    tasks: list[str],
    ways: dict[str, Acting],
    episodes: int,
    seed: int,
    shown: dict[str, Any],
    tell: Callable[[str], None] = lambda sentence: None,
) -> dict[str, dict[str, Any]]:
    """Task -> policy -> its episodes: `random`, each way of the model, and what was `shown`, as `demonstrations`."""
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        tell(f"{task}: {episodes} episodes of {len(ways)} ways to act and of random actions")
        played, can_succeed = run_episodes(model, task, ways, episodes, seed)
        found[task] = {name: _row(task, rows, can_succeed) for name, rows in played.items()}
        for name in ways:
            found[task][name]["target_return"] = ways[name].target_return
        if task in shown:
            found[task]["demonstrations"] = _summary(task, **shown[task])
    return found


def _row(task: str, rows: Episodes, can_succeed: bool) -> dict[str, Any]:
    successes = rows.successes if can_succeed else []
    return _summary(task, [round(r, 3) for r in rows.returns], rows.lengths, successes)


def _summary(task: str, returns: list[float], lengths: list[int], successes: list[bool]) -> dict[str, Any]:
    """Episodes with their mean return, share of successes, and normalised score where the suite has references."""
    mean = float(np.mean(returns))
    known = find_task(task).reference is not None
    return {
        "returns": returns,
        "lengths": lengths,
        "return": mean,
        "success": float(np.mean(successes)) if successes else None,
        "successes": successes,
        "score": normalized_score(task, mean) if known else None,
    }


def judge_questions(
    model: MTM,
    questions: list[Question],
    parts: tuple[TrajectoryWindows, ...],
    windows: int,
    budget: SpecialistConfig | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> dict[str, dict[str, Any]]:
    """Question -> `target`, `windows`, `errors` (who -> mean) and `each` (who -> error of each number that moves)."""
    train, test = parts
    scales, wanted, found = scales_of(train), scales_of(test), {}
    for question in questions:
        batch = held_out(test, question.needed(), windows)
        answers = {"model": lambda b, q=question: answer(model, q, b)}
        if budget:
            tell(f"a specialist for {QUESTIONS[question.name]}, {budget.steps:,} steps")
            answers["specialist"] = train_specialist(question, train, scales, budget).answer
        each = judge(question, batch, wanted[question.target], scales[question.target].mean, answers)
        errors = {name: float(np.mean(values)) for name, values in each.items()}
        found[question.name] = {
            "target": question.target,
            "windows": len(batch[question.target]),
            "errors": errors,
            "each": each,
        }
    return found


def draw_episodes(model: MTM, questions: list[Question], test: TrajectoryWindows, run: Path) -> list[str]:
    """Fill in the first held-out episode of some tasks for the report; returns what they are called there."""
    firsts = {episode.task: episode for episode in reversed(test.episodes)}
    chosen, arrays = list(firsts.values())[::-1][:_DRAWN], {}
    for number, episode in enumerate(chosen):
        filled = fill_in(model, episode, questions)
        arrays |= {f"{number}/{name}": x for name, x in filled.items()}
    (run / ARRAYS).parent.mkdir(exist_ok=True)
    np.savez_compressed(run / ARRAYS, **arrays)
    return [f"{episode.task}, episode {episode.episode}" for episode in chosen]


def _film(
    model: MTM, acting: dict[str, dict[str, Any]], ways: dict[str, Acting], run: Path, seed: int
) -> dict[str, Any] | None:
    """Film the best way in the first task; what prevents it is said."""
    for task, found in acting.items():
        best = max(ways, key=lambda name: (found[name]["success"] or 0, found[name]["return"]))
        try:
            return {"way": best, **film_episode(model, task, ways[best], run / "figures", seed)}
        except Exception as error:  # the simulators and OpenGL have many, and a judgement does not fail by its film
            print(f"no film of {task}: {str(error) or type(error).__name__}")
            return None
    return None


def words_of(found: dict[str, Any]) -> str:
    """Two aligned tables: errors on held-out windows, and what it got in each task."""
    lines = ["squared error on held-out windows, in variances of what was held out (1 = the best constant)"]
    for name, row in found["held_out"].items():
        errors = ", ".join(f"{who} {value:.4f}" for who, value in row["errors"].items())
        lines.append(f"  {QUESTIONS[name]:<32}{row['target']:<9}{errors}")
    for task, policies in found["acting"].items():
        lines += ["", task]
        for name, row in policies.items():
            line = f"  {name:<16}return {row['return']:10.1f}"
            line += "" if row["score"] is None else f"   normalised {row['score']:6.1f}"
            line += "" if row["success"] is None else f"   success {row['success']:.0%}"
            lines.append(f"{line}   ({len(row['returns'])} episodes)")
    return "\n".join(lines)
