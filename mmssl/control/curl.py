"""CURL (Laskin, Srinivas and Abbeel 2020, arXiv 2004.04136), as the authors' code: SAC from pixels with a contrast.

The contrastive objective is that of `mmssl.methods.curl`. Without it, and with its crops, this is RAD's SAC (arXiv
2004.14990); without both, SAC from pixels.
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.control.base import Spaces
from mmssl.control.crops import random_crop
from mmssl.control.networks import Average, Ensemble, adam, mlp, orthogonal, orthogonal_members, set_gradients
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
from mmssl.control.policies import SquashedPolicy
from mmssl.control.replay import Batch
from mmssl.control.sac import SAC, SACConfig
from mmssl.errors import MmsslError
from mmssl.methods.curl import Contrast
from mmssl.nn.crop import check_fits
from mmssl.registry import register_algorithm


@dataclass(frozen=True)
class CURLConfig(SACConfig):
    """Settings of CURL beside those of SAC; the defaults are the authors' code and its `run.sh`. Steps are those of the
    agent, each of which repeats its action (cartpole 8, finger and walker 2, others 4)."""

    name: str = "curl"
    crop: tuple[int, int] | None = (84, 84)
    """Height and width of the crops that are seen, of pictures of 100 x 100; null for whole pictures."""
    authors_offsets: bool = False
    """The authors' draw of crops, which never takes the last place of each axis."""
    contrast: bool = True
    """Whether the contrastive loss is learned at all."""
    double_step: bool = True
    """The encoder goes two steps down each contrastive gradient, by two Adams with moments of their own, as in the
    authors' code; else one."""
    layers: int = 4
    """Convolutions."""
    filters: int = 32
    features: int = 50
    """E, width of the code between convolutions and the rest, which is what is contrasted."""
    encoder_lr: float | None = None
    """Of the contrastive loss; null for `lr`. By their own loss the critics take the encoder with them."""
    encoder_tau: float = 0.05
    """Part of the way that the target encoder goes, which is the key encoder too; `tau` is that of the critics."""
    hidden: tuple[int, ...] = (1024, 1024)
    lr: float = 1e-3
    alpha_lr: float | None = 1e-4
    alpha: float = 0.1
    alpha_loss: Literal["log_alpha", "alpha"] = "alpha"
    alpha_beta: float = 0.5
    log_std: tuple[float, float] = (-10.0, 2.0)
    log_std_map: Literal["clamp", "tanh"] = "tanh"
    batch_size: int = 128
    """512 in the paper's final runs."""
    tau: float = 0.01
    actor_freq: int = 2
    target_freq: int = 2
    random_steps: int = 1000
    capacity: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contrast and self.crop is None:
            raise MmsslError("the contrast is between two crops: give crop, or set contrast to false.")
        if not 0 < self.encoder_tau <= 1:
            raise MmsslError(f"encoder_tau must lie in (0, 1], got {self.encoder_tau}.")
        self._at_least(1, "layers", "filters", "features")
        self._at_least(2 if self.contrast else 1, "batch_size")
        self._above_0("encoder_lr")
        if self.compile:
            raise MmsslError("curl is not compiled; leave out compile.")


class PixelActor(FromPixels, SquashedPolicy):
    """A Gaussian under a tanh, seen from pixels."""


@register_algorithm("curl")
class CURL(SAC):
    """SAC whose actor and critics share their convolutions, which learn from the critics' loss and from the contrast.

    Its losses are SAC's. Where these take observations they are given `Seen`.

    Attributes:
        critic: convolutions, code and both critics; the actor's convolutions are the same parameters, behind a code of
            its own, and never learn from its loss.
        contrast: W; keys are of the target critics' encoder.
    """

    config_class = CURLConfig
    wants: ClassVar[dict[str, Any]] = {"observe": "pixels", "size": (100, 100), "frame_stack": 3}
    parts = (*SAC.parts, "contrast", "contrast_optimizer", "encoder_optimizer")
    generators = (*SAC.generators, "crops")

    def __init__(self, config: CURLConfig, spaces: Spaces, seed: int, device: str = "cpu"):
        super().__init__(config, spaces, seed, device)
        self.crops = torch.Generator().manual_seed(seed)

    def _build(self) -> None:
        config, actions = self.config, self.spaces.action_dim
        channels, whole = picture_layout(self.spaces, config.name)
        self.size = tuple(config.crop or whole)
        check_fits(whole, self.size)
        look = Look(channels, self.size, config.layers, config.filters, "delta")
        wide = config.features + self.spaces.vector_width
        body = orthogonal(mlp((wide, *config.hidden, 2 * actions)))
        net = PixelNet(look, code(look.width, config.features), body)
        self.actor = PixelActor(net, config.log_std, config.log_std_map == "tanh").to(self.device)
        heads = orthogonal_members(Ensemble((wide + actions, *config.hidden, 1)))
        self.critic = PixelCritic(look, code(look.width, config.features), heads).to(self.device)
        self.target_critic, self.contrast = copy.deepcopy(self.critic), Contrast(config.features).to(self.device)
        online, target = (nn.ModuleList([c.look, c.code]) for c in (self.critic, self.target_critic))
        self.encoder_average = Average(online, target)
        self.average = Average(self.critic.heads, self.target_critic.heads)

    def _build_optimizers(self) -> None:
        super()._build_optimizers()
        config, encoder = self.config, [*self.critic.look.parameters(), *self.critic.code.parameters()]
        self.actor_optimizer = adam(self.actor.net.own, config.lr)  # without the convolutions
        self.contrast_optimizer = adam([*encoder, self.contrast.weight], config.encoder_lr or config.lr)
        self.encoder_optimizer = adam(encoder, config.encoder_lr or config.lr)  # the second step down one gradient

    def _can_write_out(self) -> bool:
        return False  # there are no formulas for convolutions

    def explore(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return self.actor.draw(self.actor.net(self.actor.see(obs)).cpu().numpy(), self.rng)

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """One update from a batch: critics and encoder; actor and alpha; the targets; the contrast."""
        config, count, pictures = self.config, len(batch.reward), join_pictures(batch.pictures)
        seen = Seen(self.crop(pictures), batch.obs)
        later = Seen(self.crop(join_pictures(batch.next_pictures)), batch.next_obs)
        loss = self.gradient.critic(batch._replace(obs=seen, next_obs=later), self._noise(count))
        self.critic_optimizer.step()
        scalars = {"critic_loss": loss}
        acts = self.updates % config.actor_freq == 0
        if acts or config.contrast:
            with torch.set_grad_enabled(config.contrast):  # one pass for the actor, without gradient, and the anchor
                seen = Seen(flat(self.critic.look, seen), batch.obs)
        for _ in range(config.actor_repeats if acts else 0):
            scalars |= self._learn_actor(Seen(seen.pictures.detach(), batch.obs), self._noise(count))
        if self.updates % config.target_freq == 0:
            self.average.step(config.tau)
            self.encoder_average.step(config.encoder_tau)
        if config.contrast:
            scalars["contrast_loss"] = self._learn_contrast(seen.pictures, self.crop(pictures))
        self.updates += 1
        return scalars

    def critic_loss(self, batch: Batch, noise: Tensor) -> Tensor:
        """SAC's without its half, as the authors' code."""
        return 2 * super().critic_loss(batch, noise)

    def _learn_contrast(self, anchors: Tensor, positives: Tensor) -> Tensor:
        loss = set_gradients(self.contrast_optimizer, self.contrast_loss(anchors, positives))
        if self.config.double_step:
            self.encoder_optimizer.step()
        self.contrast_optimizer.step()
        return loss

    def contrast_loss(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """Cross-entropy of finding each anchor's own second crop among those of the batch.

        Args:
            anchors: flat maps (B, F) of the online convolutions.
            positives: pixels (B, C, H, W).
        """
        with torch.no_grad():
            keys = self.target_critic.code(self.target_critic.look(positives))
        total, count = self.contrast(self.critic.code(anchors), keys)
        return total / count

    def crop(self, pictures: Tensor) -> Tensor:
        """A random crop of each sample, where there are crops."""
        if self.config.crop is None:
            return pictures
        return random_crop(pictures, self.size, self.crops, self.config.authors_offsets)
