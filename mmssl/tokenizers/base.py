"""What a tokenizer is: raw modality in, tokens out, and the way back."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.nn.gather import gather_tokens
from mmssl.nn.linear import Linear
from mmssl.nn.positions import Positioned, sinusoid
from mmssl.registry import TOKENIZERS, NamedConfig

Positions = Literal["sincos", "sincos_half", "sincos_row", "sincos_swapped", "sinusoid", "learned", "separable", "none"]
"""Fixed tables: `sincos` (column first, MAE; time first for clips), `sincos_row` (row first), `sincos_swapped` (of a
lattice with its sides exchanged, Audio-MAE; spectrograms alone), `sinusoid` (VideoMAE's wave over the flat place),
`sincos_half` (half of `sincos`, MTM; vectors and clips alone).
Learned ones: `learned` (one table), `separable` (ST-MAE's time plus place, clips alone)."""


@dataclass(frozen=True)
class TokenizerConfig(NamedConfig):
    """Settings of one tokenizer; `name` chooses the class."""

    registry = TOKENIZERS


class Tokenizer(Positioned):
    """Raw modality <-> tokens. A subclass fills in the five methods and calls `build` at the end of its `__init__`.

    Attributes:
        modality: the batch key it reads.
        grid: shape of the token lattice, e.g. (14, 14); tokens are in its raster order.
        patch_dim: P, number of values in a patch.
        embed_dim: D, width of a token.
        proj: Linear(P -> D).
        pos_embed: position table (1, N, D), trained only where positions are "learned"; for "separable" ones there are
            two, both trained: pos_embed_spatial (1, h * w, D) and pos_embed_temporal (1, t, D).
    """

    config_class: ClassVar[type[TokenizerConfig]]
    hidden_value: ClassVar[float] = 0.0
    """What stands at a masked place in a picture of the input."""
    grid: tuple[int, ...]
    patch_dim: int

    def __init__(self, config: TokenizerConfig, modality: str, embed_dim: int):
        super().__init__()
        self.config = config
        self.modality = modality
        self.embed_dim = embed_dim

    def build(self, positions: Positions) -> None:
        """Make the projection and the position table, once `grid` and `patch_dim` are known."""
        self.proj = Linear(self.patch_dim, self.embed_dim)
        nn.init.xavier_uniform_(self.proj.weight)
        self.scheme = positions
        self.set_positions(self.position_table(self.embed_dim, positions), positions in ("learned", "separable"))

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the lattice of an input: `grid`, where inputs may not be shorter."""
        return self.grid

    def padding(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Which tokens of a batch are real, bool (B, N), False = padding; None where none is padding."""
        return None

    def picture(self, values: Tensor) -> Tensor:
        """What `target` gives for every token, (B, N, P) or ids (B, N, ...) -> what one looks at, in raw units."""
        return self.enlarge(self.restore(self.unpatchify(values)))

    def enlarge(self, lattice: Tensor) -> Tensor:
        """What `unpatchify` gives at the size of the raw input, where it is smaller; else as it is."""
        return lattice

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Tokens with their positions: all of them (B, N, D), or those at the places `index` (B, n) -> (B, n, D).

        Patches are gathered before they are embedded, so that masked ones cost nothing.
        """
        positions = self.positions if index is None else gather_tokens(self.positions, index)
        return self.embed(self.target(x, index)) + positions

    def target(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """What a masked model predicts: `patchify(prepare(x))`, (B, N, P), or its rows at `index` (B, n)."""
        patches = self.patchify(self.prepare(x))
        return patches if index is None else gather_tokens(patches, index)

    def embed(self, patches: Tensor) -> Tensor:
        """Patches (B, N, P) -> tokens (B, N, D), without positions."""
        return self.proj(patches.to(self.proj.weight.dtype))

    def prepare(self, x: Tensor) -> Tensor:
        """Raw input -> normalised lattice input, float32."""
        raise NotImplementedError

    def restore(self, prepared: Tensor) -> Tensor:
        """Inverse of `prepare`: normalised input -> raw units."""
        raise NotImplementedError

    def patchify(self, prepared: Tensor) -> Tensor:
        """Normalised input -> patches (B, N, P)."""
        raise NotImplementedError

    def unpatchify(self, patches: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """Exact inverse of `patchify`, on the lattice `grid` (default: the tokenizer's own)."""
        raise NotImplementedError

    def position_table(self, dim: int, positions: Positions) -> Tensor | tuple[Tensor, Tensor]:
        """A position table (1, N, dim) of this lattice, fixed or the start of a learned one; a pair for "separable".

        These are the tables that know no axes; the others are a subclass's business.
        """
        if positions == "sinusoid":
            return sinusoid(dim, self.num_tokens)[None]
        if positions == "learned":
            return learned_table(self.num_tokens, dim)
        if positions == "none":
            return torch.zeros(1, self.num_tokens, dim)
        raise MmsslError(f"{self.modality!r} has no positions {positions!r}; take 'sincos' or 'learned' ones.")

    def check_shape(self, x: Tensor) -> None:
        """Raise an `MmsslError` for a wrong dtype or shape; never looks at values."""
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Raise an `MmsslError` for a wrong dtype, shape or value; looks at the values, so it waits for the device."""
        raise NotImplementedError


def learned_table(n: int, dim: int) -> Tensor:
    """Start of a learned position table (1, n, dim): truncated normal with std .02."""
    return nn.init.trunc_normal_(torch.empty(1, n, dim), std=0.02)
