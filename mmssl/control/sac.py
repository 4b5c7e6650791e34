"""SAC, soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), from vectors.

The defaults are those of Stable-Baselines3: every learning rate 3e-4, everything learned at every step, alpha from 1 by
a loss on its logarithm, log-deviations cut to [-20, 2], 100 random steps. CleanRL's: critic_lr and alpha_lr 1e-3,
actor_freq 2, actor_repeats 2, log_std [-5, 2] with log_std_map tanh, random_steps 5000. The numbers of CURL's SAC: lr
and critic_lr 1e-3, alpha 0.1 with alpha_lr 1e-4, alpha_beta 0.5 and alpha_loss alpha, log_std [-10, 2] with tanh, tau
0.01, actor_freq and target_freq 2, hidden [1024, 1024], random_steps 1000.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.control import off_policy
from mmssl.control.base import Spaces
from mmssl.control.networks import Average, Ensemble, adam, mlp, outputs_of, set_gradients, vector_layout
from mmssl.control.off_policy import OffPolicy, OffPolicyConfig
from mmssl.control.policies import SquashedPolicy, side_by_side
from mmssl.control.replay import Batch
from mmssl.control.scratch import Memory, ScratchNet
from mmssl.errors import MmsslError
from mmssl.registry import register_algorithm


@dataclass(frozen=True)
class SACConfig(OffPolicyConfig):
    """Settings of SAC; the defaults are Stable-Baselines3's."""

    name: str = "sac"
    critic_lr: float | None = None
    """Of the critics; null for `lr`."""
    alpha_lr: float | None = None
    """Of alpha; null for `lr`."""
    alpha: float = 1.0
    """Weight of the entropy, at the start where it is learned."""
    learn_alpha: bool = True
    alpha_loss: Literal["log_alpha", "alpha"] = "log_alpha"
    """What the lack of entropy is multiplied with in alpha's loss."""
    alpha_beta: float = 0.9
    """Decay of the first moment in alpha's Adam."""
    target_entropy: float | None = None
    """Entropy that alpha is learned towards; null for minus the number of actions."""
    log_std: tuple[float, float] = (-20.0, 2.0)
    """Range of the logarithm of the actor's deviation."""
    log_std_map: Literal["clamp", "tanh"] = "clamp"
    """How it is kept there."""
    actor_freq: int = 1
    """Updates to one of actor and alpha."""
    actor_repeats: int = 1
    """How many updates of actor and alpha follow each other then, with noise of their own."""
    target_freq: int = 1
    """Updates to one of the targets."""
    written_out: bool = True
    """Gradients by formulas on a CPU; else by autograd. The same numbers but for rounding."""
    compile: bool = False
    """Compile the losses, on a GPU into CUDA graphs, in place of `written_out`; there is nothing in it on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "actor_freq", "actor_repeats", "target_freq")
        self._above_0("critic_lr", "alpha_lr", "alpha")
        if not 0 <= self.alpha_beta < 1:
            raise MmsslError(f"alpha_beta must lie in [0, 1), got {self.alpha_beta}.")
        if self.log_std[0] >= self.log_std[1]:
            raise MmsslError(f"log_std must be a lower and a higher bound, got {list(self.log_std)}.")


@register_algorithm("sac")
class SAC(OffPolicy):
    """Two critics of return and entropy, and an actor that is drawn towards what they value, as widely as alpha says.

    Attributes:
        log_alpha: logarithm of the entropy's weight, a number that is learned unless the settings fix it.
    """

    config_class = SACConfig
    parts = (*OffPolicy.parts, "alpha_optimizer")
    counters = (*OffPolicy.counters, "updates")

    def __init__(self, config: SACConfig, spaces: Spaces, seed: int, device: str = "cpu"):
        super().__init__(config, spaces, seed, device)
        self._build()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.alpha), device=device))
        self.target_entropy = -spaces.action_dim if config.target_entropy is None else config.target_entropy
        self._build_optimizers()
        self.updates = 0
        self.gradient = (WrittenOut if self._can_write_out() else Autograd)(self)

    def _build(self) -> None:
        config, (width, actions) = self.config, vector_layout(self.spaces, self.config.name)
        net = mlp((width, *config.hidden, 2 * actions))
        self.actor = SquashedPolicy(net, config.log_std, config.log_std_map == "tanh").to(self.device)
        self.critic = Ensemble((width + actions, *config.hidden, 1)).to(self.device)
        self.target_critic = copy.deepcopy(self.critic)
        self.average = Average(self.critic, self.target_critic)
        self.outputs = outputs_of(net, self.device)

    def _build_optimizers(self) -> None:
        config = self.config
        self.actor_optimizer = adam(self.actor.parameters(), config.lr)
        self.critic_optimizer = adam(self.critic.parameters(), config.critic_lr or config.lr)
        self.alpha_optimizer = adam([self.log_alpha], config.alpha_lr or config.lr, betas=(config.alpha_beta, 0.999))

    def _can_write_out(self) -> bool:
        wanted = self.config.written_out and not self.config.compile
        return wanted and ScratchNet.fits(self.actor.net) and ScratchNet.fits(self.critic)

    def explore(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        return self.actor.draw(self.outputs(side_by_side(obs)), self.rng)

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """One update from a batch: the critics; actor and alpha; the targets."""
        config, count = self.config, len(batch.reward)
        self.updates += 1
        scalars = {"critic_loss": self.gradient.critic(batch, self._noise(count))}
        self.critic_optimizer.step()
        if self.updates % config.actor_freq == 0:
            for _ in range(config.actor_repeats):
                scalars |= self._learn_actor(batch.obs, self._noise(count))
        if self.updates % config.target_freq == 0:
            self.average.step(config.tau)
        return scalars

    def _learn_actor(self, obs: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """A step of the actor and, by the entropy that it had before, one of alpha."""
        loss, density = self.gradient.actor(obs, noise)
        self.actor_optimizer.step()
        entropy = -density.mean()
        scalars = {"actor_loss": loss, "entropy": entropy, "alpha": self.log_alpha.detach().exp()}
        if self.config.learn_alpha:
            self.log_alpha.grad = self.alpha_gradient(entropy)
            self.alpha_optimizer.step()
        return scalars

    def critic_loss(self, batch: Batch, noise: Tensor) -> Tensor:
        """Half the squared error of both critics, summed; standard noise (B, A) of the next actions.

        The half is Stable-Baselines3's; Adam does not see it.
        """
        with torch.no_grad():
            action, density = self.actor.sample(batch.next_obs, noise)
            value = self.target_critic(batch.next_obs, action).amin(0)  # (B,)
            target = batch.reward + batch.discount * (value - self.log_alpha.exp() * density)
        return 0.5 * (self.critic(batch.obs, batch.action) - target).square().mean(1).sum()

    def actor_loss(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the actor falls down, and the log-density (B,) of the actions that it drew from the noise (B, A)."""
        action, density = self.actor.sample(obs, noise)
        value = self.critic(obs, action).amin(0)
        return (self.log_alpha.detach().exp() * density - value).mean(), density

    def alpha_gradient(self, entropy: Tensor) -> Tensor:
        """Slope of `log_alpha * (entropy - target)`, or of `alpha * (entropy - target)`, by the logarithm of alpha."""
        away = entropy - self.target_entropy
        return away if self.config.alpha_loss == "log_alpha" else away * self.log_alpha.detach().exp()

    def _noise(self, count: int) -> Tensor:
        return torch.randn(count, self.spaces.action_dim, generator=self.noise, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"log_alpha": self.log_alpha.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.log_alpha.data.copy_(state["log_alpha"])


class Autograd(off_policy.Autograd):
    """Gradients of the losses, into the parameters' `grad`; each call gives the loss, the actor's the density too."""

    def actor(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        loss, density = self.actor_loss(obs, noise)
        return set_gradients(self.owner.actor_optimizer, loss), density.detach()


class WrittenOut:
    """The same by formulas."""

    def __init__(self, owner: SAC):
        memory, self.policy, self.log_alpha = Memory(), owner.actor, owner.log_alpha
        self.actor_net = ScratchNet(owner.actor.net, memory, learns=True)
        self.critic_net = ScratchNet(owner.critic, memory, learns=True)
        self.target_critic = ScratchNet(owner.target_critic, memory)

    @torch.no_grad()
    def critic(self, batch: Batch, noise: Tensor) -> Tensor:
        action, density = self.policy.squash(self.actor_net(batch.next_obs)[0], noise)
        value = self.target_critic(batch.next_obs, action).amin(0)[:, 0] - self.log_alpha.exp() * density  # (B,)
        target = torch.addcmul(batch.reward, batch.discount, value)
        error = self.critic_net(batch.obs, batch.action, keep=True) - target[:, None]  # (2, B, 1)
        self.critic_net.backward(error / len(target))
        return 0.5 * error.square().sum() / len(target)

    @torch.no_grad()
    def actor(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.actor_net(obs, keep=True)[0]
        action, density = self.policy.squash(outputs, noise)
        value, lower = self.critic_net(obs, action, keep=True).min(0, keepdim=True)  # (1, B, 1)
        chosen = value.new_zeros(2, *value.shape[1:]).scatter_(0, lower, -1 / len(obs))
        slope = self.critic_net.backward(chosen, weights=False, inputs=True)[:, obs.shape[1] :]
        weight = self.log_alpha.exp()
        self.actor_net.backward(self.policy.squash_backward(outputs, noise, action, slope, weight / len(obs))[None])
        return (weight * density - value[0, :, 0]).mean(), density
