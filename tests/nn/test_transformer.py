"""Blocks against timm's, their options, and what must not happen."""

from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from mmssl.errors import MmsslError
from mmssl.nn.transformer import Attention, Block, BlockConfig, DropPath, attend, init_weights


def perturb(module: nn.Module) -> nn.Module:
    """No parameter keeps a value (0 or 1) that could hide a mistake."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return module


@pytest.mark.parametrize("options", [{}, {"layer_scale": 0.1}, {"qkv_bias": "none"}, {"mlp_ratio": 2.0}])
def test_block_equals_timm(options):
    ours = perturb(Block(BlockConfig(dim=32, heads=4, **options)))
    timm = TimmBlock(
        32,
        4,
        mlp_ratio=options.get("mlp_ratio", 4.0),
        qkv_bias="qkv_bias" not in options,
        init_values=options.get("layer_scale"),
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    timm.load_state_dict(ours.state_dict())
    x = torch.randn(3, 11, 32)
    torch.testing.assert_close(ours(x), timm(x), atol=1e-5, rtol=0)


def test_qv_bias_leaves_the_keys_alone():
    ours = perturb(Attention(BlockConfig(dim=16, heads=2, qkv_bias="qv")))
    full = Attention(BlockConfig(dim=16, heads=2))
    state = {k: v for k, v in ours.state_dict().items() if k not in ("q_bias", "v_bias")}
    state["qkv.bias"] = torch.cat([ours.q_bias, torch.zeros(16), ours.v_bias]).detach()
    full.load_state_dict(state)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x), full(x))


def test_post_norm_equals_the_formula():
    block = perturb(Block(BlockConfig(dim=16, heads=2, norm="post", gelu="tanh")))
    x = torch.randn(2, 5, 16)
    y = block.norm1(x + block.attn(x))
    hidden = nn.functional.gelu(block.mlp.fc1(y), approximate="tanh")
    torch.testing.assert_close(block(x), block.norm2(y + block.mlp.fc2(hidden)))


def test_padding_changes_nothing():
    block = perturb(Block(BlockConfig(dim=16, heads=2)))
    x = torch.randn(2, 9, 16)
    mask = torch.arange(9)[None] < torch.tensor([[6], [9]])
    padded = block(torch.where(mask[..., None], x, torch.full_like(x, 7.0)), mask)
    torch.testing.assert_close(padded[0, :6], block(x[:1, :6])[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded[1], block(x[1:])[0], atol=1e-5, rtol=1e-5)


def test_row_without_a_real_token_is_not_nan():
    block = Block(BlockConfig(dim=16, heads=2))
    x = torch.randn(2, 4, 16, requires_grad=True)
    out = block(x, torch.tensor([[False] * 4, [True] * 4]))
    out.sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()


@pytest.fixture(params=[False, True], ids=["no bf16 units", "bf16 units"])
def any_processor(request, monkeypatch):
    """In bfloat16 attention goes another way on each kind of CPU."""
    monkeypatch.setattr("mmssl.nn.transformer.MULTIPLIES_BF16", request.param)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_packed_heads(any_processor, masked):
    """Against the formula, one head and one sample at a time."""
    qkv, mask = torch.randn(2, 21, 3, 4, 8), None
    exact, half = qkv.unbind(2), qkv.bfloat16().unbind(2)
    if masked:
        mask = (torch.arange(21) < 15).expand(2, 1, 1, 21)
    out, short = attend(*exact, mask), attend(*half, mask).float()
    for b in range(2):
        for h in range(4):
            q, k, v = qkv[b, :, :, h].unbind(1)
            scores = q @ k.T / 8**0.5
            if masked:
                scores[:, 15:] = -torch.inf
            expected = scores.softmax(-1) @ v
            torch.testing.assert_close(out[b, :, 8 * h : 8 * h + 8], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(short[b, :, 8 * h : 8 * h + 8], expected, atol=0.04, rtol=0.04)


def test_all_ways_of_attention_have_the_same_gradient(any_processor):
    x = torch.randn(2, 21, 3, 4, 8)
    grads = []
    for qkv in (x.clone().requires_grad_(), x.bfloat16().requires_grad_()):
        attend(*qkv.unbind(2)).square().sum().backward()
        grads.append(qkv.grad.float())
    torch.testing.assert_close(*grads, atol=0.05, rtol=0.05)


def test_bfloat16_on_a_cpu_without_it_is_float32_rounded(monkeypatch):
    monkeypatch.setattr("mmssl.nn.transformer.MULTIPLIES_BF16", False)
    half = torch.randn(2, 21, 3, 4, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*half.unbind(2))
    assert torch.equal(out, attend(*half.float().unbind(2)).bfloat16())


def test_a_batch_too_large_for_one_piece(monkeypatch):
    monkeypatch.setattr("mmssl.nn.transformer.MULTIPLIES_BF16", True)
    qkv = torch.randn(5, 300, 3, 8, 4).bfloat16()  # 720,000 weights a sample: two samples at once
    alone = torch.cat([attend(*one.unbind(2)) for one in qkv.split(1)])
    assert torch.equal(attend(*qkv.unbind(2)), alone)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": "qv", "norm": "post"}, {"qkv_bias": "none", "layer_scale": 0.1}])
@pytest.mark.parametrize("last", [0, 1, 4, 9])
def test_the_last_tokens_alone_are_the_same(options, last):
    block = perturb(Block(BlockConfig(dim=16, heads=2, **options)))
    x, mask = torch.randn(2, 9, 16), torch.arange(9)[None] < torch.tensor([[6], [9]])
    for key_mask in (None, mask):
        torch.testing.assert_close(
            block(x, key_mask, last=last), block(x, key_mask)[:, 9 - last :], atol=1e-5, rtol=1e-5
        )
    with torch.autocast("cpu", torch.bfloat16):
        assert (block(x, last=last) - block(x)[:, 9 - last :]).abs().sum() < 0.05


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.3), torch.ones(20000, 1, 2)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert torch.equal(y[:, 0, 0], y[:, 0, 1])
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(x), x)


def test_init_is_xavier_on_the_fused_matrix():
    block = Block(BlockConfig(dim=64, heads=4)).apply(init_weights)
    bound = (6 / (64 + 3 * 64)) ** 0.5
    assert block.attn.qkv.weight.abs().max() <= bound
    assert block.attn.qkv.weight.abs().max() > 0.97 * bound
    assert block.attn.qkv.bias.abs().max() == 0


@pytest.mark.parametrize(
    "bad", [{"dim": 10, "heads": 3}, {"dim": 0, "heads": 1}, {"drop_path": 1.0}, {"drop": -0.1}, {"mlp_ratio": 0.0}]
)
def test_impossible_settings_are_named(bad):
    with pytest.raises(MmsslError, match=next(iter(bad)) if len(bad) == 1 else "multiple of heads"):
        BlockConfig(**{"dim": 16, "heads": 2, **bad})
