"""Depth in metres <-> patch tokens."""

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.nn.gather import gather_tokens
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, TokenizerConfig
from mmssl.tokenizers.image import settle_size
from mmssl.tokenizers.patches import PatchTokenizer, PlanePatches

log = logging.getLogger("mmssl.tokenizers")

TRIM = 0.1  # share of the lowest and of the highest values that the statistics leave out
FARTHEST = 1000.0  # metres; what is farther away everywhere is in another unit


@dataclass(frozen=True)
class DepthTokenizerConfig(TokenizerConfig):
    """Depth maps of one size, cut into patches that do not overlap."""

    name: str = "depth"
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels; one number means a square."""
    patch_size: int | tuple[int, int] = 16
    """Height and width of a patch in pixels; must divide the image size."""
    standardise: Literal["truncated", "none"] = "truncated"
    """Each map less its mean and divided by its standard deviation, both without the lowest and highest tenth of the
    values (MultiMAE), or metres as they are."""
    farthest: float | None = None
    """Metres beyond which depth counts as this; null for no limit. The empty sky of a simulator lies as far as its
    camera sees: where it fills more than a tenth of a map, little of the scale is left for what is before it."""

    def __post_init__(self) -> None:
        settle_size(self)
        if self.farthest is not None and not self.farthest > 0:
            raise MmsslError(f"farthest must be above 0 metres, or null for no limit, got {self.farthest}.")


@register_tokenizer("depth")
class DepthTokenizer(PlanePatches, PatchTokenizer):
    """Depth (B, 1, H, W), float metres, <-> patches (B, N, p * q), flattened in the order (row, column).

    Bachmann et al. 2022 (MultiMAE, arXiv 2204.01678). What is standardised has lost its own mean and scale: `restore`
    gives metres only where it is told the `statistics` of the input. A map of zeros, no depth, stays zero.
    """

    config_class = DepthTokenizerConfig

    def __init__(self, config: DepthTokenizerConfig, modality: str, embed_dim: int, positions: Positions = "sincos"):
        super().__init__(config, modality, embed_dim)
        self._warned = False
        self.lay_out()
        self.build(positions)

    def lay_out(self) -> None:
        (height, width), (p, q) = self.config.image_size, self.config.patch_size
        self.grid = (height // p, width // q)
        self.patch_dim = p * q

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `prepare` subtracts and divides by: (mean, scale), float32 (B, 1, 1, 1) each.

        The scale is sqrt(var + 1e-6), with the unbiased variance. Without standardisation they are 0 and 1.
        """
        if self.config.standardise == "none":
            shape, device = (len(x), 1, 1, 1), x.device
            return torch.zeros(shape, device=device), torch.ones(shape, device=device)
        kept = self._limited(x).flatten(1).sort(dim=1).values  # (B, H * W)
        kept = kept[:, int(TRIM * kept.shape[1]) : int((1 - TRIM) * kept.shape[1])]
        var, mean = torch.var_mean(kept, dim=1)
        return mean.view(-1, 1, 1, 1), (var + 1e-6).sqrt().view(-1, 1, 1, 1)

    def prepare(self, x: Tensor) -> Tensor:
        """Metres (B, 1, H, W) -> float32, standardised as the config says."""
        self.check_shape(x)
        mean, scale = self.statistics(x)
        return (self._limited(x) - mean) / scale

    def _limited(self, x: Tensor) -> Tensor:
        return x.float() if self.config.farthest is None else x.float().clamp(max=self.config.farthest)

    def restore(self, prepared: Tensor, statistics: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Standardised depth (B, 1, H, W) -> metres under the `statistics` of the input; without them as it is."""
        if statistics is None:
            return prepared
        mean, scale = statistics
        return prepared * scale + mean

    def target(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """As the base class says; only the patches that are asked for are standardised."""
        if index is None:
            return super().target(x)
        self.check_shape(x)
        mean, scale = self.statistics(x)
        return (self._limited(gather_tokens(self.patchify(x), index)) - mean[:, 0]) / scale[:, 0]

    def patchify(self, prepared: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, N, p * q)."""
        return self.cut(prepared)[:, :, 0]

    def check_shape(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and not x.is_floating_point():
            raise MmsslError(f"{self.modality!r} must be float metres, got {x.dtype}; convert it.")
        self.check_tensor(x, (1, *self.config.image_size), "depth maps")

    def check(self, x: Tensor) -> None:
        """As the base class says; warns, once, where every value is above 1000: no depth in metres."""
        self.check_shape(x)
        if not bool(x.isfinite().all()):
            raise MmsslError(
                f"{self.modality!r} holds NaN or infinite values; give finite metres, and 0 where the depth is unknown."
            )
        known = x[x != 0]
        if not self._warned and known.numel() and bool((known > FARTHEST).all()):
            self._warned = True
            log.warning(
                "all values of %r are above %g, from %.4g to %.4g; it should be in metres, so divide millimetres by "
                "1000 (depth_scale of a folder of pictures).",
                *(self.modality, FARTHEST, known.min().item(), known.max().item()),
            )
