"""ST-MAE against a slow version written from the authors' description: no package has it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmssl
from mmssl.config import from_dict, to_dict
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.methods.base import MethodConfig
from mmssl.methods.stmae import STMAE, STMAEConfig, target_frames
from mmssl.training.optim import OptimConfig, parameter_groups

TINY = {"size": "custom", "dim": 32, "depth": 2, "heads": 4, "frames": 6, "image_size": (8, 12), "patch_size": 4}
TINY |= {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2, "mask_ratio": 0.7}  # (3, 2, 3): 5 of 18 visible


def tiny(**changes) -> STMAE:
    torch.manual_seed(0)
    return STMAE(STMAEConfig(**{**TINY, **changes}))


def clips(n=3, shape=(6, 3, 8, 12), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"video": torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)}


class SlowBlock(nn.Module):
    """Separate q, k and v, one head at a time."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        y, d = self.norm1(x), x.shape[-1] // self.heads
        q, k, v = self.q(y), self.k(y), self.v(y)
        parts = []
        for h in range(self.heads):
            one = slice(h * d, (h + 1) * d)
            parts.append((q[..., one] @ k[..., one].mT / math.sqrt(d)).softmax(-1) @ v[..., one])
        x = x + self.proj(torch.cat(parts, -1))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class SlowSTMAE(nn.Module):
    """The whole model, one clip at a time, tokens in raster order, with the authors' parameters (class positions)."""

    def __init__(self, c: STMAEConfig):
        super().__init__()
        self.c = c
        (h, w), p, u, width = c.image_size, c.patch_size, c.tubelet, c.decoder_dim
        self.t, self.hw = c.frames // u, h // p * (w // p)
        self.conv = nn.Conv3d(3, c.dim, (u, p, p), (u, p, p))
        self.cls, self.pos_cls = nn.Parameter(torch.zeros(c.dim)), nn.Parameter(torch.zeros(c.dim))
        self.spatial = nn.Parameter(torch.zeros(self.hw, c.dim))
        self.temporal = nn.Parameter(torch.zeros(self.t, c.dim))
        self.blocks = nn.ModuleList(SlowBlock(c.dim, c.heads) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim, eps=1e-6)
        self.embed, self.mask_token = nn.Linear(c.dim, width), nn.Parameter(torch.zeros(width))
        self.d_cls, self.d_pos_cls = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.d_spatial = nn.Parameter(torch.zeros(self.hw, width))
        self.d_temporal = nn.Parameter(torch.zeros(self.t, width))
        self.d_blocks = nn.ModuleList(SlowBlock(width, c.decoder_heads) for _ in range(c.decoder_depth))
        self.d_norm, self.pred = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, p * p * 3)

    def one(self, frames, mask):
        """frames (C, T, H, W) normalised, mask (N,) -> predictions (N, p * p * 3) of every token, encoder tokens."""
        patches = self.conv(frames[None])[0].flatten(1).T  # (N, D)
        places = [(n // self.hw, n % self.hw) for n in range(len(mask))]
        kept = [n for n in range(len(mask)) if not mask[n]]
        x = [self.cls + self.pos_cls]
        x += [patches[n] + self.temporal[places[n][0]] + self.spatial[places[n][1]] for n in kept]
        x = torch.stack(x)
        for block in self.blocks:
            x = block(x)
        latent = self.norm(x)[1:]  # the encoder's cls token stays behind
        y = [self.d_cls + self.d_pos_cls]
        for n, (time, place) in enumerate(places):
            token = self.mask_token if mask[n] else self.embed(latent[kept.index(n)])
            y.append(token + self.d_temporal[time] + self.d_spatial[place])
        y = torch.stack(y)
        for block in self.d_blocks:
            y = block(y)
        return self.pred(self.d_norm(y))[1:], latent

    def targets(self, frames):
        """frames (C, T, H, W) normalised -> (N, p * p * 3), one frame's patch for each token."""
        (h, w), p = self.c.image_size, self.c.patch_size
        chosen = [math.floor(i * (self.c.frames - 1) / (self.t - 1)) for i in range(self.t)]
        found = []
        for f in chosen:
            for r in range(h // p):
                for col in range(w // p):
                    patch = frames[:, f, r * p : r * p + p, col * p : col * p + p].permute(1, 2, 0).reshape(-1)
                    if self.c.norm_pix:
                        patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
                    found.append(patch)
        return torch.stack(found)

    def forward(self, video, masks):
        """video (B, T, C, H, W) normalised -> loss, predictions (B, N, P), encoder tokens of the visible."""
        results = [self.one(clip.transpose(0, 1), mask) for clip, mask in zip(video, masks, strict=True)]
        total, count = 0.0, 0
        for (prediction, _), clip, mask in zip(results, video, masks, strict=True):
            error = (prediction - self.targets(clip.transpose(0, 1))).square().mean(-1)
            total, count = total + error[mask].sum(), count + int(mask.sum())
        return total / count, torch.stack([r for r, _ in results]), [latent for _, latent in results]


def pairs(slow: SlowSTMAE, ours: STMAE, take):
    """(ours, theirs in our layout, name) of every parameter of ours, `take(parameter)` of it: values or gradients."""
    tok, decoder = ours.tokenizer, ours.decoder

    def one(module_a, module_b, name):
        for kind in ("weight", "bias"):
            yield take(getattr(module_a, kind)), take(getattr(module_b, kind)), f"{name}.{kind}"

    yield take(tok.proj.weight), take(slow.conv.weight).permute(0, 2, 3, 4, 1).flatten(1), "proj.weight"
    yield take(tok.proj.bias), take(slow.conv.bias), "proj.bias"
    for a, b, name in (
        (tok.pos_embed_spatial, slow.spatial, "spatial"),
        (tok.pos_embed_temporal, slow.temporal, "temporal"),
        (decoder.mask_token, slow.mask_token, "mask_token"),
        (decoder.pos_embed_spatial, slow.d_spatial, "decoder.spatial"),
        (decoder.pos_embed_temporal, slow.d_temporal, "decoder.temporal"),
    ):
        yield take(a).reshape(take(b).shape), take(b), name
    yield from one(ours.encoder.norm, slow.norm, "norm")
    yield from one(decoder.embed, slow.embed, "decoder.embed")
    yield from one(decoder.norm, slow.d_norm, "decoder.norm")
    yield from one(decoder.pred, slow.pred, "decoder.pred")
    blocks = [*zip(ours.encoder.blocks, slow.blocks, strict=True), *zip(decoder.blocks, slow.d_blocks, strict=True)]
    for i, (a, b) in enumerate(blocks):
        for kind in ("weight", "bias"):
            three = torch.cat([take(getattr(m, kind)) for m in (b.q, b.k, b.v)])
            yield take(getattr(a.attn.qkv, kind)), three, f"{i}.qkv.{kind}"
        for x, y, name in (
            (a.attn.proj, b.proj, "proj"),
            (a.norm1, b.norm1, "norm1"),
            (a.norm2, b.norm2, "norm2"),
            (a.mlp.fc1, b.fc1, "fc1"),
            (a.mlp.fc2, b.fc2, "fc2"),
        ):
            yield from one(x, y, f"{i}.{name}")


def twins(config: STMAEConfig) -> tuple[STMAE, SlowSTMAE]:
    torch.manual_seed(1)
    ours, slow = STMAE(config), SlowSTMAE(config)
    with torch.no_grad():
        for p in slow.parameters():
            p.normal_(std=0.1)
        for m in slow.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.add_(1)
        for a, b, _ in pairs(slow, ours, lambda p: p.data):
            a.copy_(b)
        ours.encoder.cls_token.copy_((slow.cls + slow.pos_cls)[None, None])
        ours.decoder.cls_token.copy_((slow.d_cls + slow.d_pos_cls)[None, None])
    return ours, slow


@pytest.mark.parametrize(
    "changes", [{}, {"norm_pix": False}, {"tubelet": 3, "mask": "tube", "mask_ratio": 0.5}, {"frames": 4, "tubelet": 1}]
)
def test_parity_with_the_slow_version(changes):
    config = STMAEConfig(**{**TINY, **changes})
    ours, slow = twins(config)
    batch = clips(2, (config.frames, 3, 8, 12))
    masks = ours.sampler(ours.encoder.grids, sample_keys(0, 0, 0, torch.arange(2)))
    reference, predictions, latents = slow(ours.tokenizer.prepare(batch["video"]), masks["video"])

    torch.testing.assert_close(ours.encoder(batch, masks).tokens, torch.stack(latents), atol=1e-5, rtol=1e-5)
    found = ours._predict(batch, masks, None)
    wanted = predictions.gather(1, found.index[..., None].expand_as(found.patches))
    torch.testing.assert_close(found.patches, wanted, atol=1e-5, rtol=1e-5)

    total, count = ours(batch, masks)["loss"]
    assert count.item() == masks["video"].sum().item()
    assert abs((total / count).item() - reference.item()) < 1e-5
    (total / count).backward()
    reference.backward()
    grads = {n: (a, b) for a, b, n in pairs(slow, ours, lambda p: p.grad)}
    grads["cls"] = (ours.encoder.cls_token.grad[0, 0], slow.cls.grad)
    grads["decoder.cls"] = (ours.decoder.cls_token.grad[0, 0], slow.d_cls.grad)
    assert len(grads) == sum(p.requires_grad for p in ours.parameters())
    for name, (a, b) in grads.items():
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_the_predicted_frames_are_the_authors():
    assert target_frames(16, 8).tolist() == [0, 2, 4, 6, 8, 10, 12, 15]
    for frames in range(2, 65):
        for count in (n for n in range(2, frames + 1) if frames % n == 0):
            theirs = torch.linspace(0, frames - 1, count, dtype=torch.float64).long()
            assert (target_frames(frames, count) - theirs).abs().max() <= 0, (frames, count)
    assert target_frames(2, 1).tolist() == [0]


def test_published_shape():
    with torch.device("meta"):
        model = STMAE(STMAEConfig())
    assert (model.encoder.embed_dim, len(model.encoder.blocks)) == (1024, 24)
    assert model.decoder.pred.weight.shape == (768, 512) and len(model.decoder.blocks) == 4
    assert model.encoder.grids == {"video": (8, 14, 14)}
    assert model.sampler.visible(model.encoder.grids) == {"video": 156}
    assert model.encoder.blocks[0].attn.qkv.bias is not None and model.decoder.embed.bias is not None


def test_the_start_is_the_authors():
    model = tiny(dim=64, heads=4)
    bound = (6 / (64 + 64)) ** 0.5  # xavier of q, k and v each by itself
    for part in model.encoder.blocks[0].attn.qkv.weight.chunk(3):
        assert 0.97 * bound < part.abs().max() <= bound
    patch = (6 / (64 + 96)) ** 0.5
    assert 0.97 * patch < model.tokenizer.proj.weight.abs().max() <= patch
    for table in (model.tokenizer.pos_embed_spatial, model.tokenizer.pos_embed_temporal, model.decoder.cls_token):
        assert table.requires_grad and table.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.encoder.cls_token.std().item() == pytest.approx(0.02 * 2**0.5, rel=0.3)  # the token plus its position
    assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.5)


def test_only_biases_and_vectors_do_not_decay():
    model = tiny()
    assert model.no_decay() == set()
    groups = parameter_groups(model, OptimConfig(weight_decay=0.05))
    decayed = {name for group in groups if group["weight_decay"] > 0 for name in group["names"]}
    assert {"encoder.cls_token", "decoder.mask_token", "encoder.tokenizers.video.pos_embed_spatial"} <= decayed
    assert decayed == {n for n, p in model.named_parameters() if p.ndim > 1}


def test_sampler_and_explicit_masks_agree_and_rows_may_differ():
    model, batch = tiny(), clips()
    keys = sample_keys(3, 1, 0, torch.arange(3))
    masks = model.sampler(model.encoder.grids, keys)
    a, b = model(batch, keys=keys)["loss"], model(batch, masks)["loss"]
    torch.testing.assert_close(a, b)
    assert a[1].item() == 3 * 13

    ragged = torch.arange(18)[None] >= torch.tensor([[5], [11], [17]])
    total, count = model(batch, {"video": ragged})["loss"]
    alone = [model({"video": batch["video"][i : i + 1]}, {"video": ragged[i : i + 1]})["loss"] for i in range(3)]
    assert count.item() == sum(c.item() for _, c in alone) == 13 + 7 + 1
    assert total.item() == pytest.approx(sum(t.item() for t, _ in alone), rel=1e-5)


def test_keys_decide_the_mask_bit_by_bit():
    model, batch = tiny(), clips()
    first = model(batch)["loss"][0]
    assert torch.equal(first, model(batch)["loss"][0])
    assert not torch.equal(first, model({**batch, "index": torch.tensor([7, 8, 9])})["loss"][0])


def test_it_learns_one_batch():
    model, batch = tiny(mask_ratio=0.5), clips(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        total, count = model(batch)["loss"]
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / count).item())
    assert losses[-1] < 0.8 * losses[0]


def test_compiles_without_graph_breaks():
    model, batch = tiny(depth=1), clips()
    keys = sample_keys(0, 0, 0, torch.arange(3))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = model(batch, keys=keys)["loss"]
    result = compiled(batch, keys=keys)["loss"]
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-5)
    result[0].backward()


@pytest.mark.parametrize("norm_pix", [False, True])
def test_reconstruction_shows_the_predicted_frames(norm_pix):
    model, batch = tiny(norm_pix=norm_pix), clips()
    out = model.reconstruct(batch)
    for name in ("prediction", "masked", "target"):
        assert out[name].shape == (3, 3, 3, 8, 12) and out[name].min() >= 0 and out[name].max() <= 1
    torch.testing.assert_close(out["target"], batch["video"][:, [0, 2, 5]] / 255, atol=1e-5, rtol=0)
    shown = model.tokenizer.unpatchify((~out["mask"])[..., None].expand(-1, -1, 48))
    assert torch.equal(out["prediction"][shown], out["target"][shown])
    assert torch.equal(out["masked"][shown], out["target"][shown]) and (out["masked"][~shown] == 0.5).all()
    total, count = model(batch)["loss"]
    error = (out["prediction_patches"] - out["target_patches"]).square().mean(-1)[out["mask"]]
    assert error.mean().item() == pytest.approx((total / count).item(), rel=1e-4)


def test_reconstruction_does_not_leak_unless_asked():
    model, batch = tiny(), clips()
    masks = model.sampler(model.encoder.grids, torch.arange(3))
    frame = model.tokenizer.unpatchify(masks["video"][..., None].expand(-1, -1, 96))
    other = {"video": torch.where(frame, batch["video"] // 3, batch["video"])}
    honest = [model.reconstruct(b, masks)["prediction"] for b in (batch, other)]
    target = model.reconstruct(batch, masks)["masked"]
    hidden = target == 0.5
    assert torch.equal(honest[0][hidden], honest[1][hidden])
    leaking = [model.reconstruct(b, masks, patch_stats="true")["prediction"] for b in (batch, other)]
    assert not torch.equal(*leaking)


def test_create_method_and_config_round_trip():
    model = mmssl.create_method("stmae", **TINY)
    assert isinstance(model, STMAE) and "stmae" in mmssl.list_methods()
    assert from_dict(MethodConfig, to_dict(model.config)) == model.config
    assert mmssl.create_method("stmae", **TINY, modality="video/wrist").encoder.modalities == ("video/wrist",)
    assert "shown" not in "".join(model.state_dict())


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"tubelet": 4}, "tubelet 4 does not divide the 6 frames"),
        ({"mask": "grid"}, "unknown mask 'grid'.*random, tube"),
        ({"modality": "image"}, "'video' or 'video/<camera>'"),
        ({"decoder_heads": 3}, "multiple of heads"),
        ({"decoder_depth": 0}, "decoder_depth"),
    ],
)
def test_impossible_settings_are_named(bad, words):
    with pytest.raises(MmsslError, match=words):
        STMAEConfig(**{**TINY, **bad})


def test_wrong_batches_are_named():
    with pytest.raises(MmsslError, match=r"clips of 16 frames, and this model reads 6"):
        tiny()(clips(2, (16, 3, 8, 12)))
    with pytest.raises(MmsslError, match="leaves 0 of 18 patches visible"):
        tiny(mask_ratio=0.99)
