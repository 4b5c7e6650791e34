"""What a run of reinforcement learning is told: the algorithm, the task, what is seen of it, and how long."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

from mmssl.config import from_dict
from mmssl.control.base import AlgorithmConfig
from mmssl.envs.encode import Pooling
from mmssl.errors import MmsslError, unknown_name
from mmssl.registry import ALGORITHMS

# Fields that a recipe may leave open (null): the algorithm says what it wants (`Algorithm.wants`), else this holds.
_OPEN: dict[str, Any] = {"n_envs": 1, "observe": "state", "proprio": False, "size": (84, 84), "frame_stack": 1}


@dataclass(frozen=True)
class RLConfig:
    """A recipe of reinforcement learning. What is null is as the algorithm or the encoder wants it."""

    algorithm: AlgorithmConfig
    """who learns: the algorithm's name and its settings"""
    task: str = ""
    """of what: SUITE/TASK, e.g. gym/HalfCheetah-v5"""
    steps: int = 1_000_000
    """environment steps of the whole run, over all environments; one that repeats its action counts once. With
    `offline` they are updates, here and wherever steps are counted"""
    offline: str | None = None
    """recorded episodes to learn from alone, a card, a folder or an id; the environment is for evaluation only"""
    n_envs: int | None = None
    """environments that step at once"""
    observe: Literal["state", "pixels", "both"] | None = None
    """the state, the pictures of the cameras, or both"""
    proprio: bool | None = None
    """whether what the robot's own sensors say is seen too; with an encoder it is, unless false is said"""
    cameras: tuple[str, ...] = ()
    """whose pictures; () for the task's own camera, or the encoder's views"""
    size: tuple[int, int] | None = None
    """height and width of the pictures in pixels"""
    frame_stack: int | None = None
    """frames in a picture"""
    action_repeat: int | None = None
    """control steps of one step; null for what the suite says"""
    faithful: bool = False
    """draw shadows and reflections too"""
    encoder: str | None = None
    """a frozen encoder in front of the pictures, or of the state, whatever `mmssl.load` takes; the algorithm sees its
    features"""
    keep_obs: bool = False
    """with an encoder of states: whether the state stays beside its features"""
    pooling: Pooling = "mean"
    """of the encoder's tokens"""
    feature_stack: int = 1
    """steps whose features stand side by side"""
    eval_every: int = 5000
    """environment steps between evaluations, which take place in worlds of their own, without noise"""
    eval_episodes: int = 10
    """episodes of an evaluation, all at once"""
    checkpoint_every: int = 50_000
    """environment steps between checkpoints, at each of which every environment begins anew; 0 for the end alone"""
    policies_every: int = 0
    """environment steps between policies that are kept, policies/<steps>/ in each seed's folder, 0 for none"""
    log_every: int = 1000
    """environment steps between records of metrics.jsonl"""
    seed: int = 0
    """of everything that is drawn"""
    seeds: tuple[int, ...] = ()
    """of `mmssl rl`: a run for each, side by side; () for `seed` alone"""
    jobs: int | None = None
    """how many seeds run at once; null for at most two a core"""
    device: str = "cpu"
    """where the algorithm and the encoder work: cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """of torch, for each seed; null shares the cores among the seeds"""
    workers: int = 0
    """processes or threads that step the environments of one seed, 0 for none; nothing but the time depends on it"""
    film: bool = True
    """of `mmssl rl`: film the policy at the end, for the report"""
    max_broken: int = 10
    """how often the simulation may break down before the run stops"""

    def __post_init__(self) -> None:
        least = {"steps": 1, "eval_every": 1, "eval_episodes": 1, "feature_stack": 1, "log_every": 1, "n_envs": 1}
        least |= {"jobs": 1, "threads": 1, "checkpoint_every": 0, "policies_every": 0, "seed": 0, "workers": 0}
        least |= {"max_broken": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise MmsslError(f"{name} must be at least {bound}, got {value}.")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds, default=0) < 0:
            raise MmsslError(f"seeds must be different numbers of 0 or more, got {list(self.seeds)}.")
        if self.keep_obs and self.encoder is None:
            raise MmsslError("keep_obs is for a run with an encoder of states; without one the state is seen anyway.")

    @classmethod
    def from_name(cls, name: str) -> "RLConfig | None":
        """The defaults of the algorithm called `name`; None for what can only be a recipe.

        Raises:
            MmsslError: a name of neither kind, with the nearest algorithm.
        """
        if name in ALGORITHMS:
            return from_dict(cls, {"algorithm": {"name": name}})
        if "/" in name or name.endswith((".yaml", ".yml")):
            return None
        raise unknown_name("algorithm", name, ALGORITHMS.names())

    def resolved(self) -> "RLConfig":
        """The same with nothing left open; what an encoder decides (what is seen, the size of pictures) stays null.

        Raises:
            MmsslError: no task, or no such device.
        """
        if not self.task:
            raise MmsslError("say which task, --task SUITE/TASK, e.g. --task gym/HalfCheetah-v5.")
        check_device(self.device)
        wants = ALGORITHMS.get(self.algorithm.name).wants
        behind = {"observe": None, "proprio": None, "size": None, "frame_stack": 1} if self.encoder else {}
        filled = {**_OPEN, **(wants if not behind else {k: v for k, v in wants.items() if k == "n_envs"}), **behind}
        names = [f.name for f in fields(self) if f.name in filled and getattr(self, f.name) is None]
        return replace(self, **{name: filled[name] for name in names})


def check_device(name: str) -> None:
    """Raise an `MmsslError` where torch knows no such device, or it is not there."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise MmsslError(f"device {name!r} cannot be used ({reason}); take cpu, or cuda where there is one.") from None
