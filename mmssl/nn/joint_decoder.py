"""M3AE's decoder: one narrow transformer over the tokens of all modalities, with a head for each of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmssl.nn.gather import gather_tokens
from mmssl.nn.linear import Linear
from mmssl.nn.transformer import Block, BlockConfig, init_weights


@dataclass(frozen=True)
class Output:
    """What a modality needs in the decoder.

    Attributes:
        positions: fixed table (1, N, dim) over its lattice.
        values: number of values P to predict at a token, or the size of its vocabulary.
    """

    positions: Tensor
    values: int


@dataclass(frozen=True)
class Hidden:
    """The masked tokens of one modality.

    Attributes:
        index: their places in its lattice, int64 (B, m).
        valid: bool (B, m), False where a row has fewer; None = all are real.
    """

    index: Tensor
    valid: Tensor | None = None


class JointDecoder(nn.Module):
    """A transformer over [cls, visible tokens of all modalities, masked tokens of all modalities].

    The sequence is never put back in order: every token carries its position and a learned vector of its modality, cls
    neither. The last block computes the masked tokens alone. A modality that is not there costs nothing. Geng et al.
    2022 (M3AE, arXiv 2205.14204), as the released code has it.

    Weights: `embed` (D -> dim), `pos_embed.<modality>` (1, N, dim), `type_embed.<modality>` and `mask_token.<modality>`
    (1, 1, dim), `blocks.N`, `norm`, `pred.<modality>`.

    Args:
        embed_dim: width D of the encoder.
        outputs: modality -> what it needs, in the encoder's token order.
        block: shape and options of the blocks (its `dim` is the decoder's width).
        depth: number of blocks.
    """

    def __init__(self, embed_dim: int, outputs: Mapping[str, Output], block: BlockConfig, depth: int):
        super().__init__()

        def vectors() -> nn.ParameterDict:
            return nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(1, 1, block.dim)) for name in outputs})

        self.embed = Linear(embed_dim, block.dim)
        tables = {name: nn.Parameter(output.positions.clone(), False) for name, output in outputs.items()}
        self.pos_embed = nn.ParameterDict(tables)
        self.type_embed, self.mask_token = vectors(), vectors()
        self.blocks = nn.ModuleList(Block(replace(block, drop_path=0.0)) for _ in range(depth))
        self.norm = nn.LayerNorm(block.dim, eps=block.norm_eps)
        self.pred = nn.ModuleDict({name: Linear(block.dim, output.values) for name, output in outputs.items()})
        self.apply(init_weights)

    def forward(
        self,
        tokens: Tensor,
        visible: Tensor,
        hidden: Mapping[str, Hidden],
        cls: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict the masked tokens.

        Args:
            tokens: encoder output at the visible places (B, n, D).
            visible: their places among those of all modalities, int64 (B, n).
            hidden: modality -> its masked tokens, of those in the batch.
            cls: the encoder's cls token (B, D).
            valid: bool (B, n), False = padding, which nothing looks at; None = all are real.

        Returns:
            modality -> (B, m, P), in the order of its masked tokens.
        """
        x = self.embed(tokens) + gather_tokens(self.table(), visible)
        parts = [x] if cls is None else [self.embed(cls)[:, None], x]
        parts += [self.mask_token[name] + gather_tokens(self.places(name), h.index) for name, h in hidden.items()]
        key_mask, counts = self._key_mask(x, hidden, cls, valid), [h.index.shape[1] for h in hidden.values()]
        x = torch.cat([part.to(x.dtype) for part in parts], dim=1)
        for block in self.blocks[:-1]:
            x = block(x, key_mask)
        x = self.norm(self.blocks[-1](x, key_mask, last=sum(counts)))
        return {name: self.pred[name](part) for name, part in zip(hidden, x.split(counts, dim=1), strict=True)}

    def places(self, name: str) -> Tensor:
        """Position plus vector of every place of a modality, (1, N, dim)."""
        return self.pos_embed[name] + self.type_embed[name]

    def table(self) -> Tensor:
        """The same of all modalities, one after the other."""
        return torch.cat([self.places(name) for name in self.pos_embed], dim=1)

    @staticmethod
    def _key_mask(x: Tensor, hidden: Mapping[str, Hidden], cls: Tensor | None, valid: Tensor | None) -> Tensor | None:
        """bool (B, [1 +] n + all m), True = a real token; None where all are."""
        if valid is None and all(h.valid is None for h in hidden.values()):
            return None

        def whole(given: Tensor | None, like: Tensor) -> Tensor:
            return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device) if given is None else given

        parts = [whole(valid, x), *(whole(h.valid, h.index) for h in hidden.values())]
        return nn.functional.pad(torch.cat(parts, dim=1), (0 if cls is None else 1, 0), value=True)
