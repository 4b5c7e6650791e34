"""Films of a policy at work, by a camera of their own.

It looks at the policy's own world, so that a policy that sees the state alone, or small pictures, can be filmed in any
size, and the episode is the same as without a film.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from mmssl.control.evaluate import begin
from mmssl.control.movie import Movie, write_whole
from mmssl.control.saving import LoadedPolicy, load_policy
from mmssl.envs.batch_mujoco import BatchMujoco
from mmssl.envs.rendering import Renderer, camera_names, opengl_context
from mmssl.envs.suites import Task, find_task
from mmssl.errors import MmsslError
from mmssl.report.figures import grid, png_bytes, webp_bytes

SIZE = (256, 256)
FASTEST = 30.0
"""Frames per second of a film at most; films run in real time."""
MOST = 300  # frames of a film for the page
_PAGE_FRAMES, _PAGE_FPS = 90, 15.0  # of its animated picture


@dataclass
class Episode:
    """One episode of a policy.

    Attributes:
        total: sum of the rewards.
        length: steps.
        success: whether the task was ever done, None where there is no such thing.
    """

    total: float = 0.0
    length: int = 0
    success: bool | None = None


class Onlooker:
    """A camera of its own in a world of one environment in this process.

    Args:
        world: as `LoadedPolicy.make_world(1)` makes it, without workers.
        task: which it is.
        camera: its name; None for the task's own.
        size: (height, width) in pixels.

    Attributes:
        every: steps from one frame to the next.
        fps: frames per second that make it real time.
    """

    def __init__(self, world: VectorEnv, task: Task, camera: str | None = None, size: tuple[int, int] = SIZE):
        model, data, seconds = _simulator(world)
        camera = camera or task.camera or (camera_names(model, task.cameras) or [None])[0]
        if camera is None:
            raise MmsslError(f"{task.full_name} has no camera to be filmed by; give its suite a view, `cameras`.")
        if len(size) != 2 or min(size) < 16:
            raise MmsslError(f"size must be (height, width) of at least 16 pixels, got {size}.")
        self.renderer, self.camera = Renderer(model, data, (camera,), size, task.cameras), camera
        self.every = max(1, math.ceil(1 / (seconds * FASTEST) - 1e-9))
        self.fps = 1 / (seconds * self.every)

    def look(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return self.renderer.render()["rgb"][self.camera]

    def close(self) -> None:
        self.renderer.close()


def _simulator(world: VectorEnv) -> tuple[Any, Any, float]:
    """MuJoCo's model and data of a world of one, and the seconds of a step."""
    runner = world.runner
    if isinstance(runner, BatchMujoco):
        return runner.model, runner.datas[0], float(runner.env.dt)
    env = getattr((getattr(runner, "bodies", None) or [None])[0], "env", None)
    if not hasattr(env, "control_dt") or env.model is None:
        raise MmsslError("only tasks of suites, in this process, that have a MuJoCo world can be filmed.")
    return env.model, env.data, env.control_dt


def play_episodes(
    policy: Any, world: VectorEnv, count: int, onlooker: Onlooker | None = None,
    show: Callable[[np.ndarray], Any] | None = None,
) -> Iterator[Episode]:  # fmt: skip
    """`count` episodes of a policy in a world of one, one after the other, without noise, each given when it is over.

    `show` gets what the onlooker sees, the first and the last moment of each episode among it; where it says False
    nothing more of this episode is drawn.
    """
    for k in range(count):
        obs, _ = world.reset(seed=None if k else world.seed)
        begin(policy, world)
        episode, ended, filming = Episode(), False, onlooker is not None
        while not ended:
            if filming and episode.length % onlooker.every == 0:
                filming = show(onlooker.look()) is not False
            obs, _, terminated, truncated, infos = world.step(policy.act(obs))
            episode.length, ended = episode.length + 1, bool(terminated[0] or truncated[0])
        if filming:
            show(onlooker.look())
        episode.total = float(infos["episode"]["r"][0])
        episode.success = bool(infos["episode"]["success"][0]) if world.has_success else None
        yield episode


def film_seed(folder: Path, say: Callable[[str], None]) -> None:
    """Film the policy in the folder of a seed for the run's page, unless that is done; what prevents it is said."""
    figures = folder / "figures"
    try:
        loaded = load_policy(folder)
        about = figures / "policy.json"
        if not about.is_file() or json.loads(about.read_text())["steps"] != loaded.steps:
            film(loaded, figures)
    except Exception as error:  # the simulators and OpenGL have many, and a run that is done does not fail by its film
        say(f"no film of {folder.name}: {str(error) or type(error).__name__}")


def film(loaded: LoadedPolicy, folder: Path, *, seed: int = 0) -> Episode:
    """Film the beginning of an episode: `policy.mp4`, `.webp`, `.png` and `.json` in a folder.

    Raises:
        MmsslError: nothing can render here, the task cannot be filmed, PyAV is not installed.
    """
    opengl_context()  # first: without a backend the simulators fail at their import, in words of their own
    loaded = replace(loaded, config=replace(loaded.config, workers=0))
    frames: list[np.ndarray] = []

    def keep(frame: np.ndarray) -> bool:
        frames.append(frame)
        return len(frames) < MOST

    world = loaded.make_world(1, seed)
    try:
        onlooker = Onlooker(world, find_task(loaded.config.task))
        episode = next(play_episodes(loaded.policy, world, 1, onlooker, keep))
        onlooker.close()
    finally:
        world.close()
    write_film(folder, frames, onlooker.fps)
    about = {"steps": loaded.steps, "return": episode.total, "length": episode.length, "success": episode.success}
    write_whole(folder / "policy.json", json.dumps(about).encode())
    return episode


def write_film(folder: Path, frames: list[np.ndarray], fps: float) -> None:
    """`policy.mp4`, `.webp`, an animated picture of fewer frames, which a page holds, and `.png`, four of them."""
    with Movie(folder / "policy.mp4", fps) as movie:
        for frame in frames:
            movie.add(frame)
    every = max(1, round(fps / _PAGE_FPS))
    shown = frames[::every][:_PAGE_FRAMES]
    write_whole(folder / "policy.webp", webp_bytes(np.stack(shown), fps / every))
    write_whole(folder / "policy.png", png_bytes(four(shown)))


def four(frames: list[np.ndarray]) -> np.ndarray:
    """Four frames of a film, evenly spread, two by two in one picture."""
    places = np.linspace(0, len(frames) - 1, 4).round().astype(int)
    chosen = np.stack([frames[i] for i in places])  # (4, H, W, 3)
    return grid(list(chosen.reshape(2, 2, *chosen.shape[1:])), scale=1)
