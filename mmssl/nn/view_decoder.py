"""The decoder of the multi-view masked autoencoder: every patch of every view and frame, from what the encoder saw."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmssl.nn.linear import Linear
from mmssl.nn.positions import separable
from mmssl.nn.transformer import Block, BlockConfig, init_weights


class ViewDecoder(nn.Module):
    """A transformer over [cls, all places of the batch's views], the encoder's tokens where it saw them.

    A place has MAE's fixed position, a learned vector of its time and one of its view; cls has a learned position. One
    mask token and one linear head serve all views. Seo et al. 2023 (MV-MWM, arXiv 2302.02408), the released code.

    Args:
        embed_dim: width D of the encoder.
        patch_dim: number of values P to predict at a place.
        views: names of the views, in token order.
        places: position table of one frame (1, h * w, dim), fixed.
        frames: number of times of the longest clip.
        block: shape and options of the blocks (its `dim` is the decoder's width).
        depth: number of blocks.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_dim: int,
        views: Sequence[str],
        places: Tensor,
        frames: int,
        block: BlockConfig,
        depth: int,
    ):
        super().__init__()
        dim = block.dim
        self.frames, self.views = frames, tuple(views)
        self.embed = Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.cls_position = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed_spatial = nn.Parameter(places.clone(), requires_grad=False)
        self.pos_embed_temporal = nn.Parameter(0.02 * torch.randn(1, frames, dim))
        self.type_embed = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(1, 1, dim)) for name in views})
        self.blocks = nn.ModuleList(Block(replace(block, drop_path=0.0)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=block.norm_eps)
        self.pred = Linear(dim, patch_dim)
        self.apply(init_weights)

    def forward(
        self, tokens: Tensor, index: Tensor, valid: Tensor, cls: Tensor, lattice: dict[str, int]
    ) -> dict[str, Tensor]:
        """Predict all patches of some views.

        Args:
            tokens: encoder output at the visible places (B, n, D).
            index: their places among those of all views, each with all its times, int64 (B, n).
            valid: bool (B, n), False = padding, which nothing looks at.
            cls: the encoder's cls token (B, D).
            lattice: view -> number of its times, of those that the batch has; a name that is none of the views is one
                view of no name, whose tokens have the first view's places and the mean of all views' vectors.

        Returns:
            view -> (B, times * h * w, P), time slowest.
        """
        x = self.filled(self.embed(tokens), index, valid, lattice) + self.positions(lattice).to(tokens.dtype)
        x = torch.cat([self.embed(cls)[:, None] + self.cls_position, x], dim=1)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.pred(self.norm(self.blocks[-1](x, last=x.shape[1] - 1)))
        counts = [times * self.pos_embed_spatial.shape[1] for times in lattice.values()]
        return dict(zip(lattice, x.split(counts, dim=1), strict=True))

    def filled(self, x: Tensor, index: Tensor, valid: Tensor, lattice: dict[str, int]) -> Tensor:
        """Visible tokens (B, n, d) at their places, the mask token at all others, of the batch's views: (B, N, d)."""
        each = self.frames * self.pos_embed_spatial.shape[1]
        total = each * len(self.views)
        place = torch.where(valid, index, total)[..., None].expand_as(x)  # padding goes to one place more
        whole = self.mask_token.to(x.dtype).expand(len(x), total + 1, -1).scatter(1, place, x)
        starts = [each * (self.views.index(name) if name in self.views else 0) for name in lattice]
        counts = [times * self.pos_embed_spatial.shape[1] for times in lattice.values()]
        parts = [whole[:, start : start + n] for start, n in zip(starts, counts, strict=True)]
        return torch.cat(parts, dim=1)

    def positions(self, lattice: dict[str, int]) -> Tensor:
        """Position, time and view of every place of the batch's views, (1, N, d)."""
        table = separable(self.pos_embed_spatial, self.pos_embed_temporal)  # (1, frames * h * w, d)
        places = self.pos_embed_spatial.shape[1]
        return torch.cat([table[:, : times * places] + self.vector(name) for name, times in lattice.items()], dim=1)

    def vector(self, view: str) -> Tensor:
        """The learned vector of a view (1, 1, d)."""
        if view in self.type_embed:
            return self.type_embed[view]
        return torch.stack(list(self.type_embed.values())).mean(0)
