"""What algorithms that learn from pixels have in common: convolutions, what follows them, and the policy."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.control.base import Spaces
from mmssl.control.networks import Ensemble
from mmssl.control.policies import join_vectors
from mmssl.errors import MmsslError
from mmssl.nn.convnets import ControlConvs, ConvStart
from mmssl.nn.crop import centre


def picture_layout(spaces: Spaces, name: str) -> tuple[int, tuple[int, int]]:
    """Channels of all cameras side by side, and the (height, width) that they share.

    Raises:
        MmsslError: no pictures, of several sizes, or discrete actions; `name` is the algorithm's.
    """
    shapes = list(spaces.pictures.values())
    if not shapes:
        raise MmsslError(
            f"{name} learns from pictures and this world shows {', '.join(spaces.observations)} alone; make it with "
            "observe 'pixels' or 'both'."
        )
    if spaces.discrete:
        raise MmsslError(
            f"{name} needs continuous actions and this task has {spaces.action_dim} discrete; take ppo on the features "
            "of a frozen encoder."
        )
    if len({shape[1:] for shape in shapes}) > 1:
        raise MmsslError(f"{name} needs cameras of one size, got {', '.join(map(str, shapes))}.")
    return sum(shape[0] for shape in shapes), tuple(shapes[0][1:])


def join_pictures(pictures: dict[str, Tensor]) -> Tensor:
    """uint8 (B, C, H, W): all cameras side by side, in their order."""
    parts = list(pictures.values())
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Look(nn.Module):
    """Pixels -> the last map of `ControlConvs`, flat.

    Args:
        channels, size: of the pictures that it sees.
        offset: taken from pixels in [0, 1]: 0 (CURL) or .5 (DrQ-v2).

    Attributes:
        width: F, numbers of a picture.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], layers: int, filters: int, start: ConvStart, offset: float = 0.0
    ):
        super().__init__()
        self.size, self.offset, self.convs = size, offset, ControlConvs(channels, size, layers, filters, start)
        self.width = filters * self.convs.grid[0] * self.convs.grid[1]

    def forward(self, x: Tensor) -> Tensor:
        """uint8 (B, C, H, W), or float of the same range -> (B, F)."""
        if x.device.type == "cpu":  # oneDNN's own order: CURL's update took 3.7 s before, 2.2 s with it
            x = x.contiguous(memory_format=torch.channels_last)
        return self.convs(x.to(self.convs.layers[0].weight.dtype) / 255 - self.offset).flatten(1)


def code(width: int, features: int, last: nn.Module | None = None) -> nn.Sequential:
    """Linear and LayerNorm, from the flat map (B, F) to (B, E); orthogonal start."""
    linear = nn.Linear(width, features)
    nn.init.orthogonal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.LayerNorm(features), *([] if last is None else [last]))


class Seen(NamedTuple):
    """What networks from pixels are given in place of a vector of observations."""

    pictures: Tensor
    """Pixels (B, C, H, W), or the flat map (B, F) that a `Look` has made of them already."""
    vectors: Tensor
    """float32 (B, D), what is seen beside them."""


class PixelNet(nn.Module):
    """A perceptron on a code of the picture and the vectors beside it: `Seen` -> (B, O)."""

    def __init__(self, look: Look, code: nn.Module, body: nn.Module):
        super().__init__()
        self.look, self.code, self.body = look, code, body

    def forward(self, seen: Seen) -> Tensor:
        return self.body(torch.cat([self.code(flat(self.look, seen)), seen.vectors], -1))

    @property
    def own(self) -> list[nn.Parameter]:
        """Parameters without the convolutions'."""
        return [*self.code.parameters(), *self.body.parameters()]


class PixelCritic(nn.Module):
    """Two critics behind one code of the picture: `Seen` and actions (B, A) -> (2, B)."""

    def __init__(self, look: Look, code: nn.Module, heads: Ensemble):
        super().__init__()
        self.look, self.code, self.heads = look, code, heads

    def forward(self, seen: Seen, action: Tensor) -> Tensor:
        return self.heads(self.code(flat(self.look, seen)), seen.vectors, action)


def flat(look: Look, seen: Seen) -> Tensor:
    """The flat map (B, F) of what is seen, made where it is not made yet."""
    return seen.pictures if seen.pictures.dim() == 2 else look(seen.pictures)


class FromPixels:
    """Mixin of policies whose net takes `Seen`; of pictures larger than its convolutions see, the middle is taken."""

    net: PixelNet

    def see(self, obs: dict[str, np.ndarray]) -> Seen:
        """An observation as tensors on the policy's device."""
        device = next(self.net.parameters()).device
        pictures = join_pictures({name: torch.from_numpy(x) for name, x in obs.items() if x.ndim == 4})
        vectors = join_vectors(obs) if any(x.ndim == 2 for x in obs.values()) else torch.zeros(len(pictures), 0)
        return Seen(centre(pictures, self.net.look.size).to(device), vectors.to(device))

    def act(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        """The best actions, float32 (n, A)."""
        with torch.inference_mode():
            return self(self.see(obs)).cpu().numpy()
