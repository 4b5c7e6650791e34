"""How much disk a recording will take, from a few real pictures of it."""

import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmssl.envs.make import SimEnvironment
from mmssl.envs.rollout import Recorder
from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from mmssl.envs.crew import Job

_SMALL = 2048  # bytes a step for everything that is not a picture, with HDF5's own


@dataclass(frozen=True)
class DiskEstimate:
    """Bytes: expected, at most (all episodes as long as the horizon), and again for the largest task while gathered."""

    expected: int
    most: int
    gathering: int

    def sentence(self) -> str:
        most = f", at most {human_size(self.most)}" if self.most > 1.2 * self.expected else ""
        return f"about {human_size(self.expected)}{most} on disk"


def human_size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def bytes_per_observation(recorder: Recorder) -> float:
    """Compressed size of all pictures of one observation, the mean of a few."""
    env, sizes = recorder.env, []
    if not recorder.renderer.cameras:
        return _bytes_of_vectors(env)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(3):
        for _ in range(3):
            env.step(env.action_space.sample())
        pictures = recorder.renderer.render()
        pictures.pop("pose")
        frames = [frame for kind in pictures.values() for frame in kind.values()]
        sizes.append(sum(len(zlib.compress(_shuffled(f).tobytes(), 1)) for f in frames))
    return float(np.mean(sizes)) + _SMALL


def _bytes_of_vectors(env: SimEnvironment) -> float:
    """All that is recorded of one step without pictures, uncompressed: observation, action, MuJoCo's own state."""
    numbers = sum(space.shape[0] for space in env.observation_space.spaces.values()) + env.action_space.shape[0]
    own = 0 if env.model is None else env.model.nq + env.model.nv
    return 4.0 * numbers + 8.0 * own + 16


def _shuffled(frame: np.ndarray) -> np.ndarray:
    """float16 as HDF5's shuffle filter orders it: all low bytes, then all high ones."""
    return frame.ravel().view(np.uint8).reshape(-1, 2).T.copy() if frame.dtype == np.float16 else frame


def estimate(jobs: "list[Job]") -> DiskEstimate:
    """Opens the first task of each suite, which also finds an unknown camera or a missing backend before all else."""
    per_suite: dict[tuple, float] = {}
    expected = most = largest = 0.0
    for job in jobs:
        key = (job.task.suite, job.task.family)
        if key not in per_suite:
            recorder = Recorder(job.task, job.config, job.policies)
            try:
                recorder.env.reset(seed=0)
                for policy in recorder.policies:  # an expert that is not there says so now
                    policy(recorder.env, np.random.default_rng(0))
                per_suite[key] = bytes_per_observation(recorder)
            finally:
                recorder.close()
        apart = job.config.every * job.task.action_repeat
        steps = min(job.task.horizon, job.task.typical_steps or job.task.horizon)
        usual, longest = (len(job.episodes) * (n / apart + 1) * per_suite[key] for n in (steps, job.task.horizon))
        expected, most, largest = expected + usual, most + longest, max(largest, usual)
    return DiskEstimate(int(expected), int(most), int(largest))


def check_disk(size: DiskEstimate, folder: Path) -> None:
    """Raise an `MmsslError` where the disk of `folder` has not enough room."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free, needed = shutil.disk_usage(existing).free, size.expected + size.gathering
    if needed > free:
        raise MmsslError(
            f"the recording needs about {human_size(needed)} while it is written and the disk of {existing} has "
            f"{human_size(free)} free; record fewer --episodes, a smaller --size, or to another disk with --out."
        )
