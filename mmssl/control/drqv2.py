"""DrQ-v2 (Yarats et al. 2021, arXiv 2107.09645), as the authors' code: DDPG with two critics from moved pixels.

There is no target actor and no target encoder; the encoder learns from the critics alone.
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.control.base import Spaces
from mmssl.control.crops import bilinear_shift, draw_shifts, shift
from mmssl.control.networks import Average, Ensemble, adam, cut_open, mlp, orthogonal, orthogonal_members, step
from mmssl.control.off_policy import OffPolicy, OffPolicyConfig
from mmssl.control.pixel_networks import (
    FromPixels,
    Look,
    PixelCritic,
    PixelNet,
    Seen,
    code,
    flat,
    join_pictures,
    picture_layout,
)
from mmssl.control.policies import DeterministicPolicy
from mmssl.control.replay import Batch
from mmssl.registry import register_algorithm


@dataclass(frozen=True)
class DrQv2Config(OffPolicyConfig):
    """Settings of DrQ-v2; the defaults are the authors' for tasks of medium difficulty. Steps are those of the agent,
    each of which repeats its action (twice there)."""

    name: str = "drqv2"
    layers: int = 4
    """Convolutions."""
    filters: int = 32
    features: int = 50
    """Width of the code between convolutions and the rest (100 for the humanoid)."""
    hidden: tuple[int, ...] = (1024, 1024)
    lr: float = 1e-4
    n_step: int = 3
    """Steps of a return before the critics' value (1 for walker-walk)."""
    tau: float = 0.01
    pad: int = 4
    """Largest shift of a picture in pixels."""
    bilinear: bool = False
    """Shift by interpolation, as the authors' code does; the same pictures up to rounding, slower."""
    noise_start: float = 1.0
    """Standard deviation of the noise on actions at the start."""
    noise_end: float = 0.1
    noise_steps: int = 500_000
    """Steps until it is at its end: 100,000 for easy tasks, 2,000,000 for hard ones."""
    noise_clip: float = 0.3
    """Largest absolute value of the noise in learning."""
    random_steps: int = 2000
    updates_per_step: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "layers", "filters", "features", "noise_steps")
        self._at_least(0, "pad", "noise_start", "noise_end", "noise_clip")


class PixelActor(FromPixels, DeterministicPolicy):
    """A deterministic actor, seen from pixels."""


@register_algorithm("drqv2")
class DrQv2(OffPolicy):
    """Critics on n-step returns, an actor that climbs the smaller of them, noise that falls with time."""

    config_class = DrQv2Config
    wants: ClassVar[dict[str, Any]] = {"observe": "pixels", "size": (84, 84), "frame_stack": 3}
    generators = (*OffPolicy.generators, "shifts")

    def __init__(self, config: DrQv2Config, spaces: Spaces, seed: int, device: str = "cpu"):
        super().__init__(config, spaces, seed, device)
        channels, size = picture_layout(spaces, config.name)
        look = Look(channels, size, config.layers, config.filters, "orthogonal", offset=0.5)
        wide, actions = config.features + spaces.vector_width, spaces.action_dim
        body = orthogonal(mlp((wide, *config.hidden, actions), last=nn.Tanh()))
        net = PixelNet(look, code(look.width, config.features, nn.Tanh()), body)
        self.actor = PixelActor(net).to(device)
        heads = orthogonal_members(Ensemble((wide + actions, *config.hidden, 1)))
        self.critic = PixelCritic(look, code(look.width, config.features, nn.Tanh()), heads).to(device)
        self.target_critic = copy.deepcopy(self.critic)
        online, target = (nn.ModuleList([c.code, c.heads]) for c in (self.critic, self.target_critic))
        self.average = Average(online, target)  # its convolutions are never looked through
        self.critic_optimizer = adam(self.critic.parameters(), config.lr)
        self.actor_optimizer = adam(net.own, config.lr)
        self.shifts = torch.Generator().manual_seed(seed)

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise now."""
        c, done = self.config, min(self.seen / self.config.noise_steps, 1.0)
        return (1 - done) * c.noise_start + done * c.noise_end

    def explore(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        action = self.actor.act(obs)
        action = action + self.rng.normal(0, self.sigma, action.shape)
        return action.clip(-1, 1).astype(np.float32)

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """One update from a batch: encoder and critics, then the actor on the same map, then the target."""
        seen = self.look(batch.pictures, batch.obs)
        with torch.no_grad():
            later = self.look(batch.next_pictures, batch.next_obs)
        critic_loss = self.critic_loss(batch._replace(obs=seen, next_obs=later))
        step(self.critic_optimizer, critic_loss)
        actor_loss = self.actor_loss(Seen(seen.pictures.detach(), batch.obs))
        step(self.actor_optimizer, actor_loss)
        self.average.step(self.config.tau)
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach()}

    def look(self, pictures: dict[str, Tensor], vectors: Tensor) -> Seen:
        """What the convolutions make of pictures, each sample moved by its own shift."""
        x, pad = join_pictures(pictures), self.config.pad
        moved = (bilinear_shift if self.config.bilinear else shift)(x, draw_shifts(len(x), pad, self.shifts), pad)
        return Seen(flat(self.critic.look, Seen(moved, vectors)), vectors)

    def critic_loss(self, batch: Batch) -> Tensor:
        """Squared error of both critics, summed: mean((Q1 - y)^2) + mean((Q2 - y)^2); observations are `Seen`."""
        with torch.no_grad():
            action = self.sample(self.actor(batch.next_obs))
            value = self.target_critic(batch.next_obs, action).amin(0)  # (B,)
            target = batch.reward + batch.discount * value
        return (self.critic(batch.obs, batch.action) - target).square().mean(1).sum()

    def actor_loss(self, seen: Seen) -> Tensor:
        """Minus the smaller critic's value of the actor's own actions, noise and all."""
        return -self.critic(seen, self.sample(self.actor(seen))).amin(0).mean()

    def sample(self, mean: Tensor) -> Tensor:
        """Actions around their means (B, A), cut to the open range; the gradient goes through the cut as if uncut."""
        drawn = torch.randn(mean.shape, generator=self.noise, device=mean.device, dtype=mean.dtype) * self.sigma
        return cut_open(mean + drawn.clamp(-self.config.noise_clip, self.config.noise_clip))
