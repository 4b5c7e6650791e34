"""Frames per second of pictures: MuJoCo's own renderer against ours, alternating in one process.

    python benchmarks/render.py [TASK:SIZE ...] [--rounds 3] [--seconds 2] [--clock wall]

Default is `mujoco.Renderer` with what the model asks for (shadows, reflections, multisampling), which is also what
gymnasium and dm_control draw. Ours is `mmssl.envs.rendering.Renderer`. Both draw the same camera of the same world,
which takes one step of physics a frame, counted for both. The last column is what `mmssl record` writes, everything
included.
`--clock cpu` counts the process's processor seconds, all threads: what one core gives when the machine is busy.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmssl.envs.make import SimEnvironment, make_sim
from mmssl.envs.rendering import Renderer
from mmssl.envs.rollout import Recorder, RolloutConfig
from mmssl.envs.suites import find_task
from mmssl.envs.wrappers import open_renderer

import mujoco  # isort: skip  # after ours, which chooses the headless backend

DEFAULT = ["gym/HalfCheetah-v5:84", "metaworld/drawer-open:96", "dmc/cheetah-run:84", "robotics/FetchPush-v4:84"]


def frames_per_second(frame: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    """How often `frame` can be called in a second."""
    count, start = 0, clock()
    while (spent := clock() - start) < seconds or count < 3:
        frame()
        count += 1
    return count / spent


def default_picture(env: SimEnvironment, ours: Renderer) -> tuple[Callable[[], np.ndarray], Callable[[], None]]:
    """The first camera of `ours` drawn by MuJoCo's own renderer, in a context of its own; and how to close it."""
    renderer = mujoco.Renderer(env.model, *ours.size)
    camera = next(iter(ours.cameras.values()))

    def draw() -> np.ndarray:
        renderer.update_scene(env.data, camera)
        return renderer.render()  # makes its own context current

    return draw, renderer.close


def check_same_scene(default: np.ndarray, ours: np.ndarray, roll: float) -> None:
    """A context that is not current draws nothing, very fast; shadows alone change a picture less than another one."""
    default = default[::-1, ::-1] if roll == 180 else default
    flat = [x.astype(float).ravel() for x in (default, ours)]
    likeness = float(np.corrcoef(*flat)[0, 1])
    if min(x.std() for x in flat) < 5 or not likeness > 0.5:
        raise SystemExit(f"the two pictures do not show the same scene (correlation {likeness:.2f}): no figures.")


def compare(name: str, size: int, args: argparse.Namespace, clock: Callable) -> tuple[list[float], list[float]]:
    """Frames per second of the default and of ours, one value a round."""
    env = make_sim(name)
    env.reset(seed=0)
    env.action_space.seed(0)
    ours = open_renderer(env, (), (size, size))
    theirs, close = default_picture(env, ours)
    camera = next(iter(ours.cameras))
    check_same_scene(theirs(), ours.render()["rgb"][camera], ours.view(camera).roll)

    def with_step(draw: Callable) -> Callable[[], object]:
        def frame() -> object:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset(seed=0)
            return draw()

        return frame

    results: tuple[list[float], list[float]] = ([], [])
    for _ in range(args.rounds):
        for result, draw in zip(results, (theirs, ours.render), strict=True):
            draw()
            result.append(frames_per_second(with_step(draw), args.seconds, clock))
    close()
    ours.close()
    return results


def recording_speed(name: str, size: int, clock: Callable) -> float:
    """Frames per second of a whole recording in one process, opening the world not counted."""
    recorder = Recorder(find_task(name), RolloutConfig(size=(size, size), after_success=10))
    with tempfile.TemporaryDirectory() as folder:
        recorder.record(0, Path(folder) / "warm-up.hdf5")
        start, pictures = clock(), 0
        for episode in (1, 2):
            pictures += recorder.record(episode, Path(folder) / f"{episode}.hdf5")["pictures"]
        spent = clock() - start
    recorder.close()
    return pictures / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="*", default=DEFAULT, metavar="TASK:SIZE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    warnings.filterwarnings("ignore", module="gymnasium|metaworld")
    columns = f"{'world':<28}{'size':>5}{'default':>9}{'ours':>8}{'ratio (spread)':>24}{'recording':>11}"
    print(f"{columns}   frames per {args.clock} second")
    for world in args.worlds:
        name, _, size = world.rpartition(":")
        theirs, ours = compare(name, int(size), args, clock)
        ratios = [b / a for a, b in zip(theirs, ours, strict=True)]
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        medians = f"{statistics.median(theirs):>9.0f}{statistics.median(ours):>8.0f}"
        print(f"{name:<28}{size:>5}{medians}{spread:>24}{recording_speed(name, int(size), clock):>11.0f}", flush=True)


if __name__ == "__main__":
    main()
