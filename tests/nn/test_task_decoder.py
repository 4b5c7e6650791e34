"""MultiMAE's decoder of one task against plain code that goes sample by sample, place by place."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.nn.task_decoder import TaskDecoder
from mmssl.nn.transformer import BlockConfig

DIM, HEADS, WIDTH, PATCH = 16, 4, 10, 7
CONTEXT = {"image": (2, 3), "depth": (2, 3), "sketch": (1, 2)}
PLACES = sum(math.prod(grid) for grid in CONTEXT.values())


def decoder(task="depth", depth=2, context=None) -> TaskDecoder:
    """A decoder whose every parameter is random, so that no mistake hides behind an initial zero or one."""
    torch.manual_seed(0)
    positions = torch.randn(1, 6, DIM)
    context = CONTEXT if context is None else context
    model = TaskDecoder(WIDTH, PATCH, task, (2, 3), positions, context, BlockConfig(DIM, HEADS), depth)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape) * 0.3) if name != "pos_embed" else None
    return model.eval()


def inputs(n=5, batch=3, seed=1):
    """Tokens, their places, a global token, and which tokens are real."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(PLACES, generator=generator)[:n] for _ in range(batch)])
    valid = torch.arange(n)[None] < torch.tensor([n, n - 2, n - 1])[:batch, None]
    tokens = torch.randn(batch, n, WIDTH, generator=generator, requires_grad=True)
    return tokens, index, torch.randn(batch, WIDTH, generator=generator), valid


def attention(q, k, v):
    """q (M, D), k and v (N, D), head by head."""
    size = DIM // HEADS
    heads = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
    return torch.cat([(q[:, h] @ k[:, h].T / size**0.5).softmax(-1) @ v[:, h] for h in heads], 1)


def norm(x, layer):
    return F.layer_norm(x, (DIM,), layer.weight, layer.bias, 1e-6)


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def mlp(x, layer):
    return linear(F.gelu(linear(x, layer.fc1)), layer.fc2)


def slow(model, tokens, index, cls=None, valid=None):
    """The same in words: one sample, one token at a time."""
    places = [(name, k) for name, grid in CONTEXT.items() for k in range(math.prod(grid))]
    table = model.pos_embed[0].T.view(1, DIM, 2, 3)
    out = []
    for b in range(len(tokens)):
        asking = [model.mask_token[0, 0] + model.pos_embed[0, k] for k in range(6)]
        if model.task in CONTEXT:
            asking = [x + model.task_embed[model.task][0, 0] for x in asking]
        seen = [] if cls is None else [linear(cls[b], model.embed)]
        for j, token in enumerate(tokens[b]):
            if valid is not None and not valid[b, j]:
                continue
            name, k = places[index[b, j]]
            own = F.interpolate(table, CONTEXT[name], mode="bilinear").flatten(2)[0, :, k]
            x = linear(token, model.embed) + own + model.task_embed[name][0, 0]
            seen.append(x)
            if name == model.task:
                asking[k] = x
        q = linear(norm(torch.stack(asking), model.norm_query), model.cross.q)
        k, v = linear(norm(torch.stack(seen), model.norm_context), model.cross.kv).chunk(2, 1)
        x = linear(attention(q, k, v), model.cross.proj)  # nothing is added to it
        x = x + mlp(norm(x, model.norm_mlp), model.mlp)
        for block in model.blocks:
            q, k, v = linear(norm(x, block.norm1), block.attn.qkv).chunk(3, 1)
            x = x + linear(attention(q, k, v), block.attn.proj)
            x = x + mlp(norm(x, block.norm2), block.mlp)
        out.append(linear(x, model.pred))
    return torch.stack(out)


@pytest.mark.parametrize("task", ["image", "depth", "normals"])
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_the_slow_one(task, padded):
    model, (tokens, index, cls, valid) = decoder(task), inputs()
    valid = valid if padded else None
    fast, wanted = model(tokens, index, cls, valid), slow(model, tokens, index, cls, valid)
    assert fast.shape == (3, 6, PATCH) and (fast - wanted).abs().max() < 1e-5
    weight = torch.randn(fast.shape, generator=torch.Generator().manual_seed(9))
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), [tokens, model.mask_token]) for y in (fast, wanted)),
                    strict=True):  # fmt: skip
        assert (a - b).abs().max() < 1e-4


def test_without_a_global_token_and_without_blocks():
    model, (tokens, index, _, valid) = decoder(depth=0), inputs()
    assert (model(tokens, index, None, valid) - slow(model, tokens, index, None, valid)).abs().max() < 1e-5


def test_only_the_global_token_may_be_left():
    model, (tokens, index, cls, _) = decoder(), inputs(batch=1)
    alone = model(tokens[:, :0], index[:, :0], cls)
    nothing = model(tokens, index, cls, torch.zeros(1, 5, dtype=torch.bool))
    assert alone.isfinite().all() and (alone - nothing).abs().max() < 1e-5


def test_a_row_without_anything_is_not_nan():
    model, (tokens, index, _, valid) = decoder(), inputs()
    valid[1] = False
    assert model(tokens, index, None, valid).isfinite().all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, PLACES))
def test_the_order_of_the_tokens_says_nothing(seed, n):
    model, (tokens, index, cls, _) = decoder(), inputs(n, 2, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(model(tokens[:, order], index[:, order], cls), model(tokens, index, cls), atol=1e-4,
                               rtol=1e-4)  # fmt: skip


def test_a_fresh_decoder_starts_as_the_authors_does():
    torch.manual_seed(0)
    model = TaskDecoder(64, 48, "image", (4, 4), torch.zeros(1, 16, 64), {"image": (4, 4)}, BlockConfig(64, 4), 1)
    apart = (6 / (64 + 64)) ** 0.5  # q, k and v each by itself
    for matrix in (*model.blocks[0].attn.qkv.weight.chunk(3), *model.cross.kv.weight.chunk(2), model.cross.q.weight):
        assert 0.97 * apart < matrix.abs().max() <= apart
    assert not model.mask_token.any() and 0.01 < model.task_embed["image"].std() < 0.03
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert len(biases) > 10 and not any(p.any() for p in biases)
    assert not model.pos_embed.requires_grad


def test_drop_path_is_left_out():
    block = BlockConfig(DIM, HEADS, drop_path=0.5)
    model = TaskDecoder(WIDTH, PATCH, "a", (2, 3), torch.zeros(1, 6, DIM), {"a": (2, 3)}, block, 1)
    assert model.blocks[0].drop_path.p == 0
