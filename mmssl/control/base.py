"""What an algorithm is: it acts, it is told what came of it, and it learns when that is due."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from mmssl.registry import ALGORITHMS, NamedConfig


@dataclass(frozen=True)
class AlgorithmConfig(NamedConfig):
    """Settings of an algorithm; `name` chooses the class."""

    registry = ALGORITHMS

    @property
    def own_encoder(self) -> bool:
        """Whether the algorithm looks through a run's encoder by itself, in place of the world."""
        return False


@dataclass(frozen=True)
class Spaces:
    """What a world shows and takes.

    Attributes:
        observations: name -> (shape of one observation, dtype): `state` ((D,), float32), `proprio`, `image/<camera>`
            ((stack * 3, H, W), uint8), `features` of a frozen encoder.
        action_dim: A, of actions in [-1, 1]; or the number of discrete ones.
        discrete: whether an action is one of `action_dim` numbers.
        n_envs: how many environments step at once.
    """

    observations: dict[str, tuple[tuple[int, ...], np.dtype]]
    action_dim: int
    discrete: bool = False
    n_envs: int = 1

    @property
    def vectors(self) -> dict[str, int]:
        """Width of each observation that is a vector, in the order in which they are joined."""
        return {name: shape[0] for name, (shape, _) in self.observations.items() if len(shape) == 1}

    @property
    def pictures(self) -> dict[str, tuple[int, ...]]:
        """Shape of each observation that is a stack of pictures."""
        return {name: shape for name, (shape, _) in self.observations.items() if len(shape) == 3}

    @property
    def vector_width(self) -> int:
        """Width of all vectors side by side."""
        return sum(self.vectors.values())


@dataclass
class Transition:
    """One step of all n environments.

    Attributes:
        obs: what was seen before the step, name -> (n, ...).
        action: float32 (n, A) in [-1, 1], or int64 (n,).
        reward: float32 (n,).
        terminated, truncated: bool (n,), the two ends told apart: the first ends the return, the second cuts it.
        next_obs: what was seen after it; the true last observation where an episode ended.
        valid: bool (n,), False for steps that only began a new episode, whose action nobody took: no loss counts them.
    """

    obs: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_obs: dict[str, np.ndarray]
    valid: np.ndarray


class Algorithm(ABC):
    """Base of all algorithms. Made from its settings, the world's spaces, a seed and a device.

    Attributes:
        total_steps: environment steps of the whole run, which the loop sets before the first one; rates that fall over
            a run need it, and stay as they are while it is None.
        replay: its `Replay`, where it has one, whose size is said and checked before a run.
        wants: what fields of `RLConfig` are where a recipe leaves them open: `n_envs`, `observe`, `frame_stack`, ...
    """

    config_class: ClassVar[type[AlgorithmConfig]]
    wants: ClassVar[dict[str, Any]] = {}
    total_steps: int | None = None

    def __init__(self, config: AlgorithmConfig, spaces: Spaces, seed: int, device: str = "cpu"):
        self.config, self.spaces, self.seed, self.device = config, spaces, seed, device

    @abstractmethod
    def act(self, obs: dict[str, np.ndarray], explore: bool = True) -> np.ndarray:
        """Actions (n, A) in [-1, 1] or (n,); with `explore` as training takes them, else the best ones."""

    @abstractmethod
    def observe(self, transition: Transition) -> None:
        """Take note of one step of all environments."""

    @abstractmethod
    def update(self) -> dict[str, Tensor]:
        """Learn what is due after a step of the world: scalars to log, {} where nothing was; no wait for a device."""

    @abstractmethod
    def policy(self) -> nn.Module:
        """What acts when learning is over: obs -> actions, with its normalisation, as a module that can be saved."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that going on needs: weights, optimizers, replay, generators, counters."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""


def create_algorithm(
    config: AlgorithmConfig, spaces: Spaces, seed: int = 0, device: str = "cpu", reader: nn.Module | None = None
) -> Algorithm:
    """The algorithm that `config.name` names; `reader` is what it looks through, where `config.own_encoder` says so."""
    return ALGORITHMS.get(config.name)(config, spaces, seed, device, *([] if reader is None else [reader]))
