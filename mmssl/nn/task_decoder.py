"""MultiMAE's decoder of one output task: every place of the task asks all visible tokens of all modalities.

Bachmann et al. 2022 (arXiv 2204.01678), as the authors' code has it.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.nn.cross_decoder import CrossAttention
from mmssl.nn.gather import gather_tokens
from mmssl.nn.linear import Linear
from mmssl.nn.positions import Positioned, interpolate_positions
from mmssl.nn.transformer import Attention, Block, BlockConfig, Mlp, init_weights

Lattice = tuple[int, ...]


class TaskDecoder(Positioned):
    """Cross-attention of a task's places to the encoder's tokens, an MLP, self-attention blocks, a linear layer.

    The cross-attention has no residual sum around it, and no norm comes after the blocks. Places whose token the
    encoder saw ask with that token, all others with the mask token, which starts at zero.

    Args:
        embed_dim: width D of the encoder.
        patch_dim: number of values P to predict at a place.
        task: name of what is predicted. Where `context` has it too, its own visible tokens ask.
        grid: lattice of what is predicted, of N places.
        positions: fixed table (1, N, dim) over it.
        context: modality -> lattice, of everything that the encoder reads, in token order: each has a learned vector,
            and its places have the positions of the same places of `grid` (bilinear where it is another lattice).
        block: shape and options of the decoder (its `dim` is the decoder's width).
        depth: number of self-attention blocks, 0 or more.
        elsewhere: fixed tables (1, n, dim) of those of `context` whose lattice has other axes than `grid`, as a
            sequence has beside a picture.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_dim: int,
        task: str,
        grid: Lattice,
        positions: Tensor,
        context: Mapping[str, Lattice],
        block: BlockConfig,
        depth: int,
        elsewhere: Mapping[str, Tensor] | None = None,
    ):
        super().__init__()
        self.task, self.grid, self.context, block = task, tuple(grid), dict(context), replace(block, drop_path=0.0)
        self.embed = Linear(embed_dim, block.dim)
        self.task_embed = nn.ParameterDict({name: nn.Parameter(torch.zeros(1, 1, block.dim)) for name in context})
        self.mask_token = nn.Parameter(torch.zeros(1, 1, block.dim))
        self.set_positions(positions, trained=False)
        for name, table in (elsewhere or {}).items():
            self.register_buffer(f"positions_{name}", table, persistent=False)
        self.norm_query, self.norm_context, self.norm_mlp = (
            nn.LayerNorm(block.dim, eps=block.norm_eps) for _ in range(3)
        )
        self.cross, self.mlp = CrossAttention(block), Mlp(block)
        self.blocks = nn.ModuleList(Block(block) for _ in range(depth))
        self.pred = Linear(block.dim, patch_dim)
        self.apply(init_weights)
        self.apply(init_apart)
        for vector in self.task_embed.values():
            nn.init.trunc_normal_(vector, std=0.02)

    @property
    def offsets(self) -> dict[str, int]:
        """Modality -> place of its first token among those of all modalities."""
        sizes = [math.prod(grid) for grid in self.context.values()]
        return dict(zip(self.context, [0, *accumulate(sizes)], strict=False))

    def forward(self, tokens: Tensor, index: Tensor, cls: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Predict the task at all of its places.

        Args:
            tokens: encoder output for the visible tokens (B, n, D).
            index: their places among the tokens of all modalities, int64 (B, n).
            cls: the encoder's global token (B, D); it has neither a position nor a vector of its modality.
            valid: bool (B, n), False = padding, which nothing looks at; None = all are real.

        Returns:
            (B, N, P).
        """
        context = self.embed(tokens) + gather_tokens(self.context_table(), index)  # (B, n, d)
        x = self.norm_query(self.queries(context, index, valid))  # (B, N, d)
        if cls is not None:
            context = torch.cat([self.embed(cls)[:, None], context], dim=1)
            valid = valid if valid is None else F.pad(valid, (1, 0), value=True)
        x = self.cross(x, self.norm_context(context), valid)
        x = x + self.mlp(self.norm_mlp(x))
        for block in self.blocks:
            x = block(x)
        return self.pred(x)

    def context_table(self) -> Tensor:
        """Position plus modality of every token that the encoder may give, (1, sum of all N, d)."""
        tables = [self._positions_of(name, grid) + self.task_embed[name] for name, grid in self.context.items()]
        return torch.cat(tables, dim=1)

    def _positions_of(self, name: str, grid: Lattice) -> Tensor:
        if len(grid) != len(self.grid):
            return getattr(self, f"positions_{name}")
        return interpolate_positions(self.pos_embed, self.grid, grid, "bilinear")

    def queries(self, context: Tensor, index: Tensor, valid: Tensor | None) -> Tensor:
        """What the task's places ask with, (B, N, d), from the context (B, n, d) and its places (B, n)."""
        rows, places, dim = len(context), math.prod(self.grid), context.shape[-1]
        asking = (self.mask_token + self.pos_embed).to(context.dtype)  # (1, N, d)
        if self.task not in self.context:
            return asking.expand(rows, -1, -1)
        asking = (asking + self.task_embed[self.task]).to(context.dtype).expand(rows, -1, -1)
        place = index - self.offsets[self.task]
        own = (place >= 0) & (place < places) if valid is None else (place >= 0) & (place < places) & valid
        place = torch.where(own, place, places)  # all others go to one place more, which is cut off
        place = place[..., None].expand(-1, -1, dim)
        return F.pad(asking, (0, 0, 0, 1)).scatter(1, place, context)[:, :places]


@torch.no_grad()
def init_apart(module: nn.Module) -> None:
    """MultiMAE's start of attention: q, k and v drawn as three matrices, each xavier-uniform. Use with `.apply`."""
    parts = {Attention: ("qkv", 3), CrossAttention: ("kv", 2)}.get(type(module))
    if parts is not None:
        for matrix in getattr(module, parts[0]).weight.chunk(parts[1]):
            nn.init.xavier_uniform_(matrix)
