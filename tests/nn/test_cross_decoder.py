"""The cross-self decoder against torch's own layers, in both orders."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmssl.errors import MmsslError
from mmssl.nn.cross_decoder import ORDERS, CropMaeBlock, CrossAttention, CrossDecoder, RspBlock
from mmssl.nn.transformer import BlockConfig

DIM, HEADS, HIDDEN = 24, 3, 40
CONFIG = BlockConfig(DIM, HEADS, mlp_ratio=HIDDEN / DIM)


def scramble(module: nn.Module) -> nn.Module:
    """Every parameter random, so that no mistake hides behind an initial zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return module.eval()


def tokens(n, seed, batch=2, dim=DIM):
    return torch.randn(batch, n, dim, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def copy_attention(theirs: nn.MultiheadAttention, ours: nn.Module) -> None:
    """torch's multi-head attention with our weights, q, k and v in one matrix."""
    names = ("qkv",) if hasattr(ours, "qkv") else ("q", "kv")
    theirs.in_proj_weight.copy_(torch.cat([getattr(ours, n).weight for n in names]))
    theirs.in_proj_bias.copy_(torch.cat([getattr(ours, n).bias for n in names]))
    theirs.out_proj.load_state_dict(ours.proj.state_dict())


@torch.no_grad()
def torch_layer(ours: CropMaeBlock | RspBlock) -> nn.TransformerDecoderLayer:
    """The parts of torch's decoder layer with our weights."""
    options = {"activation": "gelu", "layer_norm_eps": 1e-6, "batch_first": True, "dropout": 0.1}
    theirs = nn.TransformerDecoderLayer(DIM, HEADS, HIDDEN, **options).eval()
    copy_attention(theirs.multihead_attn, ours.cross)
    copy_attention(theirs.self_attn, ours.attn)
    pairs = {"linear1": ours.mlp.fc1, "linear2": ours.mlp.fc2}
    pairs |= {"norm1": ours.norm1, "norm2": ours.norm_cross, "norm3": ours.norm2}
    for name, module in pairs.items():
        getattr(theirs, name).load_state_dict(module.state_dict())
    return theirs


def gradients(out, *inputs):
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad((out * weight).sum(), inputs)


def assert_same(ours, theirs, x, context):
    assert (ours - theirs).abs().max() < 1e-5
    for a, b in zip(gradients(ours, x, context), gradients(theirs, x, context), strict=True):
        assert (a - b).abs().max() < 1e-5


def hidden_keys(key_mask):
    return None if key_mask is None else ~key_mask


KEY_MASKS = [None, torch.tensor([[True] * 7, [True] * 5 + [False] * 2])]


@pytest.mark.parametrize("key_mask", KEY_MASKS)
def test_cropmae_is_torchs_decoder_layer_in_another_order(key_mask):
    ours = scramble(CropMaeBlock(CONFIG))
    theirs = torch_layer(ours)
    x, context = tokens(7, 1), tokens(11, 2)
    y = theirs.norm2(x + theirs._mha_block(x, context, None, None))
    y = theirs.norm3(y + theirs._ff_block(y))
    y = theirs.norm1(y + theirs._sa_block(y, None, hidden_keys(key_mask)))
    assert_same(ours(x, context, key_mask), y, x, context)


@pytest.mark.parametrize("key_mask", KEY_MASKS)
def test_rsp_is_cross_attention_self_attention_and_mlp_before_which_is_a_norm(key_mask):
    ours = scramble(RspBlock(CONFIG))
    theirs = torch_layer(ours)
    norm_context = nn.LayerNorm(DIM, eps=1e-6)
    norm_context.load_state_dict(ours.norm_context.state_dict())
    x, context = tokens(7, 1), tokens(11, 2)
    seen = norm_context(context)
    y = x + theirs.multihead_attn(theirs.norm2(x), seen, seen)[0]
    z = theirs.norm1(y)
    y = y + theirs.self_attn(z, z, z, key_padding_mask=hidden_keys(key_mask))[0]
    y = y + theirs.linear2(nn.functional.gelu(theirs.linear1(theirs.norm3(y))))
    assert_same(ours(x, context, key_mask), y, x, context)


def test_weights_have_the_same_gradients_as_torchs():
    ours = scramble(CropMaeBlock(CONFIG))
    theirs = torch_layer(ours)
    x, context = tokens(7, 1).detach(), tokens(11, 2).detach()
    y = theirs.norm2(x + theirs._mha_block(x, context, None, None))
    y = theirs.norm3(y + theirs._ff_block(y))
    theirs.norm1(y + theirs._sa_block(y, None, None)).square().sum().backward()
    ours(x, context).square().sum().backward()
    for attention, own in ((theirs.multihead_attn, ours.cross), (theirs.self_attn, ours.attn)):
        names = ("qkv",) if hasattr(own, "qkv") else ("q", "kv")
        grad = torch.cat([getattr(own, n).weight.grad for n in names])
        torch.testing.assert_close(grad, attention.in_proj_weight.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.mlp.fc1.weight.grad, theirs.linear1.weight.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.norm_cross.weight.grad, theirs.norm2.weight.grad, atol=1e-5, rtol=1e-4)


def test_a_fresh_cropmae_block_is_drawn_as_torchs_and_maes_code_draw_it():
    """MAE's rule redraws every Linear, out_proj too; torch draws a whole in_proj of (3D, D) at once."""
    torch.manual_seed(0)
    block = CropMaeBlock(BlockConfig(64, 4, mlp_ratio=2))
    bound = (6 / (64 + 3 * 64)) ** 0.5
    for weight in (block.cross.q.weight, block.cross.kv.weight, block.attn.qkv.weight):
        assert 0.98 * bound < weight.abs().max() <= bound
    assert all(not p.any() for name, p in block.named_parameters() if name.endswith("bias"))


def test_dropout_of_attention_weights_keeps_the_mean():
    cross = scramble(CrossAttention(BlockConfig(DIM, HEADS, attn_drop=0.5)))
    x, context = (tokens(n, n, batch=1).detach().expand(4000, -1, -1) for n in (3, 9))
    exact = cross(x, context)[0]
    torch.manual_seed(0)
    draws = cross.train()(x, context)
    spread = draws.std(0)
    assert spread.min() > 0.01 and ((draws.mean(0) - exact).abs() < 6 * spread / 4000**0.5).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["drop", "attn_drop"])
def test_dropout_acts_in_training_alone(order, kind):
    block, x, context = scramble(ORDERS[order](BlockConfig(DIM, HEADS, **{kind: 0.3}))), tokens(5, 1), tokens(9, 2)
    assert torch.equal(block(x, context), block(x, context))
    block.train()
    assert not torch.equal(block(x, context), block(x, context))


def decoder(order, **options) -> CrossDecoder:
    torch.manual_seed(0)
    positions = torch.randn(1, 12, DIM)
    return scramble(CrossDecoder(10, 7, positions, BlockConfig(DIM, HEADS, **options), 2, order))


def places(seed=0, visible=3, batch=2):
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(12, generator=generator) for _ in range(batch)])
    return order[:, :visible], order[:, visible:]


@pytest.mark.parametrize("order", ORDERS)
def test_the_whole_decoder_is_its_parts_in_raster_order(order):
    """The slow way: mask tokens put among the visible ones, every token through every block, the masked picked out."""
    model, (visible, masked) = decoder(order), places()
    context, seen, cls = tokens(13, 1, dim=10), tokens(3, 2, dim=10), tokens(1, 3, dim=10)[:, 0]
    out = model(seen, visible, masked, cls, context=context)
    for b in range(2):
        x = model.mask_token[0].repeat(12, 1)
        x = x.index_put((visible[b],), model.embed(seen[b])) + model.pos_embed[0]
        x = torch.cat([model.embed(cls[b])[None], x])[None]  # cls first, without a position
        for block in model.blocks:
            x = block(x, model.embed(context[b : b + 1]))
        slow = model.pred(model.norm(x))[0, 1:][masked[b]]
        assert (out[b] - slow).abs().max() < 1e-5


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(ORDERS)), st.integers(0, 1000), st.integers(1, 11))
def test_the_order_of_tokens_says_nothing(order, seed, n_visible):
    """The context has no positions here; visible and masked tokens carry theirs."""
    model, (visible, masked) = decoder(order), places(seed, n_visible)
    context, seen = tokens(13, seed, dim=10), tokens(n_visible, seed + 1, dim=10)
    out = model(seen, visible, masked, context=context)
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (torch.randperm(n, generator=generator) for n in (13, n_visible, 12 - n_visible))
    shuffled = model(seen[:, b], visible[:, b], masked[:, c], context=context[:, a])
    torch.testing.assert_close(shuffled, out[:, c], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_padded_tokens_are_not_seen_and_the_context_is(order):
    model, (visible, masked) = decoder(order), places()
    context, seen = tokens(13, 1, dim=10), tokens(3, 2, dim=10)
    key_mask = torch.ones(2, 12, dtype=torch.bool)
    key_mask[:, 2] = False
    padded = model(seen, visible, masked, key_mask=key_mask, context=context)
    alone = model(seen[:, :2], visible[:, :2], masked, context=context)
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
    moved = [model(seen, visible, masked, context=c) for c in (context, context + 1)]
    assert (moved[0] - moved[1]).abs().max() > 1e-3


def test_drop_path_is_left_out_and_an_unknown_order_is_named():
    block = BlockConfig(DIM, HEADS, drop_path=0.5)
    assert CrossDecoder(10, 7, torch.zeros(1, 12, DIM), block, 1).blocks[0].drop_path.p == 0
    with pytest.raises(MmsslError, match="unknown decoder_order 'rps': did you mean 'rsp'"):
        CrossDecoder(10, 7, torch.zeros(1, 12, DIM), block, 1, "rps")
