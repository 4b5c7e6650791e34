"""TD3, twin delayed deep deterministic policy gradients (Fujimoto et al. 2018, arXiv 1802.09477), as its author's code.

`variant: drqv2` is what MTM trains on its representations (facebookresearch/mtm, after DrQ-v2): no delay and no target
actor, an actor that climbs the smaller of the two critics at its own noisy action, and LayerNorm and tanh after the
first layer of each network. Its numbers there: lr 1e-4, batch_size 1024, tau 0.01, noise_clip 0.3, hidden [1024, 1024].
"""

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.control.base import Spaces
from mmssl.control.networks import (
    Average,
    Ensemble,
    adam,
    cut_open,
    mlp,
    orthogonal,
    orthogonal_members,
    outputs_of,
    vector_layout,
)
from mmssl.control.off_policy import Autograd, OffPolicy, OffPolicyConfig
from mmssl.control.policies import DeterministicPolicy, side_by_side
from mmssl.control.replay import Batch
from mmssl.control.scratch import Memory, ScratchNet
from mmssl.registry import register_algorithm


@dataclass(frozen=True)
class TD3Config(OffPolicyConfig):
    """Settings of TD3; the defaults are the author's code (sfujim/TD3)."""

    name: str = "td3"
    policy_noise: float = 0.2
    """Standard deviation of the noise on target actions, of half the action range."""
    noise_clip: float = 0.5
    """Largest absolute value of that noise."""
    policy_freq: int = 2
    """Critic updates to one of the actor and the targets."""
    exploration: float = 0.1
    """Standard deviation of the noise on actions in training."""
    random_steps: int = 25_000
    variant: Literal["author", "drqv2"] = "author"
    written_out: bool = True
    """Gradients by formulas on a CPU, for the author's variant; else by autograd. The same numbers but for rounding."""
    compile: bool = False
    """Compile the losses, on a GPU into CUDA graphs, in place of `written_out`; there is nothing in it on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "policy_freq")
        self._at_least(0, "policy_noise", "noise_clip", "exploration")


@register_algorithm("td3")
class TD3(OffPolicy):
    """Two critics whose smaller value is the target, a smoothed target action, and an actor that learns less often."""

    config_class = TD3Config
    parts = (*OffPolicy.parts, "target_actor")
    counters = (*OffPolicy.counters, "updates")

    def __init__(self, config: TD3Config, spaces: Spaces, seed: int, device: str = "cpu"):
        super().__init__(config, spaces, seed, device)
        width, actions = vector_layout(spaces, config.name)
        self.author = config.variant == "author"
        self._build(width, actions)
        self.target_actor, self.target_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.averages = [Average(self.actor, self.target_actor), Average(self.critic, self.target_critic)]
        self.actor_optimizer = adam(self.actor.parameters(), config.lr)
        self.critic_optimizer = adam(self.critic.parameters(), config.lr)
        self.outputs = outputs_of(self.actor.net, device)
        self.updates = 0
        self.gradient = (WrittenOut if self._can_write_out() else Autograd)(self)

    def _can_write_out(self) -> bool:
        wanted = self.config.written_out and self.author and not self.config.compile
        return wanted and ScratchNet.fits(self.actor.net) and ScratchNet.fits(self.critic)

    def _build(self, width: int, actions: int) -> None:
        hidden, sizes = self.config.hidden, (width + actions, *self.config.hidden, 1)
        if self.author:
            net, critic = mlp((width, *hidden, actions), last=nn.Tanh()), Ensemble(sizes)
        else:
            first = nn.Linear(width, hidden[0]), nn.LayerNorm(hidden[0]), nn.Tanh()
            net = orthogonal(nn.Sequential(*first, *mlp((*hidden, actions), last=nn.Tanh())))
            critic = orthogonal_members(Ensemble(sizes, normed=True))
        self.actor, self.critic = DeterministicPolicy(net).to(self.device), critic.to(self.device)

    def explore(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        action = self.outputs(side_by_side(obs))
        action = action + self.config.exploration * self.rng.standard_normal(action.shape, np.float32)
        return np.minimum(np.maximum(action, np.float32(-1)), np.float32(1))

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """One update from a batch: the critics always, actor and targets every `policy_freq` times."""
        self.updates += 1
        scalars = {"critic_loss": self.gradient.critic(batch, self._noise(batch.action))}
        self.critic_optimizer.step()
        if not self.author or self.updates % self.config.policy_freq == 0:
            scalars["actor_loss"] = self.gradient.actor(batch.obs, None if self.author else self._noise(batch.action))
            self.actor_optimizer.step()
            for average in self.averages:
                average.step(self.config.tau)
        return scalars

    def critic_loss(self, batch: Batch, noise: Tensor) -> Tensor:
        """Squared error of both critics, summed: mean((Q1 - y)^2) + mean((Q2 - y)^2); noise (B, A), cut."""
        with torch.no_grad():
            actor = self.target_actor if self.author else self.actor
            action = self._cut(actor(batch.next_obs) + noise)
            value = self.target_critic(batch.next_obs, action).amin(0)  # (B,)
            target = batch.reward + batch.discount * value
        return (self.critic(batch.obs, batch.action) - target).square().mean(1).sum()

    def actor_loss(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Minus the first critic's value of the actor's own actions; of the smaller of both, with noise, in the
        variant."""
        action = self.actor(obs)
        if self.author:
            return -self.critic.member(0, obs, action).mean()
        return -self.critic(obs, self._cut(action + noise)).amin(0).mean()

    def _cut(self, action: Tensor) -> Tensor:
        """Actions in [-1, 1]; in the variant in the open range, and the gradient goes through as if nothing was cut."""
        return action.clamp(-1, 1) if self.author else cut_open(action)

    def _noise(self, like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=self.noise, device=like.device, dtype=like.dtype)
        return drawn.mul_(self.config.policy_noise).clamp_(-self.config.noise_clip, self.config.noise_clip)


class WrittenOut:
    """What `Autograd` gives, by formulas."""

    def __init__(self, owner: TD3):
        memory, self.cut = Memory(), owner._cut
        self.actor_net = ScratchNet(owner.actor.net, memory, learns=True)
        self.critic_net = ScratchNet(owner.critic, memory, learns=True)
        self.first_critic = ScratchNet(owner.critic, memory, slice(0, 1))
        self.target_actor = ScratchNet(owner.target_actor.net, memory)
        self.target_critic = ScratchNet(owner.target_critic, memory)

    @torch.no_grad()
    def critic(self, batch: Batch, noise: Tensor) -> Tensor:
        action = self.cut(self.target_actor(batch.next_obs)[0].tanh_() + noise)
        value = self.target_critic(batch.next_obs, action).amin(0)[:, 0]  # (B,)
        target = torch.addcmul(batch.reward, batch.discount, value)
        error = self.critic_net(batch.obs, batch.action, keep=True) - target[:, None]  # (2, B, 1)
        self.critic_net.backward(error * (2 / len(target)))
        return error.square().sum() / len(target)

    @torch.no_grad()
    def actor(self, obs: Tensor, noise: None = None) -> Tensor:
        action = self.actor_net(obs, keep=True)[0].tanh_()
        value = self.first_critic(obs, action, keep=True)  # (1, B, 1)
        slope = self.first_critic.backward(torch.full_like(value, -1 / len(obs)), weights=False, inputs=True)
        self.actor_net.backward((slope[:, obs.shape[1] :] * (1 - action.square()))[None])
        return -value.mean()
