"""What a method is: an encoder, whatever else it trains, and a loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmssl.config import from_dict
from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.registry import METHODS, NamedConfig

Loss = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MethodConfig(NamedConfig):
    """Settings of a method; `name` chooses the class."""

    registry = METHODS


class Method(nn.Module):
    """Base of all methods.

    Attributes:
        config: its settings, an instance of `config_class`.
        encoder: the encoder that it trains.
    """

    config_class: ClassVar[type[MethodConfig]]
    encoder: Encoder

    def __init__(self, config: MethodConfig):
        super().__init__()
        self.config = config

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        """One pass.

        Args:
            batch: raw input, as `Encoder.forward` takes it.
            masks: modality -> bool (B, N), True = masked, in place of the method's own sampler.
            keys: int64 (B,), the source of this pass's randomness (`mmssl.keys.sample_keys`); without them the samples'
                places `index` in the batch are used, so that the same call gives the same result.

        Returns:
            `"loss"`: a pair (sum, count) of float32 scalars; their quotient is the loss. Others are scalars to log.
        """
        raise NotImplementedError

    def check(self, batch: dict[str, Tensor]) -> None:
        """Raise an `MmsslError` for anything wrong with a batch, its values included; called on the first sample."""
        self.encoder.check(batch)

    def as_seen(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the encoder sees of a batch where nothing is drawn: all of it, or the middle of larger pictures."""
        return batch

    def reconstruct(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Something to look at, where the method has it.

        Returns:
            `target`, `masked` (grey where hidden) and `prediction`: float32 in [0, 1], all (B, C, H, W) or all
            (B, T, C, H, W); `mask`: bool (B, N), True = masked. A method may add what its tests and judges need.
        """
        raise MmsslError(f"the method {self.config.name!r} does not reconstruct its input.")

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Modality -> unit vectors (B, E) of one space, where what belongs together is near, if the method has one.

        Of the modalities that the batch has; otherwise an `MmsslError`.
        """
        raise MmsslError(f"the method {self.config.name!r} has no space that its modalities share; CLIP's is one.")

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step with the finished part of the training, 0 to 1: EMA, queues."""

    def after_init(self) -> None:
        """Called after the encoder was given the weights of another run: copies of it begin anew."""

    def no_decay(self) -> set[str]:
        """Names of parameters without weight decay, besides biases and 1-D ones."""
        return set()


def default_keys(batch: dict[str, Tensor], modalities: Sequence[str]) -> Tensor:
    """Keys for a call that gives none: a function of the samples' `index`, else of their place in the batch."""
    x = batch[modalities[0]]
    index = batch.get("index")
    if index is None:
        index = torch.arange(x.shape[0], device=x.device)
    return sample_keys(0, 0, 0, index)


def create_method(config: MethodConfig | str, **settings: Any) -> Method:
    """A method with fresh weights, from its config or its name and settings: `create_method("mae", size="small")`."""
    if isinstance(config, str):
        config = from_dict(MethodConfig, {"name": config, **settings}, f"the settings of {config!r}")
    elif settings:
        raise MmsslError("give a config, or a name with settings, not both.")
    return METHODS.get(config.name)(config)


def list_methods() -> list[str]:
    """Names of all methods."""
    return METHODS.names()
