"""Sequences of vectors <-> tokens of single numbers, each in one of a few bins (MTM's discretised trajectories)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, Tokenizer
from mmssl.tokenizers.vector import VectorTokenizer, VectorTokenizerConfig


@dataclass(frozen=True)
class BinsTokenizerConfig(VectorTokenizerConfig):
    """Sequences of vectors, float (B, T, width), of which every number is one of `bins`."""

    name: str = "bins"
    bins: int = 64
    """Bins of equal width for each dimension."""
    limit: float = 4.0
    """The bins reach from minus to plus so many standard deviations; what lies beyond falls into the outermost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2 or not self.limit > 0:
            raise MmsslError(f"bins must be 2 or more and limit above 0, got {self.bins} and {self.limit}.")


@register_tokenizer("bins")
class BinsTokenizer(VectorTokenizer):
    """Vectors (B, T, width), raw units, <-> patches (B, T * width, bins), the one of the number's bin, 0 elsewhere.

    Wu et al. 2023 (MTM, arXiv 2305.02968): a token for each dimension of each step, time slowest, with a learned vector
    of the dimension. There the bins span what the training data do, here a number of standard deviations.

    Attributes:
        slot_embed: the vectors of the dimensions (1, 1, width, D), zeros at the start.
    """

    config_class = BinsTokenizerConfig

    def __init__(self, config: BinsTokenizerConfig, modality: str, embed_dim: int, positions: Positions = "sincos"):
        super().__init__(config, modality, embed_dim, positions)
        self.slot_embed = nn.Parameter(torch.zeros(1, 1, config.width, embed_dim))

    def build(self, positions: Positions) -> None:
        self.grid, self.patch_dim = (self.config.frames, self.config.width), self.config.bins
        super().build(positions)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """(T, width) of an input: its tokens are the first ones of the lattice."""
        return (x.shape[1], self.config.width)

    def padding(self, batch: dict[str, Tensor]) -> Tensor | None:
        valid = super().padding(batch)
        return None if valid is None else valid.repeat_interleave(self.config.width, dim=1)

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Tokens with their positions (B, T * width, D), or those at the places `index` (B, n) -> (B, n, D)."""
        if index is None:
            n = x.shape[1] * self.config.width
            index = torch.arange(n, device=x.device).expand(len(x), n)
        slots = F.embedding(index % self.config.width, self.slot_embed[0, 0])  # (B, n, D)
        return Tokenizer.forward(self, x, index) + slots

    def patchify(self, prepared: Tensor) -> Tensor:
        """Standardised (B, T, width) -> float32 (B, T * width, bins)."""
        config = self.config
        place = (prepared + config.limit) * (config.bins / (2 * config.limit))
        return F.one_hot(place.floor().clamp(0, config.bins - 1).long(), config.bins).float().flatten(1, 2)

    def unpatchify(self, patches: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """What `patchify` gives, or logits, (B, T * width, bins) -> the middle of the likeliest bin, (B, T, width).

        Of booleans whether any of a token is True.
        """
        config = self.config
        if patches.dtype == torch.bool:
            return patches.any(-1).unflatten(1, (-1, config.width))
        middle = (patches.argmax(-1) + 0.5) * (2 * config.limit / config.bins) - config.limit
        return middle.unflatten(1, (-1, config.width))

    def position_table(self, dim: int, positions: Positions) -> Tensor:
        if positions in ("learned", "sinusoid", "none"):
            return Tokenizer.position_table(self, dim, positions)
        return super().position_table(dim, positions).repeat_interleave(self.config.width, dim=1)

    def resize(self, config: BinsTokenizerConfig) -> None:
        """Take sequences of another length from now on, in place."""
        super().resize(config)
        self.grid = (config.frames, config.width)
