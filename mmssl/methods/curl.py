"""CURL's objective over any encoder of images (Laskin, Srinivas and Abbeel 2020, arXiv 2004.04136).

`control/curl.py` is the reinforcement learning that calls `Contrast`; here it pretrains from pictures alone.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmssl.encoder import Encoder, EncoderConfig, Features
from mmssl.errors import MmsslError
from mmssl.keys import uniform
from mmssl.losses import bilinear_info_nce
from mmssl.methods.base import Loss, Method, default_keys
from mmssl.methods.sizes import SizedConfig
from mmssl.nn.crop import centre, check_fits, cut, places
from mmssl.nn.linear import Linear
from mmssl.nn.processes import gather_rows, place_among
from mmssl.registry import register_method
from mmssl.tokenizers.image import ImageTokenizerConfig, as_pair

_ANCHOR, _POSITIVE = 2000, 2001  # streams of `keys.uniform` of the two crops
_CROP = 0.84  # of the side: 84 of 100 pixels


@dataclass(frozen=True)
class CURLConfig(SizedConfig):
    """Settings of CURL's objective; the defaults are the authors' network, crops and rates."""

    name: str = "curl"
    network: Literal["conv", "vit"] = "conv"
    """`conv`: control's convolutions, `dim` filters (32) in `depth` layers (4); `vit`: a transformer of that `size`."""
    modality: str = "image"
    """The batch key to learn from: `image`, or one camera, `image/<camera>`."""
    image_size: int | tuple[int, int] = 100
    """Height and width of the pictures in pixels."""
    crop_size: int | tuple[int, int] | None = None
    """Height and width of what the encoder sees; None: 0.84 of the picture, to whole patches."""
    patch_size: int | tuple[int, int] = 12
    """Height and width of a patch of a `vit` in pixels."""
    channels: int = 3
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Of pixels in [0, 1]; the authors only divide by 255."""
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    pooling: Literal["flat", "mean", "cls"] | None = None
    """What is contrasted of the tokens: all side by side (None with `conv`), their mean (None with `vit`), or cls."""
    feature_dim: int = 50
    """E, width of the vectors that are contrasted."""
    tau: float = 0.05
    """Part of the way that the key encoder goes after each step."""
    authors_offsets: bool = False
    """The authors' draw of crops, which never takes the last place of each axis."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "image_size", as_pair(self.image_size))
        object.__setattr__(self, "patch_size", as_pair(self.patch_size))
        if self.modality != "image" and not self.modality.startswith("image/"):
            raise MmsslError(f"'curl' learns from 'image' or 'image/<camera>', not from {self.modality!r}.")
        if self.feature_dim < 1:
            raise MmsslError(f"feature_dim must be at least 1, got {self.feature_dim}.")
        if not 0 < self.tau <= 1:
            raise MmsslError(f"tau must lie in (0, 1], got {self.tau}.")
        if self.network == "conv" and self.pooling == "cls":
            raise MmsslError("convolutions have no cls token; pool 'flat' or 'mean'.")
        check_fits(self.image_size, self.crop())
        self.encoder_config()

    def crop(self) -> tuple[int, int]:
        """Height and width of what the encoder sees."""
        if self.crop_size is not None:
            return as_pair(self.crop_size)
        cells = (1, 1) if self.network == "conv" else self.patch_size
        sides = zip(self.image_size, cells, strict=True)
        return tuple(max(1, int(_CROP * side) // cell) * cell for side, cell in sides)

    def encoder_config(self) -> EncoderConfig:
        """The encoder that these settings describe."""
        shared = {"channels": self.channels, "mean": self.mean, "std": self.std}
        if self.network == "conv":
            shape = {"filters": self.dim or 32, "layers": self.depth or 4}
            return EncoderConfig.of_convolutions(modality=self.modality, image_size=self.crop(), **shape, **shared)
        tokenizer = ImageTokenizerConfig("image", self.crop(), self.patch_size, **shared)
        return EncoderConfig({self.modality: tokenizer}, **self.encoder_shape(), cls_token=self.pooling == "cls")


class Contrast(nn.Module):
    """Which of the keys is each query's own, by q W k^T. W (E, E) begins uniform in [0, 1), as the authors' does."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width, width))

    def forward(self, queries: Tensor, keys: Tensor, first: int = 0, valid: Tensor | None = None) -> Loss:
        """As `mmssl.losses.bilinear_info_nce`; keys (M, E) are constants."""
        return bilinear_info_nce(queries, keys.detach(), self.weight, first, valid)


class Head(nn.Module):
    """One vector of an encoder's tokens: pooled, a linear layer, a LayerNorm (weights `fc`, `ln`)."""

    def __init__(self, encoder: Encoder, pooling: str, width: int):
        super().__init__()
        self.pooling = pooling
        tokens = sum(tokenizer.num_tokens for tokenizer in encoder.tokenizers.values()) if pooling == "flat" else 1
        self.fc, self.ln = Linear(tokens * encoder.embed_dim, width), nn.LayerNorm(width)
        nn.init.orthogonal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: Features) -> Tensor:
        """(B, E)."""
        pooled = features.tokens.flatten(1) if self.pooling == "flat" else features.pooled(self.pooling)
        return self.ln(self.fc(pooled))


@register_method("curl")
class CURL(Method):
    """Two crops of a picture belong together, those of others do not; keys come from a slow copy of the encoder.

    Attributes:
        encoder: it sees `config.crop()` pixels.
        head: from its tokens to the vector that is contrasted.
        key_encoder, key_head: the slow copies, without gradient.
        contrast: W.
    """

    config_class = CURLConfig

    def __init__(self, config: CURLConfig):
        super().__init__(config)
        pooling = config.pooling or ("flat" if config.network == "conv" else "mean")
        self.encoder = Encoder(config.encoder_config())
        self.head = Head(self.encoder, pooling, config.feature_dim)
        self.key_encoder, self.key_head = copy.deepcopy(self.encoder), copy.deepcopy(self.head)
        self.key_encoder.requires_grad_(False)
        self.key_head.requires_grad_(False)
        self.contrast = Contrast(config.feature_dim)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the pictures that it crops."""
        return self.config.image_size

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        """As `Method.forward`; `keys` place the two crops, and there are no masks.

        Raises:
            MmsslError: masks, no pictures or others than `image_size`, one sample in all processes together.
        """
        if masks is not None:
            raise MmsslError("CURL crops pictures and masks nothing; leave out the masks.")
        x, name = self._pictures(batch), self.config.modality
        first, total = place_among(len(x))
        if total < 2:
            raise MmsslError(
                "CURL tells the samples of a batch apart and learns nothing from one alone; raise loop.batch_size."
            )
        keys = default_keys(batch, [name]) if keys is None else keys
        queries = self.head(self.encoder({name: self.crop(x, keys, _ANCHOR)}))
        with torch.no_grad():
            answers = self.key_head(self.key_encoder({name: self.crop(x, keys, _POSITIVE)}))
        valid = batch.get(f"present/{name}")
        valid = None if valid is None else gather_rows(valid.to(torch.uint8)).bool()
        return {"loss": self.contrast(queries, gather_rows(answers), first, valid)}

    def crop(self, x: Tensor, keys: Tensor, stream: int) -> Tensor:
        """A random crop of each picture (B, C, H, W), placed by its key."""
        size = self.config.crop()
        sides = zip(uniform(keys, 2, stream).unbind(1), x.shape[2:], size, strict=True)
        corner = [(u * places(whole, part, self.config.authors_offsets)).long() for u, whole, part in sides]
        return cut(x, *corner, size)

    def as_seen(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with the middle of each picture, as the encoder sees it where nothing is drawn."""
        return {**batch, self.config.modality: centre(self._pictures(batch), self.config.crop())}

    def check(self, batch: dict[str, Tensor]) -> None:
        self.encoder.check(self.as_seen(batch))

    def _pictures(self, batch: dict[str, Tensor]) -> Tensor:
        """The pictures of a batch, their shape checked."""
        self.encoder.present(batch)
        x, wanted = batch[self.config.modality], (self.config.channels, *self.config.image_size)
        if not isinstance(x, Tensor) or tuple(x.shape[1:]) != wanted:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise MmsslError(
                f"{self.config.modality!r} must have the shape (batch, {', '.join(map(str, wanted))}), got {found}; "
                "set data.image_size to method.image_size."
            )
        return x

    def after_step(self, progress: float) -> None:
        """Take the key encoder and its head `tau` of the way to the others."""
        self._follow(self.config.tau)

    def after_init(self) -> None:
        """Begin the key encoder anew, as a copy of the encoder that was read."""
        self._follow(1.0)

    @torch.no_grad()
    def _follow(self, tau: float) -> None:
        pairs = ((self.key_encoder, self.encoder), (self.key_head, self.head))
        slow, fast = ([p for pair in pairs for p in pair[i].parameters()] for i in (0, 1))
        torch._foreach_lerp_(slow, fast, tau)

    def no_decay(self) -> set[str]:
        return {"cls_token"}
