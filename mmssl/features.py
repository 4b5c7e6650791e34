"""What an encoder gives: tokens with their places, and the ways to make one vector or one map of them."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmssl.errors import MmsslError, unknown_name


@dataclass
class Features:
    """What an encoder gives.

    Attributes:
        tokens: (B, N, D) patch tokens after the final norm, without cls; under masks only the visible ones.
        index: int64 (B, N), place of each token in the whole lattice: that of all modalities that the encoder reads,
            one after the other, whether the batch has them or not (`Encoder.offsets`).
        valid: bool (B, N), False = padding.
        cls: (B, D) or None.
        grid: modality -> lattice shape, in token order, of the modalities that the batch has.
    """

    tokens: Tensor
    index: Tensor
    valid: Tensor
    cls: Tensor | None
    grid: dict[str, tuple[int, ...]]

    def pooled(self, how: Literal["mean", "cls", "max", "last"] = "mean") -> Tensor:
        """One vector a sample (B, D).

        Args:
            how: mean or maximum of the valid patch tokens (0 without any); the cls token; or the last valid token (the
                first one without any), as of a text that ends in a token of its own.
        """
        if how == "cls":
            if self.cls is None:
                raise MmsslError("this encoder has no cls token; pool with 'mean' or 'max'.")
            return self.cls
        if how == "mean":
            weight = self.valid.to(self.tokens.dtype)[..., None]  # (B, N, 1)
            return (self.tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
        if how == "max":
            if self.tokens.shape[1] == 0:
                return self.tokens.sum(1)
            largest = self.tokens.masked_fill(~self.valid[..., None], -math.inf).amax(1)
            return largest.masked_fill(~self.valid.any(1, keepdim=True), 0)
        if how == "last":
            last = (self.valid * torch.arange(self.valid.shape[1], device=self.valid.device)).amax(1)
            return self.tokens[torch.arange(len(last), device=last.device), last]
        raise unknown_name("pooling", how, ("mean", "cls", "max", "last"))

    def of(self, modality: str) -> tuple[Tensor, Tensor]:
        """Tokens (B, n, D) of one unmasked modality, and which are real, bool (B, n)."""
        if modality not in self.grid:
            raise unknown_name("modality", modality, self.grid)
        sizes = {name: math.prod(grid) for name, grid in self.grid.items()}
        if self.tokens.shape[1] != sum(sizes.values()):
            raise MmsslError("the tokens of one modality are found among all of them alone; encode without masks.")
        start = sum(size for name, size in list(sizes.items())[: list(sizes).index(modality)])
        rows = slice(start, start + sizes[modality])
        return self.tokens[:, rows], self.valid[:, rows]

    def map(self, modality: str | None = None) -> Tensor:
        """Tokens of one unmasked modality as a feature map: (B, h, w, D) for an image, (B, t, h, w, D) for a clip."""
        name = modality or next(iter(self.grid))
        tokens, _ = self.of(name)
        return tokens.reshape(tokens.shape[0], *self.grid[name], tokens.shape[-1])
