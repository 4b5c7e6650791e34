"""The demo's last act: a trajectory model as a policy, beside a random policy and the expert, on the same new starts.

An episode ends where its task is done, or after so many steps. Nothing here is trained: what the model is, a policy,
comes from what is hidden of a trajectory.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.control.movie import write_whole
from mmssl.envs.make import SimEnvironment, make_sim
from mmssl.envs.rendering import opengl_context
from mmssl.envs.suites import find_task
from mmssl.envs.wrappers import open_renderer
from mmssl.errors import MmsslError
from mmssl.report.figures import png_bytes, webp_bytes

POLICIES = ("model", "expert", "random")
TOGETHER = 12
"""Episodes that run side by side: one prediction of the model serves all of them."""
_SIZE = (192, 192)
_FPS = 16.0
_SLOWER = 2.5
"""Meta-World's experts need about a second."""


@dataclass(frozen=True)
class Trial:
    """Episodes of one skill.

    Args:
        run: folder of the trajectory model.
        skill: "suite/task".
        tries: episodes of each policy.
        horizon: steps after which one ends.
        seed: of the starts, which are other ones than those of the recordings.
    """

    run: Path
    skill: str
    tries: int
    horizon: int
    seed: int

    def starts(self) -> list[int]:
        """Seeds of the episodes, the same for each policy."""
        rng = np.random.default_rng([self.seed, 3, *self.skill.encode()])
        return rng.integers(2**30, 2**31 - 1, self.tries).tolist()


def run_trials(trials: list[Trial], workers: int) -> dict[str, dict[str, Any]]:
    """Skill -> policy -> `successes` and `lengths` of its episodes; processes share the skills."""
    if workers < 2 or len(trials) < 2:
        return {trial.skill: run_trial(trial) for trial in trials}
    with ProcessPoolExecutor(min(workers, len(trials)), get_context("spawn"), _one_thread) as pool:
        return dict(zip((trial.skill for trial in trials), pool.map(run_trial, trials), strict=True))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def run_trial(trial: Trial) -> dict[str, Any]:
    """Policy -> `successes` (was the task done) and `lengths` (steps) of its episodes; `film` -> that of the first."""
    task = replace(find_task(trial.skill), horizon=trial.horizon)
    envs = [make_sim(task) for _ in range(min(TOGETHER, trial.tries))]
    starts, found = trial.starts(), {}
    makers = _makers(trial)
    for name in POLICIES:
        rows: list[tuple[bool, int]] = []
        for k in range(0, trial.tries, len(envs)):
            chosen = starts[k : k + len(envs)]
            rows += play(makers[name], envs[: len(chosen)], chosen)
        found[name] = {"successes": [done for done, _ in rows], "lengths": [steps for _, steps in rows]}
    found["film"] = _film(trial, envs[0], {name: makers[name] for name in ("model", "expert")}, starts[0])
    for env in envs:
        env.close()
    return found


Maker = Callable[[list[SimEnvironment]], Callable[[np.ndarray], np.ndarray]]
"""From worlds that begin an episode to a policy: states (n, D) -> actions (n, A), in the worlds' own units."""


def _makers(trial: Trial) -> dict[str, Maker]:
    import mmssl
    from mmssl.control.trajectory_policy import TrajectoryPolicy

    model = mmssl.load_method(str(trial.run))
    model.eval()

    def imitator(envs: list[SimEnvironment]) -> Callable[[np.ndarray], np.ndarray]:
        policy = TrajectoryPolicy(model, len(envs))
        policy.begin(np.ones(len(envs), bool))
        return lambda states: policy.act({"state": states})

    return {"model": imitator, "expert": _experts, "random": _randomly(trial.seed)}


def _experts(envs: list[SimEnvironment]) -> Callable[[np.ndarray], np.ndarray]:
    from mmssl.envs.policies import expert_policy

    scripts = [expert_policy(env, np.random.default_rng()) for env in envs]
    return lambda states: np.stack([act({"state": s}) for act, s in zip(scripts, states, strict=True)])


def _randomly(seed: int) -> Maker:
    rng = np.random.default_rng([seed, 4])

    def make(envs: list[SimEnvironment]) -> Callable[[np.ndarray], np.ndarray]:
        space = envs[0].action_space
        return lambda states: rng.uniform(space.low, space.high, (len(states), *space.shape))

    return make


def play(
    make: Maker, envs: list[SimEnvironment], starts: list[int], look: Callable[[bool], None] = lambda last: None
) -> list[tuple[bool, int]]:
    """One episode in each world, together; `look` is called at each moment, and told which is the last. Whether each
    was done, and its steps."""
    states = np.stack([env.reset(seed=seed)[0]["state"] for env, seed in zip(envs, starts, strict=True)])
    act, low, high = make(envs), envs[0].action_space.low, envs[0].action_space.high
    done, steps, over = np.zeros(len(envs), bool), np.zeros(len(envs), int), np.zeros(len(envs), bool)
    while not over.all():
        look(False)
        actions = np.clip(act(states), low, high).astype(np.float32)
        for i in np.flatnonzero(~over).tolist():
            observation, _, terminated, truncated, info = envs[i].step(actions[i])
            states[i], done[i] = observation["state"], info["success"]
            steps[i], over[i] = steps[i] + 1, terminated or truncated or info["success"]
    look(True)
    return list(zip(done.tolist(), steps.tolist(), strict=True))


def _film(trial: Trial, env: SimEnvironment, makers: dict[str, Maker], start: int) -> dict[str, Any] | None:
    """The first episode again, the model to the left and the expert to the right; None where nothing can render."""
    try:
        opengl_context()
    except MmsslError as error:
        print(f"no film of {trial.skill}: {error}")
        return None
    renderer = open_renderer(env, (), _SIZE)
    sides, found = [], {}
    for name, make in makers.items():
        frames, success, steps = _filmed(make, env, renderer, start)
        sides.append(frames)
        found[name] = {"success": success, "length": steps}
    renderer.close()
    longest = max(map(len, sides)) + round(_FPS / 2)  # both stand still for a moment before it begins anew
    whole = [np.stack(frames + frames[-1:] * (longest - len(frames))) for frames in sides]
    clip, path = np.concatenate(whole, axis=2), trial.run / "figures" / f"act-{trial.skill.rpartition('/')[2]}"
    write_whole(path.with_suffix(".webp"), webp_bytes(clip, _FPS))
    write_whole(path.with_suffix(".png"), png_bytes(clip[-1]))
    return {"moving": f"{path.name}.webp", "still": f"{path.name}.png", **found}


def _filmed(make: Maker, env: SimEnvironment, renderer: Any, start: int) -> tuple[list[np.ndarray], bool, int]:
    """An episode in slow motion: frames uint8 (H, W, 3), whether the task was done, and the steps."""
    (camera,), every = renderer.cameras, max(1, round(1 / (env.control_dt * _FPS * _SLOWER)))
    frames: list[np.ndarray] = []
    moment = itertools.count()

    def look(last: bool) -> None:
        if next(moment) % every == 0 or last:
            frames.append(renderer.render()["rgb"][camera])

    ((success, steps),) = play(make, [env], [start], look)
    return frames, success, steps
