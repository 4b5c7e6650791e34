"""The windowed decoder against a version that loops over windows and heads, and what it must bear."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmssl.encoder import SIZES, Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.nn.transformer import BlockConfig
from mmssl.nn.windowed import WindowedDecoder
from mmssl.nn.windows import fit, permute_tokens, shift_mask, window_places
from mmssl.tokenizers.audio import AudioTokenizerConfig

LAYOUTS = {  # lattice, window, shift
    "whole": ((8, 8), (4, 4), (2, 0)),
    "both axes": ((8, 12), (4, 4), (2, 2)),
    "unequal shift": ((8, 8), (4, 2), (1, 1)),
    "padded rows": ((11, 8), (4, 4), (2, 0)),
    "padded rows and columns": ((7, 5), (4, 2), (2, 1)),
    "one window across": ((8, 3), (4, 4), (2, 2)),
    "one window": ((3, 2), (4, 4), (2, 2)),
    "no shift": ((4, 8), (2, 2), (0, 0)),
}


def decoder(grid=(8, 8), window=(4, 4), shift=(2, 0), depth=3, dim=16, **block):
    """A small decoder in evaluation, none of whose parameters keeps a value (0 or 1) that could hide a mistake.

    In float64: a temperature of 0.01 makes rounding a hundred times as large.
    """
    torch.manual_seed(0)
    positions = torch.randn(1, math.prod(grid), dim)
    config = BlockConfig(dim=dim, heads=2, mlp_ratio=2.0, **block)
    model = WindowedDecoder(12, 7, positions, config, depth, grid, window, shift)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
        for block in model.blocks:
            block.attn.tau.copy_(torch.tensor([0.3, 0.001]))  # one below what is allowed
    return model.eval().double()


def split(grid, batch=2, visible=0.3):
    """Tokens (B, n, 12) and the places of the visible and of the masked ones, in any order."""
    n = math.prod(grid)
    place = torch.stack([torch.randperm(n) for _ in range(batch)])
    keep = max(1, int(visible * n))
    return torch.randn(batch, keep, 12, dtype=torch.float64), place[:, :keep], place[:, keep:]


def slow_bias(mlp, window):
    """Bias of every pair of places of a window, (L, L, heads)."""
    place = [(r, c) for r in range(window[0]) for c in range(window[1])]
    return torch.stack([torch.stack([slow_pair(mlp, a, b) for b in place]) for a in place])


def slow_pair(mlp, a, b):
    """Bias of every head (heads,) for a query at (row, column) a and a key at b of a window."""
    log = [math.copysign(math.log(1 + abs(i - j)), i - j) for i, j in zip(a, b, strict=True)]
    return mlp.fc2(mlp.fc1(torch.tensor(log, dtype=torch.float64)).relu())


def slow_attention(attn, x, bias, rolled, shift):
    """Attention in one window of tokens x (L, D); `rolled` holds each token's (row, column) before the roll."""
    apart = [tuple(i < s for i, s in zip(p, shift, strict=True)) for p in rolled]
    q, k, v = (t.split(x.shape[1] // attn.heads, dim=1) for t in attn.qkv(x).split(x.shape[1], dim=1))
    out = []
    for h in range(attn.heads):
        cosine = nn.functional.cosine_similarity(q[h][:, None], k[h][None], dim=-1, eps=1e-12)
        logits = cosine / attn.tau[h].clamp(min=0.01) + bias[:, :, h]
        logits = logits + torch.tensor([[0.0 if a == b else -100.0 for b in apart] for a in apart])
        out.append(logits.softmax(-1) @ v[h])
    return attn.proj(torch.cat(out, dim=1))


def slow_block(block, x, window, shift):
    """x (H, W, D) on a lattice that the window divides."""
    rows, columns, _ = x.shape
    seen, bias = torch.zeros_like(x), slow_bias(block.attn.meta_mlp, window)
    for top in range(0, rows, window[0]):
        for left in range(0, columns, window[1]):
            cells = [(top + r, left + c) for r in range(window[0]) for c in range(window[1])]
            cells = [((r + shift[0]) % rows, (c + shift[1]) % columns) for r, c in cells]
            tokens = torch.stack([x[cell] for cell in cells])
            for cell, value in zip(cells, slow_attention(block.attn, tokens, bias, cells, shift), strict=True):
                seen = seen.index_put((torch.tensor(cell[0]), torch.tensor(cell[1])), value)
    x = x + block.norm1(seen)
    hidden = nn.functional.gelu(block.mlp.fc1(x))
    return x + block.norm2(block.mlp.fc2(hidden))


def slow_decoder(model, tokens, visible, masked, grid, window, shift):
    """Predictions (m, P) for one row."""
    n = math.prod(grid)
    x = model.mask_token[0].expand(n, -1).index_put((visible,), model.embed(tokens)) + model.pos_embed[0]
    x = x.view(*grid, -1)
    shift = tuple(0 if n <= w else s for n, w, s in zip(grid, window, shift, strict=True))
    window = tuple(min(n, w) for n, w in zip(grid, window, strict=True))
    while x.shape[0] % window[0]:
        x = torch.cat([x, x[-1:]])
    while x.shape[1] % window[1]:
        x = torch.cat([x, x[:, -1:]], dim=1)
    for number, block in enumerate(model.blocks):
        x = slow_block(block, x, window, shift if number % 2 else (0, 0))
    x = x[: grid[0], : grid[1]].flatten(0, 1)[masked]
    return model.pred(model.norm(x))


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_a_loop_over_windows(layout, depth):
    layout = LAYOUTS[layout]
    model = decoder(*layout, depth=depth)
    tokens, visible, masked = split(layout[0], batch=2 if depth == 2 else 1)
    with torch.no_grad():
        slow = [slow_decoder(model, *row, *layout) for row in zip(tokens, visible, masked, strict=True)]
        torch.testing.assert_close(model(tokens, visible, masked), torch.stack(slow), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layout", ["padded rows and columns", "both axes"])
def test_gradients_equal_those_of_the_loop(layout):
    layout = LAYOUTS[layout]
    model = decoder(*layout, depth=2)
    tokens, visible, masked = split(layout[0], batch=1)
    tokens.requires_grad_()
    weight = torch.randn(len(masked[0]), 7)
    trained = [tokens, *(p for p in model.parameters() if p.requires_grad)]
    fast = torch.autograd.grad((model(tokens, visible, masked)[0] * weight).sum(), trained)
    slow = torch.autograd.grad((slow_decoder(model, tokens[0], visible[0], masked[0], *layout) * weight).sum(), trained)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6 * float(b.abs().max()) + 1e-12, rtol=1e-5)


def test_the_authors_overlapping_lattice():
    """101 x 12 patches become 102 x 12, in windows of 6 x 6."""
    layout = ((101, 12), (6, 6), (2, 0))
    model = decoder(*layout, depth=1)
    tokens, visible, masked = split(layout[0], batch=1)
    assert model.places.shape == (102 * 12,) and (model.places.bincount()[-12:] == 2).all()
    with torch.no_grad():
        slow = slow_decoder(model, tokens[0], visible[0], masked[0], *layout)
        torch.testing.assert_close(model(tokens, visible, masked)[0], slow, atol=1e-6, rtol=1e-6)


def test_equals_full_attention_with_a_mask():
    """Over all tokens at once, with the bias of each pair where both lie in one window and nothing elsewhere."""
    grid, window, shift = (8, 8), (4, 4), (2, 0)
    attn = decoder().blocks[1].attn
    attn.tau.data[1] = 0.05
    x = torch.randn(2, 64, 16, dtype=torch.float64)
    places, mask = window_places(grid, window, shift), shift_mask(grid, window, shift)
    order = places.flatten()
    logits = torch.full((2, 64, 64), -torch.inf, dtype=torch.float64)
    for of_window, apart in zip(places, mask, strict=True):
        logits[:, of_window[:, None], of_window[None]] = attn.meta_mlp().detach() + apart
    q, k, v = attn.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
    q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
    full = ((q @ k.mT / attn.tau.view(2, 1, 1) + logits).softmax(-1) @ v).transpose(1, 2).flatten(2)
    ours = attn(x[:, order], mask)[:, order.argsort()]
    torch.testing.assert_close(ours, full, atol=1e-5, rtol=1e-4)


def test_orders_undo_each_other():
    model, x = decoder(*LAYOUTS["padded rows and columns"]), torch.randn(2, 48, 3, requires_grad=True)
    there = permute_tokens(x, model.to_shifted, model.to_plain)
    back = permute_tokens(there, model.to_plain, model.to_shifted)
    assert not torch.equal(there, x) and torch.equal(back, x)
    weight = torch.randn(2, 48, 3)
    (grad,) = torch.autograd.grad((there * weight).sum(), x)
    (expected,) = torch.autograd.grad((x[:, model.to_shifted] * weight).sum(), x)
    assert torch.equal(grad, expected)
    places = window_places((7, 5), (4, 2), (2, 1)).flatten()
    assert places.sort().values.tolist() == list(range(48))


def test_ragged_rows_equal_each_row_alone():
    """Rows of different counts, filled up with places of the other kind as `ragged_index` does."""
    model, n = decoder(*LAYOUTS["padded rows"]), 88
    counts, tokens = [20, 33, 58], torch.randn(3, 58, 12, dtype=torch.float64)
    place = torch.stack([torch.randperm(n) for _ in counts])
    visible, masked = place[:, :58], place.flip(1)[:, :68]
    real = torch.arange(58) < torch.tensor(counts)[:, None]
    gone = torch.arange(68) < (n - torch.tensor(counts))[:, None]
    out = model(tokens, visible, masked, key_mask=torch.cat([real, gone], dim=1))
    with_cls = torch.cat([torch.ones(3, 1, dtype=torch.bool), real, gone], dim=1)  # a column for the encoder's cls
    assert torch.equal(model(tokens, visible, masked, torch.randn(3, 12), with_cls), out)
    for row, count in enumerate(counts):
        alone = model(tokens[[row], :count], visible[[row], :count], masked[[row], : n - count])[0]
        torch.testing.assert_close(out[row, : n - count], alone, atol=1e-6, rtol=1e-6)


def test_places_that_are_neither_visible_nor_masked_are_not_seen():
    model = decoder()
    tokens, visible, masked = split((8, 8), batch=1)
    fewer = model(tokens[:, :-4], visible[:, :-4], masked)  # four places are left out
    padding = torch.ones(1, 64, dtype=torch.bool)
    padding[:, 15:19] = False
    changed = torch.cat([tokens[:, :-4], 9 * torch.randn(1, 4, 12)], dim=1)
    torch.testing.assert_close(model(changed, visible, masked, key_mask=padding), fewer, atol=1e-5, rtol=1e-5)
    assert (fewer - model(tokens, visible, masked)).abs().max() > 1e-3
    nothing = torch.zeros(1, 64, dtype=torch.bool)
    out = model(tokens.requires_grad_(), visible, masked, key_mask=nothing)
    assert out.isfinite().all()
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_last_block_computes_masked_tokens_alone():
    model = decoder()
    tokens, visible, masked = split((8, 8))
    lengths = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    assert model(tokens, visible, masked).shape == (2, 45, 7)
    assert lengths == [64, 64, 45]


def test_cls_is_left_out_and_order_is_free():
    model = decoder()
    tokens, visible, masked = split((8, 8))
    out = model(tokens, visible, masked)
    assert torch.equal(model(tokens, visible, masked, torch.randn(2, 12)), out)
    order, target = torch.randperm(19), torch.randperm(45)
    shuffled = model(tokens[:, order], visible[:, order], masked[:, target])
    torch.testing.assert_close(shuffled, out[:, target], atol=1e-5, rtol=1e-5)


def test_names_and_shapes_are_the_authors():
    with torch.device("meta"):
        model = WindowedDecoder(768, 256, torch.empty(1, 512, 512), BlockConfig(dim=512, heads=16), 16)
    shapes = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    block = {
        "norm1.weight": (512,),
        "norm1.bias": (512,),
        "attn.tau": (16,),
        "attn.qkv.weight": (1536, 512),
        "attn.qkv.bias": (1536,),
        "attn.proj.weight": (512, 512),
        "attn.proj.bias": (512,),
        "attn.meta_mlp.fc1.weight": (384, 2),
        "attn.meta_mlp.fc1.bias": (384,),
        "attn.meta_mlp.fc2.weight": (16, 384),
        "attn.meta_mlp.fc2.bias": (16,),
        "norm2.weight": (512,),
        "norm2.bias": (512,),
        "mlp.fc1.weight": (2048, 512),
        "mlp.fc1.bias": (2048,),
        "mlp.fc2.weight": (512, 2048),
        "mlp.fc2.bias": (512,),
    }
    assert shapes == {f"blocks.{k}.{name}": shape for k in range(16) for name, shape in block.items()} | {
        "embed.weight": (512, 768),
        "embed.bias": (512,),
        "mask_token": (1, 1, 512),
        "pos_embed": (1, 512, 512),
        "norm.weight": (512,),
        "norm.bias": (512,),
        "pred.weight": (256, 512),
        "pred.bias": (256,),
    }
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"pos_embed"}


def test_number_of_parameters_of_the_whole_model():
    """137.0 million with ViT-B, with the rows of the two fixed tables that the authors keep for the cls token."""
    dim, depth, heads = SIZES["base"]
    encoder = Encoder(EncoderConfig(tokenizers={"audio": AudioTokenizerConfig()}, dim=dim, depth=1, heads=heads))
    with torch.device("meta"):
        decoder = WindowedDecoder(dim, 256, torch.empty(1, 512, 512), BlockConfig(dim=512, heads=16), 16)
    parts = [encoder, decoder, *(encoder.blocks[0] for _ in range(depth - 1))]
    assert sum(p.numel() for part in parts for p in part.parameters()) + 768 + 512 == 136_992_768


def test_start_is_mae():
    torch.manual_seed(0)
    model = WindowedDecoder(12, 7, torch.zeros(1, 64, 64), BlockConfig(dim=64, heads=4), 2, (8, 8))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert 0.8 * bound < module.weight.abs().max() <= bound and (module.bias == 0).all()
    assert all((block.attn.tau == 1).all() for block in model.blocks)
    assert 0.01 < model.mask_token.std() < 0.03


class _Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def test_no_operation_is_done_window_by_window():
    counts = []
    for grid in ((8, 8), (32, 16)):
        model, (tokens, visible, masked) = decoder(grid), split(grid)
        with _Count() as count:
            model(tokens, visible, masked).sum().backward()
        counts.append(count.calls)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("ragged", [False, True])
def test_nothing_waits_for_the_device(ragged):
    """On the meta device there is no value that anyone could wait for."""
    model = decoder(*LAYOUTS["padded rows"]).to("meta").train()
    tokens, visible, masked = (t.to("meta") for t in split((11, 8)))
    key_mask = torch.ones(2, 88, dtype=torch.bool, device="meta") if ragged else None
    out = model(tokens, visible, masked, key_mask=key_mask)
    assert out.shape == (2, 62, 7)
    out.sum().backward()


@pytest.mark.parametrize("ragged", [False, True])
def test_compiles_without_graph_breaks(ragged):
    model = decoder(*LAYOUTS["both axes"])
    tokens, visible, masked = split((8, 12))
    key_mask = torch.rand(2, 96) < 0.8 if ragged else None
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = []
    for call in (model, compiled):
        model.zero_grad()
        out = call(tokens, visible, masked, key_mask=key_mask)
        out.square().mean().backward()
        results.append([out, *(p.grad for p in model.parameters() if p.grad is not None)])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_bfloat16_is_near_float32():
    model = decoder().float()
    for block in model.blocks:
        block.attn.tau.data.fill_(0.5)
    tokens, visible, masked = split((8, 8))
    tokens = tokens.float()
    exact = model(tokens, visible, masked)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(tokens, visible, masked)
        rounded.float().square().mean().backward()
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_dropout_options_act_in_training_alone():
    tokens, visible, masked = split((8, 8))
    for option in ("drop", "attn_drop"):
        model = decoder(**{option: 0.5})
        assert torch.equal(model(tokens, visible, masked), decoder()(tokens, visible, masked))
        model.train()
        for block in model.blocks:
            block.attn.meta_mlp.eval()
        assert not torch.equal(model(tokens, visible, masked), model(tokens, visible, masked))


@pytest.mark.parametrize("new", [(12, 8), (8, 10), (2, 8)])
def test_resized_equals_a_decoder_of_the_new_lattice(new):
    model = decoder()
    model.resize_positions((8, 8), new)
    fresh = decoder(new)
    fresh.load_state_dict(model.state_dict())
    tokens, visible, masked = split(new)
    assert torch.equal(model(tokens, visible, masked), fresh(tokens, visible, masked))


def test_windows_that_cover_an_axis_are_not_shifted():
    assert fit((8, 8), (4, 4), (2, 2)) == ((4, 4), (2, 2))
    assert fit((3, 8), (4, 4), (2, 2)) == ((3, 4), (0, 2))
    assert fit((4, 2), (4, 4), (2, 2)) == ((4, 2), (0, 0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grid": (2, 4, 8)}, r"windows need a lattice of \(rows, columns\), got \(2, 4, 8\)"),
        ({"window": (0, 4)}, r"a window must be \(rows, columns\) of at least 1 each, got \(0, 4\)"),
        ({"window": (4,)}, r"a window must be \(rows, columns\)"),
        ({"shift": (4, 0)}, r"a shift must be at least 0 and below the window \(4, 4\) on both axes, got \(4, 0\)"),
        ({"shift": (-1, 0)}, r"got \(-1, 0\)"),
        ({"shift": (2,)}, r"a shift must be .* got \(2,\)"),
        ({"grid": (8, 4)}, r"a position table of 64 tokens does not belong to a lattice of \(8, 4\)"),
    ],
)
def test_wrong_shapes_are_said_in_a_sentence(options, said):
    with pytest.raises(MmsslError, match=said):
        WindowedDecoder(12, 7, torch.zeros(1, 64, 16), BlockConfig(dim=16, heads=2), 1, **{"grid": (8, 8)} | options)
