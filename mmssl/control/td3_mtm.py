"""TD3 on the state encoder of a masked trajectory model (Wu et al. 2023, arXiv 2305.02968), as the authors' code.

What they call TD3 is DDPG after DrQ-v2: two critics, no delay and no target actor, and an actor that climbs the smaller
of the critics at its own noisy action. Without an encoder the same networks learn from the raw state, their baseline.

The authors learn offline alone. Learning online, with `random_steps` at first, and `keep_obs` together with
`end_to_end` are ours; so is it that dropout is off in an encoder that is fine-tuned.
"""

import copy
from dataclasses import dataclass

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
    step,
    vector_layout,
)
from mmssl.control.off_policy import OffPolicy, OffPolicyConfig
from mmssl.control.policies import DeterministicPolicy
from mmssl.control.replay import Batch
from mmssl.control.state_reader import StateReader
from mmssl.errors import MmsslError
from mmssl.registry import register_algorithm


@dataclass(frozen=True)
class TD3MTMConfig(OffPolicyConfig):
    """Settings of TD3 on a trajectory model; the defaults are the authors', but for what only learning online has."""

    name: str = "td3_mtm"
    end_to_end: bool = False
    """Fine-tune the encoder: actor and critics have a copy each, which learns with them."""
    state_action: bool = False
    """Critics see the encoder's tokens of state and action, which see one another, in place of the state's and the raw
    action; the encoder stays frozen."""
    hidden: tuple[int, ...] = (1024, 1024)
    """Widths of the hidden layers of actor and critics; LayerNorm and tanh follow the first."""
    lr: float = 1e-4
    batch_size: int = 1024
    tau: float = 0.01
    noise: float = 0.2
    """Standard deviation of the noise on actions, in learning and in acting."""
    noise_clip: float = 0.3
    """Largest absolute value of the noise in learning."""
    random_steps: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "noise", "noise_clip")
        if self.end_to_end and self.state_action:
            raise MmsslError("end_to_end fine-tunes the encoder and state_action needs it frozen; set one of them.")

    @property
    def own_encoder(self) -> bool:
        """The algorithm looks through the encoder by itself: the world then shows the raw state."""
        return self.end_to_end or self.state_action


class Critics(nn.Module):
    """Two critics of what the world shows, (B, D) and actions (B, A) -> (2, B), and what they look through.

    Args:
        heads: the critics of features and actions.
        reader: one of their own, which learns with them.
        frozen: one that shows state and action together; its weights are not among this module's.
    """

    def __init__(self, heads: Ensemble, reader: StateReader | None = None, frozen: StateReader | None = None):
        super().__init__()
        self.heads, self.reader, self._frozen = heads, reader, (frozen,)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        if self._frozen[0] is not None:
            return self.heads(*self._frozen[0].with_action(obs, action))
        return self.heads(obs if self.reader is None else self.reader(obs), action)


@register_algorithm("td3_mtm")
class TD3MTM(OffPolicy):
    """Critics on one-step returns, an actor that climbs the smaller of them, on the features of a state encoder."""

    config_class = TD3MTMConfig

    def __init__(
        self, config: TD3MTMConfig, spaces: Spaces, seed: int, device: str = "cpu", reader: StateReader | None = None
    ):
        super().__init__(config, spaces, seed, device)
        width, actions = vector_layout(spaces, config.name)
        if config.own_encoder and reader is None:
            which = "end_to_end" if config.end_to_end else "state_action"
            raise MmsslError(f"{which} needs an encoder of states; name one with --encoder.")
        self._build(width, actions, reader)
        self.target_critic = copy.deepcopy(self.critic)
        self.average = Average(self.critic, self.target_critic)
        self.actor_optimizer = adam(_learned(self.actor), config.lr)
        self.critic_optimizer = adam(_learned(self.critic), config.lr)

    def _build(self, width: int, actions: int, reader: StateReader | None) -> None:
        c = self.config
        seen, acted = (width, actions) if reader is None else (reader.width, actions)
        first = nn.Linear(seen, c.hidden[0]), nn.LayerNorm(c.hidden[0]), nn.Tanh()
        body = orthogonal(nn.Sequential(*first, *mlp((*c.hidden, actions), last=nn.Tanh())))
        if c.state_action:
            seen = acted = reader.encoder.embed_dim
            reader.requires_grad_(False)
        heads = orthogonal_members(Ensemble((seen + acted, *c.hidden, 1), normed=True))
        own = copy.deepcopy(reader) if c.end_to_end else None
        self.actor = DeterministicPolicy(body if reader is None else nn.Sequential(reader, body)).to(self.device)
        self.critic = Critics(heads, own, reader if c.state_action else None).to(self.device)

    def explore(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        action = self.actor.act(obs)
        action = action + self.config.noise * self.rng.standard_normal(action.shape, np.float32)
        return action.clip(-1, 1).astype(np.float32)

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """One update from a batch: the critics, the actor, then the target critics."""
        critic_loss = self.critic_loss(batch)
        step(self.critic_optimizer, critic_loss)
        actor_loss = self.actor_loss(batch.obs)
        step(self.actor_optimizer, actor_loss)
        self.average.step(self.config.tau)
        return {"critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach()}

    def critic_loss(self, batch: Batch) -> Tensor:
        """Squared error of both critics, summed: mean((Q1 - y)^2) + mean((Q2 - y)^2)."""
        with torch.no_grad():
            action = self.sample(self.actor(batch.next_obs))
            value = self.target_critic(batch.next_obs, action).amin(0)  # (B,)
            target = batch.reward + batch.discount * value
        return (self.critic(batch.obs, batch.action) - target).square().mean(1).sum()

    def actor_loss(self, obs: Tensor) -> Tensor:
        """Minus the smaller critic's value of the actor's own actions, noise and all."""
        return -self.critic(obs, self.sample(self.actor(obs))).amin(0).mean()

    def sample(self, mean: Tensor) -> Tensor:
        """Actions around their means (B, A), cut to the open range; the gradient goes through the cut as if uncut."""
        drawn = torch.randn(mean.shape, generator=self.noise, device=mean.device, dtype=mean.dtype) * self.config.noise
        return cut_open(mean + drawn.clamp(-self.config.noise_clip, self.config.noise_clip))


def _learned(module: nn.Module) -> list[nn.Parameter]:
    """The weights of a network that learn: of a reader those that its features depend on."""
    readers = [part for part in module.modules() if isinstance(part, StateReader)]
    inside = {id(p) for reader in readers for p in reader.parameters()}
    own = [p for p in module.parameters() if p.requires_grad and id(p) not in inside]
    return own + [p for reader in readers if any(q.requires_grad for q in reader.parameters()) for p in reader.used()]
