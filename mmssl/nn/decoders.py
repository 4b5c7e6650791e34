"""Decoders: from the encoder's visible tokens to predictions of what was masked."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from mmssl.nn.gather import gather_tokens
from mmssl.nn.linear import Linear
from mmssl.nn.positions import Positioned
from mmssl.nn.transformer import Block, BlockConfig, init_weights


class MaskedDecoder(Positioned):
    """MAE's decoder: a narrow transformer over the visible tokens and one shared mask token at each masked place.

    The sequence is [cls, visible, masked] and is never put back in raster order: attention does not care, every token
    carries its position, and the tokens to predict lie in one piece at the end; the last block computes no others.
    He et al. 2022 (arXiv 2111.06377).

    Args:
        embed_dim: width D of the encoder.
        patch_dim: number of values P to predict at a token.
        positions: fixed table (1, N, dim) over the full lattice; or the start of two that are learned, of places and
            times (`mmssl.nn.positions.separable`).
        block: shape and options of the decoder's blocks (its `dim` is the decoder's width).
        depth: number of blocks.
        embed_bias: whether the projection from the encoder's width has a bias (not in VideoMAE).
        own_cls: a cls token of the decoder's own, in place of the encoder's (ST-MAE).
    """

    def __init__(
        self,
        embed_dim: int,
        patch_dim: int,
        positions: Tensor | tuple[Tensor, Tensor],
        block: BlockConfig,
        depth: int,
        embed_bias: bool = True,
        own_cls: bool = False,
    ):
        super().__init__()
        self.embed = Linear(embed_dim, block.dim, bias=embed_bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, block.dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, block.dim)) if own_cls else None
        self.set_positions(positions, trained=isinstance(positions, tuple))
        self.blocks = nn.ModuleList(Block(replace(block, drop_path=0.0)) for _ in range(depth))
        self.norm = nn.LayerNorm(block.dim, eps=block.norm_eps)
        self.pred = Linear(block.dim, patch_dim)
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        visible: Tensor,
        masked: Tensor,
        cls: Tensor | None = None,
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict the masked patches.

        Args:
            tokens: encoder output at the visible places (B, n, D).
            visible: their places in the lattice, int64 (B, n).
            masked: the places to predict, int64 (B, m).
            cls: encoder cls token (B, D); it has no position. None for a decoder with its own.
            key_mask: bool (B, [1 +] n + m), True = a real token; None = all.

        Returns:
            (B, m, P), in the order of `masked`.
        """
        x = self.sequence(tokens, visible, masked, cls)
        for block in self.blocks[:-1]:
            x = block(x, key_mask)
        return self.pred(self.norm(self.blocks[-1](x, key_mask, last=masked.shape[1])))

    def sequence(self, tokens: Tensor, visible: Tensor, masked: Tensor, cls: Tensor | None) -> Tensor:
        """What the first block takes, (B, [1 +] n + m, dim): [cls, visible, masked]."""
        positions = self.positions
        x = self.embed(tokens) + gather_tokens(positions, visible)
        parts = [x, self.mask_token + gather_tokens(positions, masked)]
        if self.cls_token is not None:
            parts.insert(0, self.cls_token.expand(len(x), -1, -1))
        elif cls is not None:
            parts.insert(0, self.embed(cls)[:, None])
        return torch.cat(parts, dim=1)
