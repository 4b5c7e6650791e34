"""SiamMAE's cross-self decoder: tokens of a masked frame look at a whole other frame, then at one another.

Gupta et al. 2023 (arXiv 2305.14344) leave the inside of a block open: here are the two readings of it, RSP's and
CropMAE's.
"""

from dataclasses import replace

from torch import Tensor, nn

from mmssl.errors import unknown_name
from mmssl.nn.decoders import MaskedDecoder
from mmssl.nn.linear import Linear
from mmssl.nn.transformer import Block, BlockConfig, attend, init_weights


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence to another, with biases on q, k and v."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.heads, self.attn_drop = config.heads, config.attn_drop
        self.q = Linear(config.dim, config.dim)
        self.kv = Linear(config.dim, 2 * config.dim)
        self.proj = Linear(config.dim, config.dim)
        self.drop = nn.Dropout(config.drop)

    def forward(self, x: Tensor, context: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """x (B, M, D) looks at context (B, N, D); key_mask bool (B, N), True = a real token. Returns (B, M, D)."""
        if key_mask is not None:  # a row without any real token attends to all of them, so as not to be NaN
            key_mask = (key_mask | ~key_mask.any(1, keepdim=True))[:, None, None, :]  # (B, 1, 1, N)
        q = self.q(x).unflatten(-1, (self.heads, -1))  # (B, M, heads, d)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).unbind(2)  # (B, N, heads, d)
        return self.drop(self.proj(attend(q, k, v, key_mask, self.attn_drop if self.training else 0.0)))


class RspBlock(Block):
    """Cross-attention, self-attention, MLP, each behind its LayerNorm; the context has a LayerNorm of its own.

    The order of RSP (Jang et al., ICML 2024). `Block` is all that follows the cross-attention.
    """

    def __init__(self, config: BlockConfig):
        super().__init__(replace(config, norm="pre"))
        self.norm_cross = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.norm_context = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.cross = CrossAttention(config)
        self.apply(init_weights)

    def forward(self, x: Tensor, context: Tensor, key_mask: Tensor | None = None, last: int | None = None) -> Tensor:
        """x (B, M, D); context (B, N, D), all of it real; key_mask bool (B, M), True = a real token of x.

        Returns (B, M, D), or with `last` the last so many tokens alone.
        """
        x = x + self.drop_path(self.cross(self.norm_cross(x), self.norm_context(context)))
        return super().forward(x, key_mask, last)


class CropMaeBlock(Block):
    """Cross-attention, MLP, self-attention, a LayerNorm after each residual sum.

    The order of CropMAE (Eymaël et al. 2024, arXiv 2403.17823), whose blocks have the parts of torch's
    TransformerDecoderLayer: `cross` is its multihead_attn with norm2, `mlp` its linear1 and linear2 with norm3, `attn`
    its self_attn with norm1.
    """

    def __init__(self, config: BlockConfig):
        super().__init__(replace(config, norm="post"))
        self.norm_cross = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.cross = CrossAttention(config)
        self.apply(init_weights)
        # torch keeps q, k and v of any attention in one (3D, D) matrix, and draws it as one
        nn.init.xavier_uniform_(self.cross.q.weight, gain=(2 / 4) ** 0.5)
        nn.init.xavier_uniform_(self.cross.kv.weight, gain=(3 / 4) ** 0.5)

    def forward(self, x: Tensor, context: Tensor, key_mask: Tensor | None = None, last: int | None = None) -> Tensor:
        """As `RspBlock.forward`."""
        x = self.norm_cross(x + self.drop_path(self.cross(x, context)))
        x = self.norm2(x + self.drop_path(self.ls2(self.mlp(x))))
        rest = x if last is None else x[:, x.shape[1] - last :]
        return self.norm1(rest + self.drop_path(self.ls1(self.attn(x, key_mask, last))))


ORDERS: dict[str, type[RspBlock] | type[CropMaeBlock]] = {"rsp": RspBlock, "cropmae": CropMaeBlock}
"""Blocks by the names that recipes use."""


class CrossDecoder(MaskedDecoder):
    """`MaskedDecoder` whose blocks look at a context as well: all tokens of the past frame, cls too.

    Both frames go through the same projection; the context gets no positions here, those of the encoder are in it.

    Args:
        embed_dim, patch_dim, positions, block, depth: as `MaskedDecoder`'s.
        order: "rsp" or "cropmae", the order of things in a block; it decides where the norms are, not `block.norm`.
    """

    def __init__(
        self, embed_dim: int, patch_dim: int, positions: Tensor, block: BlockConfig, depth: int, order: str = "rsp"
    ):
        super().__init__(embed_dim, patch_dim, positions, block, 0)
        if order not in ORDERS:
            raise unknown_name("decoder_order", order, ORDERS)
        self.blocks = nn.ModuleList(ORDERS[order](replace(block, drop_path=0.0)) for _ in range(depth))

    def forward(
        self,
        tokens: Tensor,
        visible: Tensor,
        masked: Tensor,
        cls: Tensor | None = None,
        key_mask: Tensor | None = None,
        *,
        context: Tensor,
    ) -> Tensor:
        """Predict the masked patches of the future frame.

        Args:
            tokens, visible, masked, cls, key_mask: of the future frame, as `MaskedDecoder.forward` takes them.
            context: encoder output for the whole past frame, in any order, (B, N, D) or with its cls (B, 1 + N, D).

        Returns:
            (B, m, P), in the order of `masked`.
        """
        x, context = self.sequence(tokens, visible, masked, cls), self.embed(context)
        for block in self.blocks[:-1]:
            x = block(x, context, key_mask)
        return self.pred(self.norm(self.blocks[-1](x, context, key_mask, last=masked.shape[1])))
