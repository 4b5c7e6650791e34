"""PPO, proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), with the details that make it work.

They are the 13 core and 9 continuous-action ones of "The 37 implementation details of PPO" (Huang et al. 2022). The
defaults are CleanRL's for continuous actions, but the value loss is not clipped, and cut episodes go on for the value.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.control.base import Algorithm, AlgorithmConfig, Spaces, Transition
from mmssl.control.fused_mlp import FlatAdam, FlatParameters, RowMlp
from mmssl.control.networks import ACTIVATIONS, mlp, orthogonal
from mmssl.control.normalize import ReturnScale, RunningMoments, Standardize
from mmssl.control.policies import CategoricalPolicy, GaussianPolicy, side_by_side
from mmssl.control.ppo_gradient import Autograd, Losses, Minibatch, WrittenOut
from mmssl.control.rollout import Rollout, gae
from mmssl.errors import MmsslError, unknown_name
from mmssl.registry import register_algorithm

SMALL = 512
"""Rows of a minibatch above which autograd is as fast as formulas."""


@dataclass(frozen=True)
class PPOConfig(AlgorithmConfig):
    """Settings of PPO. MVP's are: hidden (256, 128, 64), selu, project 128, rollout 8192, minibatches 4, lr 1e-3 with a
    cosine, adam_eps 1e-8, clip 0.1, value_coef 2, max_grad_norm 1, shuffle False, advantage `rollout`,
    bootstrap_truncated False and neither observations nor rewards normalised."""

    name: str = "ppo"
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    activation: str = "tanh"
    shared: bool = False
    """Actor and critic share their hidden layers."""
    project: int | None = None
    """Width of a linear layer in front of each observation vector, shared by actor and critic; None: no such layer."""
    orthogonal: bool = True
    """Orthogonal weights with gain sqrt(2), 0.01 for actions and 1 for values, and zero biases; else torch's own."""
    squash: bool = False
    """Continuous actions are tanh of the Gaussian; else they are cut at -1 and 1, for the world alone."""
    log_std: float = 0.0
    """Start of the logarithm of the Gaussian's deviation, which is the same in every state."""
    rollout: int = 2048
    """Transitions of all environments together between two updates, rounded to whole steps of all."""
    minibatches: int = 32
    """Parts of nearly equal size into which a rollout is cut."""
    epochs: int = 10
    """How often a rollout is gone through."""
    shuffle: bool = True
    """Transitions are drawn anew for the minibatches of each epoch; else they stay in the order of time."""
    lr: float = 3e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls to 0 over the run."""
    adam_eps: float = 1e-5
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    """How far the ratio of probabilities may move from 1."""
    value_clip: float | None = None
    """How far values may move from what they were; None: as far as they like."""
    value_coef: float = 0.25
    """Weight of the values' squared error; CleanRL writes this as 0.5 times half of it."""
    entropy_coef: float = 0.0
    max_grad_norm: float = 0.5
    advantage: Literal["minibatch", "rollout", "raw"] = "minibatch"
    """Over what advantages are brought to mean 0 and deviation 1; `raw`: they are not."""
    target_kl: float | None = None
    """An update stops once the policy has moved further than this (an estimate of the KL divergence)."""
    kl_check: Literal["minibatch", "epoch"] = "minibatch"
    """Look before each minibatch's step, against 1.5 times target_kl (Stable-Baselines3), or after each epoch at its
    last minibatch (CleanRL)."""
    bootstrap_truncated: bool = True
    """The value of the last observation stands for what a cut episode would have brought; else a cut is an end."""
    normalize_obs: bool = True
    """Observations less their running mean over their deviation, cut at +-obs_limit; saved with the policy."""
    obs_limit: float = 10.0
    normalize_reward: bool = True
    """Rewards over the running deviation of the discounted return, cut at +-reward_limit."""
    reward_limit: float = 10.0
    written_out: bool = True
    """Gradients by formulas written out, where actor and critic are plain perceptrons on a CPU and minibatches have at
    most 512 rows, several times faster then; else by autograd. The same numbers but for rounding."""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown_name("activation", self.activation, ACTIVATIONS)
        for name in ("rollout", "minibatches", "epochs", *(("project",) if self.project is not None else ())):
            if getattr(self, name) < 1:
                raise MmsslError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.hidden or min(self.hidden) < 1:
            raise MmsslError(f"hidden must be one or more widths of at least 1, got {self.hidden}.")
        if self.minibatches > self.rollout:
            raise MmsslError(f"minibatches must be at most the rollout's {self.rollout}, got {self.minibatches}.")
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise MmsslError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        for name in ("lr", "adam_eps", "clip", "value_clip", "max_grad_norm", "target_kl", "obs_limit", "reward_limit"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise MmsslError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.value_coef < 0 or self.entropy_coef < 0:
            raise MmsslError(
                f"value_coef and entropy_coef must be 0 or more, got {self.value_coef} and {self.entropy_coef}."
            )


class Project(nn.Module):
    """A linear layer for each observation vector, side by side: (B, sum of widths) -> (B, vectors * width)."""

    def __init__(self, widths: list[int], width: int):
        super().__init__()
        self.widths = widths
        self.layers = nn.ModuleList([nn.Linear(w, width) for w in widths])

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.layers, x.split(self.widths, -1), strict=True)
        return torch.cat([layer(part) for layer, part in parts], -1)


def build_nets(config: PPOConfig, spaces: Spaces) -> tuple[nn.Sequential, nn.Sequential]:
    """Actor and critic, (B, D) -> (B, A) and (B, 1); with `project` or `shared` they begin with the same modules."""
    fronts: list[nn.Module] = []
    width, hidden = spaces.vector_width, config.hidden
    if config.project is not None:
        fronts.append(Project(list(spaces.vectors.values()), config.project))
        width = config.project * len(spaces.vectors)
    if config.shared:
        fronts.append(mlp((width, *hidden), config.activation, ACTIVATIONS[config.activation]()))
        width, hidden = hidden[-1], ()
    heads = [mlp((width, *hidden, out), config.activation) for out in (spaces.action_dim, 1)]
    if config.orthogonal:
        for front in fronts:
            orthogonal(front, math.sqrt(2))
        for head, gain in zip(heads, (0.01, 1.0), strict=True):
            orthogonal(head, math.sqrt(2), last=gain)
    return tuple(nn.Sequential(*fronts, head) if fronts else head for head in heads)


@register_algorithm("ppo")
class PPO(Algorithm):
    """Rollouts of all environments, and after each a few passes over it that keep the policy near what it was."""

    config_class = PPOConfig
    wants: ClassVar[dict[str, Any]] = {"n_envs": 8}

    def __init__(self, config: PPOConfig, spaces: Spaces, seed: int, device: str = "cpu"):
        super().__init__(config, spaces, seed, device)
        if not spaces.vectors or spaces.pictures:
            raise MmsslError(
                f"ppo learns from vectors, and this world shows {', '.join(spaces.observations)}; give it a frozen "
                "encoder, or take curl or drqv2 for pictures."
            )
        if spaces.discrete and config.squash:
            raise MmsslError("squash is for continuous actions, and this task has discrete ones.")
        torch.manual_seed(seed)
        actor, critic = build_nets(config, spaces)
        squashed = {"log_std": config.log_std, "squash": config.squash}
        policy = CategoricalPolicy(actor) if spaces.discrete else GaussianPolicy(actor, spaces.action_dim, **squashed)
        if config.normalize_obs:
            policy.normal = Standardize(spaces.vector_width, config.obs_limit)
        self.actor, self.critic = policy.to(device), critic.to(device)
        losses = Losses(config.clip, config.value_clip, config.value_coef, config.entropy_coef)
        small = config.rollout <= SMALL * config.minibatches
        written_out = config.written_out and small and WrittenOut.fits(self.actor, self.critic)
        self.gradient = (WrittenOut if written_out else Autograd)(self.actor, self.critic, losses)
        self.flat: FlatParameters = self.gradient.flat
        self.optimizer = FlatAdam(self.flat.vector, config.lr, config.adam_eps)
        self.fast = RowMlp(actor) if RowMlp.fits(actor) else None
        self.moments = RunningMoments(spaces.vector_width, config.obs_limit)
        self.scale = ReturnScale(spaces.n_envs, config.discount, config.reward_limit)
        self.rollout = Rollout(max(1, round(config.rollout / spaces.n_envs)), spaces)
        self.rng = np.random.default_rng(seed)
        self.seen, self.acted = 0, None

    def act(self, obs: dict[str, np.ndarray], explore: bool = True) -> np.ndarray:
        if not explore:
            return self.policy().act(obs)
        if self.moments.count < 1:  # nothing seen yet
            self.moments.update(side_by_side(obs))
        seen = self._normal(obs)
        drawn = self.actor.draw(self._outputs(seen), self.rng)
        self.acted = seen, drawn
        return self.actor.bound(drawn)

    def _normal(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        joined = side_by_side(obs)
        return self.moments.normal(joined) if self.config.normalize_obs else joined

    def _outputs(self, x: np.ndarray) -> np.ndarray:
        """Means or logits (n, A)."""
        if self.fast is not None:
            return self.fast(x)
        with torch.inference_mode():
            return self.actor.net(torch.from_numpy(x).to(self.device)).cpu().numpy()

    def observe(self, transition: Transition) -> None:
        t, rollout = transition, self.rollout
        if self.acted is None and t.valid.any():
            raise MmsslError("ppo must act before each step that it observes: call act(obs) first.")
        ended = t.terminated | t.truncated
        reward = self.scale(t.reward, ended, t.valid) if self.config.normalize_reward else t.reward
        terminated = t.terminated if self.config.bootstrap_truncated else ended
        obs, drawn = self.acted or (self._normal(t.obs), np.zeros_like(rollout.drawn[0]))
        self.acted = None
        rollout.add(obs=obs, drawn=drawn, reward=reward, terminated=terminated, ended=ended, valid=t.valid)
        self.moments.update(side_by_side(t.next_obs))
        self.seen += int(t.valid.sum())
        if rollout.full:
            rollout.obs[-1] = self._normal(t.next_obs)

    def update(self) -> dict[str, Tensor]:
        if not self.rollout.full:
            return {}
        rows = self.rows()
        self.rollout.filled = 0
        if len(rows.obs) == 0:
            return {}
        self._set_rate(self.seen - len(rows.obs))
        scalars = self.learn(rows)
        if self.fast is not None and torch.device(self.device).type != "cpu":
            self.fast.refresh()
        return scalars

    def _set_rate(self, before: int) -> None:
        """The learning rate of an update before whose rollout `before` steps had been taken."""
        part = 0.0 if self.total_steps is None else min(1.0, before / self.total_steps)
        left = {"linear": 1 - part, "cosine": 0.5 + 0.5 * math.cos(math.pi * part), "constant": 1.0}
        self.optimizer.lr = self.config.lr * left[self.config.schedule]

    @torch.no_grad()
    def rows(self) -> Minibatch:
        """The valid transitions of the rollout in the order of time, environments side by side, on the device."""
        r, config = self.rollout, self.config
        values = self._values(r.obs)
        advantage = gae(r.reward, values, r.terminated, r.ended, config.discount, config.gae_lambda)
        old = values[:-1]
        host = [x[r.valid] for x in (r.obs[:-1], r.drawn, advantage, advantage + old, old)]
        obs, drawn, advantage, target, old = (torch.from_numpy(x).to(self.device) for x in host)
        log_prob, _ = self.actor.log_prob(self.actor.net(obs), drawn)
        if config.advantage == "rollout":
            advantage = standardize(advantage)
        return Minibatch(obs, drawn, log_prob, advantage, target, old)

    @torch.no_grad()
    def _values(self, obs: np.ndarray) -> np.ndarray:
        """The critic's values of observations (..., D), one pass for all of them."""
        flat = torch.from_numpy(obs.reshape(-1, obs.shape[-1])).to(self.device)
        return self.critic(flat)[:, 0].cpu().numpy().reshape(obs.shape[:-1])

    def learn(self, rows: Minibatch) -> dict[str, Tensor]:
        """All epochs over a rollout; scalars are of the last one."""
        count = min(self.config.minibatches, len(rows.obs))
        sizes = [len(part) for part in np.array_split(np.arange(len(rows.obs)), count)]
        with self.gradient.threads():
            for _ in range(self.config.epochs):
                epoch = self._arranged(rows, count)
                moved, values, stopped = self._epoch(self.gradient.parts(epoch, sizes))
                if stopped:
                    break
        return self._scalars(epoch, moved, values)

    def _arranged(self, rows: Minibatch, count: int) -> Minibatch:
        """The rows of one epoch, cut into `count` minibatches next: shuffled, advantages normalised."""
        if self.config.shuffle:
            order = torch.from_numpy(self.rng.permutation(len(rows.obs))).to(self.device)
            rows = Minibatch(*(x[order] for x in rows))
        if self.config.advantage == "minibatch":
            rows = rows._replace(advantage=standardize_parts(rows.advantage, count))
        return rows

    def _epoch(self, parts: Iterator[Minibatch]) -> tuple[Tensor, Tensor, bool]:
        """A step for each minibatch: log-ratios and values (N,) as they were before it, and whether to stop."""
        target, check = self.config.target_kl, self.config.kl_check
        moved, values = [], []
        for part in parts:
            log_ratio, value = self.gradient(part)
            moved.append(log_ratio)
            values.append(value)
            if target is not None and check == "minibatch" and divergence(log_ratio) > 1.5 * target:
                return torch.cat(moved), torch.cat(values), True
            self.gradient.clip(self.config.max_grad_norm)
            self.optimizer.step()
        stopped = target is not None and check == "epoch" and bool(divergence(moved[-1]) > target)
        return torch.cat(moved), torch.cat(values), stopped

    @torch.no_grad()
    def _scalars(self, epoch: Minibatch, moved: Tensor, values: Tensor) -> dict[str, Tensor]:
        """What to log, over as much of the last epoch as was gone through."""
        n, losses = len(moved), self.gradient.losses
        advantage, target, old = epoch.advantage[:n], epoch.target[:n], epoch.value[:n]
        return {
            "policy_loss": losses.policy(moved, advantage),
            "value_loss": losses.value(values, target, old),
            "kl": divergence(moved),
            "clipped": ((moved.exp() - 1).abs() > self.config.clip).float().mean(),
            "explained_variance": 1
            - (epoch.target - epoch.value).var(correction=0) / (epoch.target.var(correction=0) + 1e-8),
            "entropy": self.actor.log_prob(self.actor.net(epoch.obs), epoch.drawn)[1].mean(),
            "lr": torch.tensor(self.optimizer.lr),
        }

    def policy(self) -> nn.Module:
        """What acts; it shares the weights that are being learned, and has the statistics of observations so far."""
        if self.config.normalize_obs:
            self.actor.normal.take(self.moments)
        return self.actor

    def state_dict(self) -> dict[str, Any]:
        parts = ("actor", "critic", "optimizer", "moments", "scale", "rollout")
        state = {name: getattr(self, name).state_dict() for name in parts}
        return state | {"seen": self.seen, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("actor", "critic", "optimizer", "moments", "scale", "rollout"):
            getattr(self, name).load_state_dict(state[name])
        self.seen = int(state["seen"])
        self.rng.bit_generator.state = state["rng"]
        if self.fast is not None:
            self.fast.refresh()


def divergence(log_ratio: Tensor) -> Tensor:
    """An estimate of the KL divergence of the new policy from the old one: mean(r - 1 - log r), r the ratio."""
    return (log_ratio.exp() - 1 - log_ratio).mean()


def standardize(x: Tensor) -> Tensor:
    """Mean 0 and deviation 1 along the last axis; a single value stays as it is."""
    if x.shape[-1] < 2:
        return x
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-8)


def standardize_parts(x: Tensor, count: int) -> Tensor:
    """`standardize` each of the parts of nearly equal size, the longer ones first, into which (N,) is cut."""
    size, longer = divmod(len(x), count)
    middle = longer * (size + 1)
    parts = (x[:middle].view(longer, size + 1), x[middle:].view(count - longer, size))
    return torch.cat([standardize(part).flatten() for part in parts if len(part)])
