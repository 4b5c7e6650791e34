"""VideoMAE against transformers' VideoMAEForPreTraining, and everything around it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import VideoMAEConfig as TheirConfig
from transformers import VideoMAEForPreTraining
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

import mmssl
import mmssl.methods.masked
from mmssl.config import from_dict, to_dict
from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.methods.base import MethodConfig
from mmssl.methods.videomae import VideoMAE, VideoMAEConfig
from mmssl.training.optim import OptimConfig, parameter_groups

TINY = {"size": "custom", "dim": 32, "depth": 2, "heads": 4, "frames": 6, "image_size": (12, 16), "patch_size": 4}
TINY |= {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2, "mask_ratio": 0.75}  # (3, 3, 4): 3 x 3 visible


def tiny(**changes) -> VideoMAE:
    torch.manual_seed(0)
    return VideoMAE(VideoMAEConfig(**{**TINY, **changes}))


def clips(n=3, shape=(6, 3, 12, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"video": torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)}


def transformers_twin(config: VideoMAEConfig) -> VideoMAEForPreTraining:
    """Their model of the same shape, every parameter (positions too) drawn at random so that nothing hides."""
    shape, (width, depth, heads) = config.encoder_config(), config.decoder_shape()
    tokenizer = shape.tokenizers["video"]
    theirs = VideoMAEForPreTraining(
        TheirConfig(
            image_size=tokenizer.image_size,
            patch_size=tokenizer.patch_size[0],
            num_frames=config.frames,
            tubelet_size=config.tubelet,
            hidden_size=shape.dim,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.dim,
            decoder_hidden_size=width,
            decoder_num_hidden_layers=depth,
            decoder_num_attention_heads=heads,
            decoder_intermediate_size=4 * width,
            norm_pix_loss=config.norm_pix,
            layer_norm_eps=1e-6,
            use_mean_pooling=False,
        )
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.05)
        for m in theirs.modules():
            if isinstance(m, torch.nn.LayerNorm):
                m.weight.add_(1)
    theirs.decoder.norm.eps = 1e-6  # theirs leaves torch's 1e-5 in this one norm, the authors' code has 1e-6 in all
    theirs.videomae.embeddings.position_embeddings.normal_(std=0.5)
    theirs.position_embeddings.normal_(std=0.5)
    return theirs


def pairs(theirs: VideoMAEForPreTraining, ours: VideoMAE, take):
    """(ours, theirs in our layout, name) of every parameter, `take(parameter)` of it: values or gradients."""

    def one(module_a, module_b, name):
        for kind in ("weight", "bias"):
            yield take(getattr(module_a, kind)), take(getattr(module_b, kind)), f"{name}.{kind}"

    kernel, proj = theirs.videomae.embeddings.patch_embeddings.projection, ours.tokenizer.proj
    yield take(proj.weight), take(kernel.weight).permute(0, 2, 3, 4, 1).flatten(1), "proj.weight"
    yield take(proj.bias), take(kernel.bias), "proj.bias"
    yield take(ours.decoder.mask_token), take(theirs.mask_token), "mask_token"
    yield take(ours.decoder.embed.weight), take(theirs.encoder_to_decoder.weight), "decoder.embed.weight"
    yield from one(ours.encoder.norm, theirs.videomae.layernorm, "norm")
    yield from one(ours.decoder.norm, theirs.decoder.norm, "decoder.norm")
    yield from one(ours.decoder.pred, theirs.decoder.head, "decoder.pred")
    blocks = [*zip(ours.encoder.blocks, theirs.videomae.encoder.layer, strict=True)]
    blocks += [*zip(ours.decoder.blocks, theirs.decoder.decoder_layers, strict=True)]
    for i, (a, b) in enumerate(blocks):
        inner = b.attention.attention
        three = (inner.query, inner.key, inner.value)
        yield take(a.attn.qkv.weight), torch.cat([take(m.weight) for m in three]), f"{i}.qkv.weight"
        yield take(a.attn.q_bias), take(inner.query.bias), f"{i}.q_bias"
        yield take(a.attn.v_bias), take(inner.value.bias), f"{i}.v_bias"
        yield from one(a.attn.proj, b.attention.output.dense, f"{i}.proj")
        yield from one(a.norm1, b.layernorm_before, f"{i}.norm1")
        yield from one(a.norm2, b.layernorm_after, f"{i}.norm2")
        yield from one(a.mlp.fc1, b.intermediate.dense, f"{i}.fc1")
        yield from one(a.mlp.fc2, b.output.dense, f"{i}.fc2")


def twins(config: VideoMAEConfig) -> tuple[VideoMAE, VideoMAEForPreTraining]:
    theirs, ours = transformers_twin(config), VideoMAE(config)
    with torch.no_grad():
        for a, b, _ in pairs(theirs, ours, lambda p: p):
            a.copy_(b)
        ours.tokenizer.pos_embed.copy_(theirs.videomae.embeddings.position_embeddings)
        ours.decoder.pos_embed.copy_(theirs.position_embeddings)
    return ours, theirs


SHAPES = {
    "tiny": TINY,
    "raw pixels": {**TINY, "norm_pix": False},
    "odd": {**TINY, "frames": 3, "tubelet": 3, "image_size": (20, 10), "patch_size": 5, "mask_ratio": 0.5},
    "random": {**TINY, "mask": "random", "mask_ratio": 0.9},
    "S, fewer tokens": {"size": "small", "frames": 4, "image_size": 64},
}


@pytest.mark.parametrize("name", SHAPES)
def test_parity_with_transformers(name):
    config = VideoMAEConfig(**SHAPES[name])
    ours, theirs = twins(config)
    batch = clips(2, (config.frames, 3, *ours.tokenizer.config.image_size))
    masks = ours.sampler(ours.encoder.grids, sample_keys(0, 0, 0, torch.arange(2)))
    mask, pixels = masks["video"], ours.tokenizer.prepare(batch["video"])

    reference = theirs(pixel_values=pixels, bool_masked_pos=mask)
    tokens = theirs.videomae(pixel_values=pixels, bool_masked_pos=mask).last_hidden_state
    assert (ours.encoder(batch, masks).tokens - tokens).abs().max() < 1e-5

    prediction = ours._predict(batch, masks, None)
    assert prediction.index[0].tolist() == mask[0].nonzero().flatten().tolist()
    assert (prediction.patches - reference.logits).abs().max() < 1e-5

    total, count = ours(batch, masks)["loss"]
    loss = total / count
    assert abs(loss.item() - reference.loss.item()) < 1e-5
    loss.backward()
    reference.loss.backward()
    worst = {n: (a - b).abs().max().item() for a, b, n in pairs(theirs, ours, lambda p: p.grad)}
    assert max(worst.values()) < 1e-5, sorted(worst.items(), key=lambda kv: -kv[1])[:3]
    assert len(worst) == sum(p.requires_grad for p in ours.parameters())


def test_positions_are_those_of_transformers():
    model = tiny()
    for table, width in ((model.tokenizer.pos_embed, 32), (model.decoder.pos_embed, 16)):
        torch.testing.assert_close(table.data, get_sinusoid_encoding_table(36, width), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("size", "millions", "decoder"),
    [
        ("small", 24.0, (192, 4, 3)),
        ("base", 94.2, (384, 4, 6)),
        ("large", 343.0, (512, 12, 8)),
        ("huge", 692.5, (640, 12, 8)),
    ],
)
def test_published_sizes(size, millions, decoder):
    config = VideoMAEConfig(size=size)
    assert config.decoder_shape() == decoder
    with torch.device("meta"):
        model = VideoMAE(config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6 == pytest.approx(millions, abs=0.05)
    assert model.sampler.visible(model.encoder.grids) == {"video": 160} and model.tokenizer.num_tokens == 1568


def test_decoders_of_the_other_sizes():
    assert VideoMAEConfig(size="tiny").decoder_shape() == (96, 4, 3)
    assert VideoMAEConfig(**{**TINY, "decoder_dim": None, "decoder_heads": None}).decoder_shape() == (16, 2, 2)
    with torch.device("meta"):
        assert VideoMAE(VideoMAEConfig(size="tiny")).decoder.embed.weight.shape == (96, 192)


def test_the_start_is_the_authors():
    model = tiny(dim=64)
    fan_in = 2 * 4 * 4 * 3  # torch's Conv3d: uniform in +- 1 / sqrt(fan_in), weight and bias
    for p in (model.tokenizer.proj.weight, model.tokenizer.proj.bias):
        assert 0.9 * fan_in**-0.5 < p.abs().max() <= fan_in**-0.5
    assert model.decoder.mask_token.std() > 0.005 and model.decoder.mask_token.abs().max() <= 0.02
    bound = (6 / (64 + 3 * 64)) ** 0.5  # xavier, q, k and v as one matrix
    assert 0.97 * bound < model.encoder.blocks[0].attn.qkv.weight.abs().max() <= bound
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("bias") and "proj.bias" not in n)
    assert model.decoder.embed.bias is None and model.encoder.blocks[0].attn.qkv.bias is None
    assert model.encoder.cls_token is None and model.decoder.cls_token is None


def test_the_mask_token_does_not_decay():
    groups = parameter_groups(tiny(), OptimConfig(weight_decay=0.05))
    free = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    assert "decoder.mask_token" in free and not any(n.endswith("weight") and "norm" not in n for n in free)
    assert not any("pos_embed" in name for group in groups for name in group["names"])  # fixed


def test_sampler_and_explicit_masks_agree_and_rows_may_differ():
    model, batch = tiny(), clips()
    keys = sample_keys(3, 1, 0, torch.arange(3))
    masks = model.sampler(model.encoder.grids, keys)
    a, b = model(batch, keys=keys)["loss"], model(batch, masks)["loss"]
    torch.testing.assert_close(a, b)
    assert a[1].item() == 3 * 27

    ragged = torch.arange(36)[None] >= torch.tensor([[5], [11], [35]])
    total, count = model(batch, {"video": ragged})["loss"]
    alone = [model({"video": batch["video"][i : i + 1]}, {"video": ragged[i : i + 1]})["loss"] for i in range(3)]
    assert count.item() == sum(c.item() for _, c in alone) == 31 + 25 + 1
    assert total.item() == pytest.approx(sum(t.item() for t, _ in alone), rel=1e-5)


def test_keys_decide_the_mask_bit_by_bit():
    model, batch = tiny(), clips()
    first = model(batch)["loss"][0]
    assert torch.equal(first, model(batch)["loss"][0])
    indexed = {**batch, "index": torch.tensor([7, 8, 9])}
    assert not torch.equal(first, model(indexed)["loss"][0])


@settings(max_examples=12, deadline=None)
@given(*(st.integers(1, 3) for _ in range(4)), st.integers(1, 5), st.sampled_from(["tube", "random"]), st.booleans())
def test_any_lattice_learns(times, rows, columns, tubelet, patch, mask, norm_pix):
    if rows * columns < 2 or patch * tubelet == 1:  # a patch of one value has no variance
        return
    size, frames = (rows * patch, columns * patch), times * tubelet
    model = tiny(
        frames=frames, tubelet=tubelet, image_size=size, patch_size=patch, mask=mask, mask_ratio=0.5, norm_pix=norm_pix
    )
    total, count = model(clips(2, (frames, 3, *size)))["loss"]
    (total / count).backward()
    places = rows * columns
    visible = times * (places - places // 2) if mask == "tube" else times * places // 2
    assert math.isfinite(total.item()) and count.item() == 2 * (times * places - visible)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


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
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    expected[0].backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = compiled(batch, keys=keys)["loss"]
    torch.testing.assert_close(total, expected[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("patch_stats", ["visible", "true"])
def test_reconstruction_contract(norm_pix, patch_stats):
    model, batch = tiny(norm_pix=norm_pix), clips()
    out = model.reconstruct(batch, patch_stats=patch_stats)
    assert out["mask"].shape == (3, 36) and out["mask"].sum(1).tolist() == [27] * 3
    for name in ("prediction", "masked", "target"):
        assert out[name].shape == (3, 6, 3, 12, 16) and out[name].min() >= 0 and out[name].max() <= 1
    torch.testing.assert_close(out["target"], batch["video"] / 255, atol=1e-6, rtol=0)
    shown = model.tokenizer.unpatchify((~out["mask"])[..., None].expand(-1, -1, 96))
    assert torch.equal(out["prediction"][shown], out["target"][shown])
    assert torch.equal(out["masked"][shown], out["target"][shown]) and (out["masked"][~shown] == 0.5).all()
    assert not torch.allclose(out["prediction"][~shown], out["target"][~shown])
    total, count = model(batch)["loss"]
    error = (out["prediction_patches"] - out["target_patches"]).square().mean(-1)[out["mask"]]
    assert error.mean().item() == pytest.approx((total / count).item(), rel=1e-4)


def test_a_perfect_norm_pix_prediction_gives_back_the_clip(monkeypatch):
    """With the true statistics of every patch and channel, the target undone is the input."""
    model, batch = tiny(), clips()
    true = model.reconstruct(batch)["target_patches"]
    predict = model._predict

    def perfect(*args):
        found = predict(*args)
        return found._replace(patches=true.gather(1, found.index[..., None].expand_as(found.patches)))

    monkeypatch.setattr(model, "_predict", perfect)
    out = model.reconstruct(batch, patch_stats="true")
    torch.testing.assert_close(out["prediction"], out["target"], atol=1e-5, rtol=0)
    honest = model.reconstruct(batch, patch_stats="visible")["prediction"]
    assert (honest - out["target"]).abs().max() > 0.01


def test_reconstruction_does_not_leak_unless_asked():
    model, batch = tiny(), clips()
    masks = model.sampler(model.encoder.grids, torch.arange(3))
    hidden = model.tokenizer.unpatchify(masks["video"][..., None].expand(-1, -1, 96))
    other = {"video": torch.where(hidden, batch["video"] // 3, batch["video"])}
    assert torch.equal(*(model.reconstruct(b, masks)["prediction"] for b in (batch, other)))
    leaking = [model.reconstruct(b, masks, patch_stats="true")["prediction"] for b in (batch, other)]
    assert not torch.equal(*leaking)


def test_a_camera_can_be_the_modality_and_the_encoder_stands_alone(tmp_path):
    model = tiny(modality="video/wrist")
    batch = {"video/wrist": clips()["video"]}
    assert model(batch)["loss"][0].isfinite()
    with pytest.raises(MmsslError, match="lacks the modality 'video/wrist'"):
        model(clips())
    model.encoder.save_pretrained(tmp_path)
    features = Encoder.from_pretrained(tmp_path)(batch)
    assert features.map().shape == (3, 3, 3, 4, 32) and torch.equal(features.tokens, model.encoder(batch).tokens)


def test_create_method_and_config_round_trip():
    model = mmssl.create_method("videomae", **TINY)
    assert isinstance(model, VideoMAE) and "videomae" in mmssl.list_methods()
    assert from_dict(MethodConfig, to_dict(model.config)) == model.config
    with pytest.raises(MmsslError, match=r"unknown key .*'tubelets': did you mean 'tubelet'"):
        mmssl.create_method("videomae", tubelets=2)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"tubelet": 4}, "tubelet 4 does not divide the 6 frames.* is 8, .* divides 6 is 3"),
        ({"frames": 7}, r"tubelet 2 does not divide the 7 frames.* is 8, .* divides 7 is 1"),
        ({"frames": 0}, "must be 1 or more"),
        ({"image_size": 30}, "not divisible by patch_size"),
        ({"mask_ratio": 1.0}, "between 0 and 1"),
        ({"mask": "block"}, "unknown mask 'block'.*random, tube"),
        ({"modality": "image"}, "'video' or 'video/<camera>'"),
        ({"size": "giant"}, "unknown size 'giant'"),
        ({"heads": None}, "heads not given"),
        ({"decoder_heads": 3}, "multiple of heads"),
        ({"decoder_depth": 0}, "decoder_depth"),
    ],
)
def test_impossible_settings_are_named(bad, words):
    with pytest.raises(MmsslError, match=words):
        VideoMAEConfig(**{**TINY, **bad})


def test_a_mask_that_leaves_nothing_is_refused():
    with pytest.raises(MmsslError, match="leaves 0 of 36 patches visible"):
        tiny(mask="random", mask_ratio=0.99)
    with pytest.raises(MmsslError, match="leaves 36 of 36 patches visible"):
        tiny(mask_ratio=0.05)


def test_wrong_batches_and_masks_are_named():
    model = tiny()
    with pytest.raises(MmsslError, match=r"clips of 16 frames, and this model reads 6; sample 6 .*frames=16"):
        model(clips(2, (16, 3, 12, 16)))
    with pytest.raises(MmsslError, match=r"shape \(batch, 6, 3, 12, 16\)"):
        model(clips(2, (6, 3, 16, 12)))
    with pytest.raises(MmsslError, match=r"shape \(batch, 6, 3, 12, 16\)"):
        model(clips(2, (3, 12, 16)))
    with pytest.raises(MmsslError, match="masks must hold 'video'"):
        model(clips(), {})
    with pytest.raises(MmsslError, match=r"\(3, 36\)"):
        model(clips(), {"video": torch.ones(3, 35, dtype=torch.bool)})
    with pytest.raises(MmsslError, match="unknown patch_stats"):
        model.reconstruct(clips(), patch_stats="ture")
    model.encoder.resize(frames=4)
    with pytest.raises(MmsslError, match="resized"):
        model(clips(2, (4, 3, 12, 16)))
