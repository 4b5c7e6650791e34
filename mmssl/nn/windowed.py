"""Audio-MAE's local decoder: attention inside windows of the lattice (Huang et al. 2022, arXiv 2207.06405)."""

from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.nn.decoders import MaskedDecoder
from mmssl.nn.gather import gather_tokens
from mmssl.nn.transformer import BlockConfig, init_weights
from mmssl.nn.windowed_attention import WindowBlock
from mmssl.nn.windows import Pair, fit, padded_places, permute_tokens, raster_places, shift_mask, window_places


class WindowedDecoder(MaskedDecoder):
    """`MaskedDecoder` with attention inside windows, which odd blocks shift; the encoder's cls token is left out.

    The authors shift by half a window along time alone; their figure shows both axes, `shift=(2, 2)`. A lattice that
    the window does not divide is padded by its last row and column, repeated (their way with overlapping patches). An
    axis that one window covers is neither padded nor shifted.

    Args:
        embed_dim, patch_dim, depth: as `MaskedDecoder`'s.
        positions: table (1, N, dim) over the lattice, rows slowest.
        block: shape of the blocks; where their norms are is fixed, `norm` and `layer_scale` are not used.
        grid: the lattice, (rows, columns) of tokens; of a spectrogram, (times, frequencies).
        window: rows and columns of a window.
        shift: how far odd blocks shift the windows, in rows and columns.

    Raises an `MmsslError` where grid, window, shift or positions do not fit one another.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_dim: int,
        positions: Tensor,
        block: BlockConfig,
        depth: int,
        grid: Pair = (64, 8),
        window: Pair = (4, 4),
        shift: Pair = (2, 0),
    ):
        super().__init__(embed_dim, patch_dim, positions, block, depth=0)
        self.window, self.shift = window, shift
        fitted, _ = fit(grid, window, shift)
        self.blocks = nn.ModuleList(WindowBlock(replace(block, drop_path=0.0), fitted) for _ in range(depth))
        self.blocks.apply(init_weights)
        self._set_windows(grid)

    def _set_windows(self, grid: Pair) -> None:
        """Where tokens lie in each kind of block, and how to get from one to the other."""
        if self.positions.shape[1] != prod(grid):
            tokens = self.positions.shape[1]
            raise MmsslError(f"a position table of {tokens} tokens does not belong to a lattice of {tuple(grid)}.")
        window, shift = fit(grid, self.window, self.shift)
        plain, shifted = (window_places(grid, window, s).flatten() for s in ((0, 0), shift))
        last = shifted if len(self.blocks) % 2 == 0 else plain
        buffers = {
            "places": raster_places(grid, window)[plain],  # place in the lattice of each token of an even block
            "to_shifted": plain.argsort()[shifted],  # place in an even block of each token of an odd one
            "to_plain": shifted.argsort()[plain],  # the inverse
            "last_places": last.argsort()[padded_places(grid, window)],  # of each of the lattice, in the last block
            "shift_mask": shift_mask(grid, window, shift),
        }
        for name, values in buffers.items():
            self.register_buffer(name, values.to(self.mask_token.device), persistent=False)
        self.shifts = any(shift)

    def forward(
        self,
        tokens: Tensor,
        visible: Tensor,
        masked: Tensor,
        cls: Tensor | None = None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """As `MaskedDecoder.forward`; `cls` has no place in the lattice and is not used.

        Places of the lattice that are neither visible nor masked in a row are seen by nobody.
        """
        place = torch.cat([visible, masked], dim=1)  # (B, n + m)
        source, real = self._sources(place, None if key_mask is None else key_mask[:, -place.shape[1] :])
        x = gather_tokens(self.sequence(tokens, visible, masked, None), source)  # (B, W * L, dim)
        for number, block in enumerate(self.blocks):
            odd = number % 2 if self.shifts else 0
            if number and self.shifts:
                orders = (self.to_shifted, self.to_plain)
                x = permute_tokens(x, *(orders if odd else orders[::-1]))
            index = self.last_places[masked] if number == len(self.blocks) - 1 else None
            x = block(x, self.shift_mask if odd else None, real[odd], index)
        return self.pred(self.norm(x))

    def _sources(self, place: Tensor, key_mask: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
        """From the places (B, s) of a sequence's tokens, and which of them are real (B, s).

        Returns:
            which token of the sequence each token of an even block is, int64 (B, W * L);
            whether there is one, bool (B, W * L), in the order of even and of odd blocks; None where there always is.
        """
        n = self.positions.shape[1]
        if key_mask is not None:
            place = torch.where(key_mask, place, n)  # beside the lattice
        start = place.new_zeros(len(place), n + 1)
        source = start.scatter(1, place, torch.arange(place.shape[1], device=place.device).expand_as(place))
        if key_mask is None and place.shape[1] == n:
            return source[:, self.places], (None, None)
        real = start.bool().scatter(1, place, True)[:, self.places]
        return source[:, self.places], (real, real[:, self.to_shifted])

    def resize_positions(self, old_grid: tuple[int, ...], new_grid: tuple[int, ...]) -> None:
        """Interpolate the table from one lattice to another, and lay out the windows anew, in place."""
        window, _ = fit(new_grid, self.window, self.shift)
        super().resize_positions(old_grid, new_grid)
        for block in self.blocks:
            block.attn.meta_mlp.set_window(window)
        self._set_windows(new_grid)
