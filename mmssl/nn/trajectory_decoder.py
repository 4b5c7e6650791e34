"""MTM's decoder: a transformer over every token of a trajectory, hidden or not, with a head for each modality."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmssl.nn.linear import Linear
from mmssl.nn.transformer import Block, BlockConfig


class TrajectoryDecoder(nn.Module):
    """Encoded tokens and mask tokens go through a linear layer of their modality, get a vector of their modality and
    their position, and through blocks and a head. Wu et al. 2023 (MTM, arXiv 2305.02968), as the released code has it.

    Weights: for each modality `embed` (D -> D), `mask_token` and `type_embed` (1, 1, D), zeros at the start,
    `pos_embed` (1, N, D), fixed, and `head` (LayerNorm, Linear, GELU, Linear); `blocks.N`, `norm`.

    Args:
        positions: modality -> fixed table (1, N, D).
        values: modality -> number of values to predict at a token.
        block: shape and options of the blocks.
        depth: number of blocks.
    """

    def __init__(self, positions: Mapping[str, Tensor], values: Mapping[str, int], block: BlockConfig, depth: int):
        super().__init__()
        dim = block.dim

        def vectors() -> nn.ParameterDict:
            return nn.ParameterDict({name: nn.Parameter(torch.zeros(1, 1, dim)) for name in positions})

        self.embed = nn.ModuleDict({name: Linear(dim, dim) for name in positions})
        self.mask_token, self.type_embed = vectors(), vectors()
        self.pos_embed = nn.ParameterDict({name: nn.Parameter(t.clone(), False) for name, t in positions.items()})
        self.blocks = nn.ModuleList(Block(block) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=block.norm_eps)
        self.head = nn.ModuleDict({name: _head(dim, n, block.norm_eps) for name, n in values.items()})

    def forward(
        self,
        tokens: Mapping[str, Tensor],
        index: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        valid: Mapping[str, Tensor] | None = None,
        real: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Say what every token is.

        Args:
            tokens: modality -> encoder output at its visible places, (B, n, D).
            index: modality -> these places in its own lattice, int64 (B, n).
            sizes: modality -> number N of its tokens, at most the table's.
            valid: modality -> bool (B, n), False = filled up, which is nothing; None = all are visible.
            real: modality -> bool (B, N), False = padding or missing, which nothing looks at; None, or a modality that
                is not named: all are real.

        Returns:
            modality -> (B, N, values).
        """
        parts = [self._whole(name, tokens[name], index[name], n, valid) for name, n in sizes.items()]
        x = torch.cat(parts, dim=1)  # (B, sum of N, D)
        key_mask = _joined(real, sizes, x) if real else None
        for block in self.blocks:
            x = block(x, key_mask)
        x = self.norm(x)
        pieces = zip(sizes, x.split(list(sizes.values()), dim=1), strict=True)
        return {name: self.head[name](piece) for name, piece in pieces}

    def _whole(self, name: str, tokens: Tensor, index: Tensor, n: int, valid: Mapping[str, Tensor] | None) -> Tensor:
        """All tokens of a modality (B, n, D): mask tokens, with what was encoded at its places."""
        hidden = self.embed[name](self.mask_token[name])  # the same at every place
        seen = self.embed[name](tokens)
        whole = hidden.to(seen.dtype).expand(len(seen), n, -1)
        if valid is not None:
            seen = torch.where(valid[name][..., None], seen, hidden.to(seen.dtype))
        whole = whole.scatter(1, index[..., None].expand_as(seen), seen)  # of nothing too: its gradient is then zero
        return whole + (self.pos_embed[name][:, :n] + self.type_embed[name])


def _head(dim: int, values: int, eps: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim, eps=eps), Linear(dim, dim), nn.GELU(), Linear(dim, values))


def _joined(real: Mapping[str, Tensor], sizes: Mapping[str, int], x: Tensor) -> Tensor:
    """bool (B, sum of N), True = real."""
    there = [
        real[name] if name in real else torch.ones(len(x), n, dtype=torch.bool, device=x.device)
        for name, n in sizes.items()
    ]
    return torch.cat(there, dim=1)


def start_as_torch(module: nn.Module, blocks: nn.ModuleList) -> None:
    """The start of `torch.nn.Linear` and `torch.nn.TransformerEncoder`: all blocks alike, learned vectors zero."""
    for name, parameter in module.named_parameters():
        if "type_embed" in name or "mask_token" in name:
            nn.init.zeros_(parameter)
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            linear.reset_parameters()
    for block in blocks[:1]:
        nn.init.xavier_uniform_(block.attn.qkv.weight)  # as one matrix
        nn.init.zeros_(block.attn.qkv.bias)
        nn.init.zeros_(block.attn.proj.bias)
    for block in blocks[1:]:
        block.load_state_dict(blocks[0].state_dict())
