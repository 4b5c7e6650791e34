"""TD3, twin delayed deep deterministic policy gradients (Fujimoto et al. 2018, arXiv 1802.09477), as its author's code.

`variant: drqv2` is what MTM trains on its representations (facebookresearch/mtm, after DrQ-v2): no delay and no target
actor, an actor that climbs the smaller of the two critics at its own noisy action, and LayerNorm and tanh after the
first layer of each network. Its numbers there: lr 1e-4, batch_size 1024, tau 0.01, noise_clip 0.3, hidden [1024, 1024].
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.control.base import Algorithm, AlgorithmConfig, Spaces, Transition
from mmssl.control.networks import (
    Average,
    Ensemble,
    adam,
    compiled,
    mlp,
    orthogonal,
    orthogonal_members,
    outputs_of,
    set_gradients,
    vector_layout,
)
from mmssl.control.policies import DeterministicPolicy, side_by_side
from mmssl.control.replay import Batch, Replay
from mmssl.control.scratch import Memory, ScratchNet
from mmssl.errors import MmsslError
from mmssl.registry import register_algorithm


@dataclass(frozen=True)
class TD3Config(AlgorithmConfig):
    """Settings of TD3; the defaults are the author's code (sfujim/TD3)."""

    name: str = "td3"
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of actor and critics."""
    lr: float = 3e-4
    batch_size: int = 256
    discount: float = 0.99
    n_step: int = 1
    """Steps of a return before the critics' value."""
    tau: float = 0.005
    """Part of the way that the targets go at each update."""
    policy_noise: float = 0.2
    """Standard deviation of the noise on target actions, of half the action range."""
    noise_clip: float = 0.5
    """Largest absolute value of that noise."""
    policy_freq: int = 2
    """Critic updates to one of the actor and the targets."""
    exploration: float = 0.1
    """Standard deviation of the noise on actions in training."""
    random_steps: int = 25_000
    """Environment steps with random actions, before which nothing is learned."""
    capacity: int = 1_000_000
    """Transitions kept; the oldest go first."""
    replay_folder: Path | None = None
    """A folder on a disk for the replay, in place of memory."""
    updates_per_step: float = 1.0
    """Updates for each environment step."""
    variant: Literal["author", "drqv2"] = "author"
    written_out: bool = True
    """Gradients by formulas on a CPU, for the author's variant; else by autograd. The same numbers but for rounding."""
    compile: bool = False
    """Compile the losses, on a GPU into CUDA graphs, in place of `written_out`; there is nothing in it on a CPU."""

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1 or not 0 < self.tau <= 1:
            raise MmsslError(f"discount and tau must lie in (0, 1], got {self.discount} and {self.tau}.")
        for name in ("batch_size", "n_step", "policy_freq", "capacity"):
            if getattr(self, name) < 1:
                raise MmsslError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("policy_noise", "noise_clip", "exploration", "random_steps"):
            if getattr(self, name) < 0:
                raise MmsslError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        if self.lr <= 0 or self.updates_per_step <= 0:
            raise MmsslError(f"lr and updates_per_step must be above 0, got {self.lr} and {self.updates_per_step}.")
        if not self.hidden or min(self.hidden) < 1:
            raise MmsslError(f"hidden must be widths of at least 1, got {list(self.hidden)}.")


@register_algorithm("td3")
class TD3(Algorithm):
    """Two critics whose smaller value is the target, a smoothed target action, and an actor that learns less often."""

    config_class = TD3Config

    def __init__(self, config: TD3Config, spaces: Spaces, seed: int, device: str = "cpu"):
        super().__init__(config, spaces, seed, device)
        width, actions = vector_layout(spaces, config.name)
        torch.manual_seed(seed)
        self.author = config.variant == "author"
        self._build(width, actions)
        self.target_actor, self.target_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.averages = [Average(self.actor, self.target_actor), Average(self.critic, self.target_critic)]
        self.actor_optimizer = adam(self.actor.parameters(), config.lr)
        self.critic_optimizer = adam(self.critic.parameters(), config.lr)
        self.outputs = outputs_of(self.actor.net, device)
        self.replay = Replay(
            spaces, config.capacity, config.discount, config.n_step, seed, device, on_disk=config.replay_folder
        )
        self.noise = torch.Generator(device).manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.seen, self.updates, self.due = 0, 0, 0.0
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

    def act(self, obs: dict[str, np.ndarray], explore: bool = True) -> np.ndarray:
        n = len(next(iter(obs.values())))
        if explore and self.seen < self.config.random_steps:
            return self.rng.uniform(-1, 1, (n, self.spaces.action_dim)).astype(np.float32)
        if not explore:
            return self.actor.act(obs)
        action = self.outputs(side_by_side(obs))
        action = action + self.config.exploration * self.rng.standard_normal(action.shape, np.float32)
        return np.minimum(np.maximum(action, np.float32(-1)), np.float32(1))

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
        if self.author:
            return action.clamp(-1, 1)
        return action + (action.clamp(-1 + 1e-6, 1 - 1e-6) - action).detach()

    def _noise(self, like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=self.noise, device=like.device, dtype=like.dtype)
        return drawn.mul_(self.config.policy_noise).clamp_(-self.config.noise_clip, self.config.noise_clip)

    def policy(self) -> nn.Module:
        return self.actor

    def state_dict(self) -> dict[str, Any]:
        parts = ("actor", "critic", "target_actor", "target_critic", "actor_optimizer", "critic_optimizer", "replay")
        state = {name: getattr(self, name).state_dict() for name in parts}
        numbers = {"seen": self.seen, "updates": self.updates, "due": self.due}
        return state | numbers | {"noise": self.noise.get_state(), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if hasattr(getattr(self, name), "load_state_dict"):
                getattr(self, name).load_state_dict(value)
        self.seen, self.updates, self.due = state["seen"], state["updates"], state["due"]
        self.noise.set_state(state["noise"])
        self.rng.bit_generator.state = state["rng"]


class Autograd:
    """Gradients of an algorithm's losses, into the parameters' `grad`; each call gives the loss."""

    def __init__(self, owner: TD3):
        self.owner, losses = owner, (owner.critic_loss, owner.actor_loss)
        self.critic_loss, self.actor_loss = (
            compiled(loss, owner.device) if owner.config.compile else loss for loss in losses
        )

    def critic(self, batch: Batch, noise: Tensor) -> Tensor:
        return set_gradients(self.owner.critic_optimizer, self.critic_loss(batch, noise))

    def actor(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        return set_gradients(self.owner.actor_optimizer, self.actor_loss(obs, noise))


class WrittenOut:
    """The same by formulas."""

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
