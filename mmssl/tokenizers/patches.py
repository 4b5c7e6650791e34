"""What tokenizers of pictures have in common: a size that can be changed, and rectangular patches in raster order."""

import torch
from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.nn.positions import sincos_2d
from mmssl.tokenizers.base import Positions, Tokenizer, TokenizerConfig


class PatchTokenizer(Tokenizer):
    """Base of what cuts its input into patches. A subclass sets `grid` and `patch_dim` in `lay_out`, which is called
    once more where the encoder is resized.
    """

    position_mode = "bicubic"
    """How position tables are interpolated over places."""

    def lay_out(self) -> None:
        """Set `grid` and `patch_dim` from the config."""
        raise NotImplementedError

    def resize(self, config: TokenizerConfig) -> None:
        """Take another size from now on, in place.

        A `sinusoid` table is made anew, unless it was trained since; all others are interpolated.
        """
        old_grid, old_table, self.config = self.grid, self.positions.detach(), config
        formula = self.scheme == "sinusoid" and torch.allclose(old_table, self._sinusoid(old_table), atol=1e-2)
        self.lay_out()
        if formula:
            self.set_positions(self._sinusoid(old_table), self.pos_embed.requires_grad)
        else:
            self.resize_positions(old_grid, self.grid, self.position_mode)

    def _sinusoid(self, like: Tensor) -> Tensor:
        return self.position_table(self.embed_dim, "sinusoid").to(like)

    def check_tensor(self, x: Tensor, shape: tuple[int, ...], noun: str) -> None:
        """Raise an `MmsslError` where `x` is no tensor (B, *shape)."""
        if not isinstance(x, Tensor):
            raise MmsslError(f"{self.modality!r} must be a torch tensor, got {type(x).__name__}.")
        if tuple(x.shape[1:]) != shape:
            raise MmsslError(
                f"{self.modality!r} must have the shape (batch, {', '.join(map(str, shape))}), "
                f"got {tuple(x.shape)}; resize the {noun}, or the encoder with encoder.resize((height, width))."
            )


class PlanePatches:
    """Mixin of what is cut in two dimensions: patches of `cell` (p, q) pixels, flattened as (row, column, channel)."""

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a patch, in values of the prepared input."""
        return self.config.patch_size

    def cut(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, C, p * q)."""
        batch, channels, height, width = x.shape
        p, q = self.cell
        x = x.reshape(batch, channels, height // p, p, width // q, q)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels, p * q)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N, p * q * C) -> (B, C, H, W), exactly what `patchify` took."""
        rows, columns = grid or self.grid
        p, q = self.cell
        x = patches.reshape(patches.shape[0], rows, columns, p, q, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, rows * p, columns * q)

    def position_table(self, dim: int, positions: Positions) -> Tensor:
        if positions == "separable":
            raise MmsslError("positions 'separable' are of times and places; images have 'sincos' or 'learned' ones.")
        if positions in ("sincos", "sincos_row"):
            return sincos_2d(dim, self.grid, "row_first" if positions == "sincos_row" else "column_first")[None]
        return super().position_table(dim, positions)
