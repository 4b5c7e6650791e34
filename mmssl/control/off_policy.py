"""What algorithms that learn from a replay share: settings, random steps at first, when updates are due, their state.

A new one is a class of settings and a class with networks and optimizers, `explore` and `learn`; see `DrQv2`.
"""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.control.base import Algorithm, AlgorithmConfig, Spaces, Transition
from mmssl.control.networks import compiled, set_gradients
from mmssl.control.policies import Policy
from mmssl.control.replay import Batch, Replay
from mmssl.errors import MmsslError


@dataclass(frozen=True)
class OffPolicyConfig(AlgorithmConfig):
    """Settings that all of them have; an algorithm sets defaults of its own where its authors' differ from these."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of actor and critics."""
    lr: float = 3e-4
    """Learning rate."""
    batch_size: int = 256
    discount: float = 0.99
    n_step: int = 1
    """Steps of a return before the critics' value."""
    tau: float = 0.005
    """Part of the way that the targets go at each update."""
    random_steps: int = 100
    """Environment steps with random actions, before which nothing is learned."""
    capacity: int = 1_000_000
    """Transitions kept; the oldest go first. Offline it is as many as there are."""
    replay_folder: Path | None = None
    """A folder on a disk for the replay, in place of memory."""
    updates_per_step: float = 1.0
    """Updates for each environment step."""

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1 or not 0 < self.tau <= 1:
            raise MmsslError(f"discount and tau must lie in (0, 1], got {self.discount} and {self.tau}.")
        self._at_least(1, "batch_size", "n_step", "capacity")
        self._at_least(0, "random_steps")
        self._above_0("lr", "updates_per_step")
        if not self.hidden or min(self.hidden) < 1:
            raise MmsslError(f"hidden must be widths of at least 1, got {list(self.hidden)}.")

    def _at_least(self, least: int, *names: str) -> None:
        """An `MmsslError` where one of the settings is smaller."""
        for name in names:
            if getattr(self, name) < least:
                raise MmsslError(
                    f"{name} must be {f'at least {least}' if least else '0 or more'}, got {getattr(self, name)}."
                )

    def _above_0(self, *names: str) -> None:
        """An `MmsslError` where one of the settings is neither null nor above 0."""
        for name in names:
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise MmsslError(f"{name} must be above 0, got {getattr(self, name)}.")


class OffPolicy(Algorithm):
    """Base of algorithms that learn from a replay.

    A subclass builds its networks and optimizers after `super().__init__`, which has seeded torch for them, and names
    in `parts`, `generators` and `counters` what its state consists of.

    Attributes:
        actor: the policy.
        replay: what was lived through; it is created here and takes memory at the first step.
        noise: torch's generator on the device, for what is drawn in learning.
        rng: numpy's, for what is drawn in acting.
        seen: environment steps so far, those that only began an episode left out.
        due: updates that are due, fractions kept.
        parts: attributes with a `state_dict`.
        generators: attributes that are torch's generators.
        counters: attributes that are plain numbers.
    """

    config: OffPolicyConfig
    actor: Policy
    parts: ClassVar[tuple[str, ...]] = (
        "actor",
        "critic",
        "target_critic",
        "actor_optimizer",
        "critic_optimizer",
        "replay",
    )
    generators: ClassVar[tuple[str, ...]] = ("noise",)
    counters: ClassVar[tuple[str, ...]] = ("seen", "due")

    def __init__(self, config: OffPolicyConfig, spaces: Spaces, seed: int, device: str = "cpu"):
        super().__init__(config, spaces, seed, device)
        self.replay = Replay(
            spaces, config.capacity, config.discount, config.n_step, seed, device, on_disk=config.replay_folder
        )
        self.noise = torch.Generator(device).manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.seen, self.due = 0, 0.0
        torch.manual_seed(seed)

    @abstractmethod
    def explore(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        """Actions as training takes them once the random steps are over, float32 (n, A) in [-1, 1]."""

    @abstractmethod
    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """One update from a batch: scalars to log."""

    def act(self, obs: dict[str, np.ndarray], explore: bool = True) -> np.ndarray:
        if not explore:
            return self.actor.act(obs)
        if self.seen < self.config.random_steps:
            n = len(next(iter(obs.values())))
            return self.rng.uniform(-1, 1, (n, self.spaces.action_dim)).astype(np.float32)
        return self.explore(obs)

    def observe(self, transition: Transition) -> None:
        self.replay.add(transition)
        steps = int(np.count_nonzero(transition.valid))
        self.due += steps * self.config.updates_per_step if self.seen >= self.config.random_steps else 0
        self.seen += steps

    def update(self) -> dict[str, Tensor]:
        scalars: dict[str, Tensor] = {}
        while self.due >= 1 and len(self.replay):
            self.due -= 1
            scalars |= self.learn(self.replay.sample(self.config.batch_size))
        return scalars

    def policy(self) -> nn.Module:
        return self.actor

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, name).state_dict() for name in self.parts}
        state |= {name: getattr(self, name).get_state() for name in self.generators}
        return state | {name: getattr(self, name) for name in self.counters} | {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.parts:
            getattr(self, name).load_state_dict(state[name])
        for name in self.generators:
            getattr(self, name).set_state(state[name])
        for name in self.counters:
            setattr(self, name, state[name])
        self.rng.bit_generator.state = state["rng"]


class Autograd:
    """Gradients of an algorithm's `critic_loss` and `actor_loss`, into the parameters' `grad`; each call gives the
    loss. They are compiled where the settings say so."""

    def __init__(self, owner: OffPolicy):
        self.owner, losses = owner, (owner.critic_loss, owner.actor_loss)
        self.critic_loss, self.actor_loss = (
            compiled(loss, owner.device) if owner.config.compile else loss for loss in losses
        )

    def critic(self, batch: Batch, noise: Tensor) -> Tensor:
        return set_gradients(self.owner.critic_optimizer, self.critic_loss(batch, noise))

    def actor(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        return set_gradients(self.owner.actor_optimizer, self.actor_loss(obs, noise))
