"""MAE against transformers' ViTMAEForPreTraining, and everything around it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import mmssl
from mmssl.config import from_dict, to_dict
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.methods.base import MethodConfig
from mmssl.methods.mae import MAE, MAEConfig
from mmssl.methods.masked import fill_in

TINY = {"size": "custom", "dim": 32, "depth": 2, "heads": 4, "image_size": (16, 24), "patch_size": 4}
TINY |= {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2}


def tiny(**changes) -> MAE:
    torch.manual_seed(0)
    return MAE(MAEConfig(**{**TINY, **changes}))


def images(n=3, size=(16, 24), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=generator)}


def transformers_twin(config: MAEConfig) -> ViTMAEForPreTraining:
    """Their model of the same shape, every parameter (positions too) drawn at random so that nothing hides."""
    shape = config.encoder_config()
    size, patch = shape.tokenizers["image"].image_size, shape.tokenizers["image"].patch_size
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=shape.dim,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.dim,
            decoder_hidden_size=config.decoder_dim,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_heads,
            decoder_intermediate_size=4 * config.decoder_dim,
            image_size=size[0],
            patch_size=patch[0],
            mask_ratio=config.mask_ratio,
            norm_pix_loss=config.norm_pix,
            layer_norm_eps=1e-6,
        )
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.05)
        for m in theirs.modules():
            if isinstance(m, torch.nn.LayerNorm):
                m.weight.add_(1)
        theirs.vit.embeddings.position_embeddings[:, 0] = 0
        theirs.decoder.decoder_pos_embed[:, 0] = 0
    return theirs


def pairs(theirs: ViTMAEForPreTraining, ours: MAE, take):
    """(ours, theirs in our layout, name) of every parameter, `take(parameter)` of it: values or gradients."""
    vit, decoder = theirs.vit, theirs.decoder
    tok = ours.encoder.tokenizers["image"]

    def one(module_a, module_b, name):
        for kind in ("weight", "bias"):
            yield take(getattr(module_a, kind)), take(getattr(module_b, kind)), f"{name}.{kind}"

    kernel = vit.embeddings.patch_embeddings.projection
    yield take(tok.proj.weight), take(kernel.weight).permute(0, 2, 3, 1).flatten(1), "proj.weight"
    yield take(tok.proj.bias), take(kernel.bias), "proj.bias"
    yield take(ours.encoder.cls_token), take(vit.embeddings.cls_token), "cls_token"
    yield take(ours.decoder.mask_token), take(decoder.mask_token), "mask_token"
    yield from one(ours.encoder.norm, vit.layernorm, "norm")
    yield from one(ours.decoder.embed, decoder.decoder_embed, "decoder.embed")
    yield from one(ours.decoder.norm, decoder.decoder_norm, "decoder.norm")
    yield from one(ours.decoder.pred, decoder.decoder_pred, "decoder.pred")
    blocks = [*zip(ours.encoder.blocks, vit.layers, strict=True)]
    blocks += [*zip(ours.decoder.blocks, decoder.decoder_layers, strict=True)]
    for i, (a, b) in enumerate(blocks):
        three = (b.attention.q_proj, b.attention.k_proj, b.attention.v_proj)
        yield take(a.attn.qkv.weight), torch.cat([take(m.weight) for m in three]), f"{i}.qkv.weight"
        yield take(a.attn.qkv.bias), torch.cat([take(m.bias) for m in three]), f"{i}.qkv.bias"
        yield from one(a.attn.proj, b.attention.o_proj, f"{i}.proj")
        yield from one(a.norm1, b.layernorm_before, f"{i}.norm1")
        yield from one(a.norm2, b.layernorm_after, f"{i}.norm2")
        yield from one(a.mlp.fc1, b.mlp.fc1, f"{i}.fc1")
        yield from one(a.mlp.fc2, b.mlp.fc2, f"{i}.fc2")


def twins(config: MAEConfig) -> tuple[MAE, ViTMAEForPreTraining]:
    theirs, ours = transformers_twin(config), MAE(config)
    with torch.no_grad():
        for a, b, _ in pairs(theirs, ours, lambda p: p):
            a.copy_(b)
        ours.tokenizer.pos_embed.copy_(theirs.vit.embeddings.position_embeddings[:, 1:])
        ours.decoder.pos_embed.copy_(theirs.decoder.decoder_pos_embed[:, 1:])
    return ours, theirs


SHAPES = {
    "tiny": {**TINY, "image_size": 32, "patch_size": 8},
    "odd": {**TINY, "image_size": 35, "patch_size": 5, "mask_ratio": 0.6, "norm_pix": False},
    "B/16": {"size": "base", "norm_pix": False},
}


@pytest.mark.parametrize("name", SHAPES)
def test_parity_with_transformers(name):
    config = MAEConfig(**SHAPES[name])
    ours, theirs = twins(config)
    size = config.encoder_config().tokenizers["image"].image_size
    batch = {"image": torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2))}
    masks = ours.sampler(ours.encoder.grids, sample_keys(0, 0, 0, torch.arange(2)))
    noise = masks["image"].float() + torch.arange(ours.tokenizer.num_tokens) * 1e-4  # raster order, visible first
    pixels = ours.tokenizer.prepare(batch["image"])

    reference = theirs(pixel_values=pixels, noise=noise)
    tokens = theirs.vit(pixel_values=pixels, noise=noise).last_hidden_state
    features = ours.encoder(batch, masks)
    assert (features.tokens - tokens[:, 1:]).abs().max() < 1e-5
    assert (features.cls - tokens[:, 0]).abs().max() < 1e-5

    assert torch.equal(reference.mask.bool(), masks["image"])
    prediction = ours._predict(batch, masks, None)
    logits = reference.logits.gather(1, prediction.index[..., None].expand_as(prediction.patches))
    assert (prediction.patches - logits).abs().max() < 1e-5

    total, count = ours(batch, masks)["loss"]
    loss = total / count
    assert abs(loss.item() - reference.loss.item()) < 1e-5
    loss.backward()
    reference.loss.backward()
    worst = {n: (a - b).abs().max().item() for a, b, n in pairs(theirs, ours, lambda p: p.grad)}
    assert max(worst.values()) < 1e-5, sorted(worst.items(), key=lambda kv: -kv[1])[:3]
    assert len(worst) == sum(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.5), ("small", 21.6), ("base", 85.8), ("large", 303.3)])
def test_published_sizes(size, millions):
    with torch.device("meta"):
        model = MAE(MAEConfig(size=size))
    trained = sum(p.numel() for p in model.encoder.parameters() if p.requires_grad)
    assert trained / 1e6 == pytest.approx(millions, rel=0.01)


def test_base_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = MAE(MAEConfig())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(111.9, abs=0.1)


def test_sampler_and_explicit_masks_agree_and_rows_may_differ():
    model, batch = tiny(), images()
    keys = sample_keys(3, 1, 0, torch.arange(3))
    masks = model.sampler(model.encoder.grids, keys)
    a, b = model(batch, keys=keys)["loss"], model(batch, masks)["loss"]
    torch.testing.assert_close(a, b)
    assert a[1].item() == 3 * 18

    ragged = torch.arange(24)[None] >= torch.tensor([[5], [11], [23]])
    total, count = model(batch, {"image": ragged})["loss"]
    alone = [model({"image": batch["image"][i : i + 1]}, {"image": ragged[i : i + 1]})["loss"] for i in range(3)]
    assert count.item() == sum(c.item() for _, c in alone) == 19 + 13 + 1
    assert total.item() == pytest.approx(sum(t.item() for t, _ in alone), rel=1e-5)


def test_keys_decide_the_mask():
    model, batch = tiny(), images()
    first = model(batch)["loss"][0]
    assert torch.equal(first, model(batch)["loss"][0])
    indexed = {**batch, "index": torch.tensor([7, 8, 9])}
    assert not torch.equal(first, model(indexed)["loss"][0])


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.sampled_from(["random", "block", "grid"]), st.booleans()
)
def test_any_size_learns(rows, columns, patch, mask, norm_pix):
    if rows * columns < 2:
        return
    size = (rows * patch, columns * patch)
    ratio = 0.5 if int(rows * columns * 0.5) else 0.4
    model = tiny(image_size=size, patch_size=patch, mask=mask, mask_ratio=ratio, norm_pix=norm_pix)
    total, count = model(images(2, size))["loss"]
    (total / count).backward()
    assert math.isfinite(total.item()) and count.item() == 2 * (rows * columns - int(rows * columns * (1 - ratio)))
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_it_learns_one_batch():
    model, batch = tiny(mask_ratio=0.5), images(4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        total, count = model(batch)["loss"]
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / count).item())
    assert losses[-1] < 0.7 * losses[0]


def test_gradient_of_the_loss_does_not_see_masked_pixels_through_the_encoder():
    model, batch = tiny(), images()
    masks = model.sampler(model.encoder.grids, torch.arange(3))
    hidden = model.tokenizer.unpatchify(masks["image"][..., None].expand(-1, -1, 48)).to(torch.uint8) * 255
    other = {"image": batch["image"] ^ hidden}
    assert torch.equal(model._predict(batch, masks, None).patches, model._predict(other, masks, None).patches)


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compiles_without_graph_breaks(backend):
    model, batch = tiny(), images()
    keys = sample_keys(0, 0, 0, torch.arange(3))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    expected = model(batch, keys=keys)["loss"]
    result = compiled(batch, keys=keys)["loss"]
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-5)
    result[0].backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(batch, keys=keys)["loss"][0].isfinite()


def test_bfloat16_autocast_is_close():
    model, batch = tiny(), images()
    exact = model(batch)["loss"][0]
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = model(batch)["loss"]
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("patch_stats", ["visible", "true"])
def test_reconstruction_contract(norm_pix, patch_stats):
    model, batch = tiny(norm_pix=norm_pix), images()
    out = model.reconstruct(batch, patch_stats=patch_stats)
    assert out["mask"].shape == (3, 24) and out["mask"].sum(1).tolist() == [18] * 3
    for name in ("prediction", "masked", "target"):
        assert out[name].shape == (3, 3, 16, 24) and out[name].min() >= 0 and out[name].max() <= 1
    torch.testing.assert_close(out["target"], batch["image"] / 255, atol=1e-5, rtol=0)
    shown = model.tokenizer.unpatchify((~out["mask"])[..., None].expand(-1, -1, 48))
    torch.testing.assert_close(out["prediction"][shown], out["target"][shown])
    assert torch.equal(out["masked"][shown], out["target"][shown]) and (out["masked"][~shown] == 0.5).all()
    assert not torch.allclose(out["prediction"][~shown], out["target"][~shown])
    total, count = model(batch)["loss"]
    error = (out["prediction_patches"] - out["target_patches"]).square().mean(-1)[out["mask"]]
    assert error.mean().item() == pytest.approx((total / count).item(), rel=1e-4)


def test_reconstruction_does_not_leak_unless_asked():
    model, batch = tiny(), images()
    masks = model.sampler(model.encoder.grids, torch.arange(3))
    hidden = model.tokenizer.unpatchify(masks["image"][..., None].expand(-1, -1, 48))
    other = {"image": torch.where(hidden, batch["image"] // 3, batch["image"])}
    honest = [model.reconstruct(b, masks)["prediction"] for b in (batch, other)]
    assert torch.equal(*honest)
    leaking = [model.reconstruct(b, masks, patch_stats="true")["prediction"] for b in (batch, other)]
    assert not torch.equal(*leaking)
    with pytest.raises(MmsslError, match="unknown patch_stats"):
        model.reconstruct(batch, patch_stats="ture")


def test_fill_in_keeps_the_visible_and_stays_between_them():
    values, mask = torch.rand(2, 12, 2), torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 0] = False
    filled = fill_in(values, mask, (3, 4))
    assert torch.equal(filled[~mask], values[~mask])
    for b in range(2):
        seen = values[b][~mask[b]]
        assert (filled[b] >= seen.amin(0) - 1e-6).all() and (filled[b] <= seen.amax(0) + 1e-6).all()
    torch.testing.assert_close(fill_in(torch.ones(1, 12, 1), mask[:1], (3, 4)), torch.ones(1, 12, 1))


def test_a_camera_can_be_the_modality():
    model = tiny(modality="image/wrist")
    assert model({"image/wrist": images()["image"]})["loss"][0].isfinite()
    with pytest.raises(MmsslError, match="lacks the modality 'image/wrist'"):
        model(images())


def test_create_method_and_config_round_trip():
    model = mmssl.create_method("mae", **TINY)
    assert isinstance(model, MAE) and "mae" in mmssl.list_methods()
    assert from_dict(MethodConfig, to_dict(model.config)) == model.config
    assert mmssl.create_method(model.config).config == model.config
    assert model.no_decay() == set()
    with pytest.raises(MmsslError, match="unknown method 'mea': did you mean 'mae'"):
        mmssl.create_method("mea")
    with pytest.raises(MmsslError, match=r"unknown key .*'mask_ration': did you mean 'mask_ratio'"):
        mmssl.create_method("mae", mask_ration=0.5)
    with pytest.raises(MmsslError, match="not both"):
        mmssl.create_method(model.config, mask_ratio=0.5)
    with pytest.raises(MmsslError, match="need a 'name'"):
        from_dict(MethodConfig, {"size": "base"})


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"mask_ratio": 0.0}, "between 0 and 1, got 0"),
        ({"mask_ratio": 1.0}, "between 0 and 1"),
        ({"image_size": 30}, "not divisible by patch_size"),
        ({"dim": None}, "dim not given"),
        ({"heads": 5}, "multiple of heads"),
        ({"decoder_heads": 3}, "multiple of heads"),
        ({"decoder_dim": 18}, "decoder_dim must be a multiple of 4"),
        ({"decoder_depth": 0}, "decoder_depth"),
        ({"depth": 0}, "depth"),
        ({"modality": "audio"}, "image/<camera>"),
        ({"size": "giant"}, "unknown size 'giant'"),
        ({"mask": "tube"}, "unknown mask 'tube'"),
    ],
)
def test_impossible_settings_are_named(bad, words):
    with pytest.raises(MmsslError, match=words):
        MAEConfig(**{**TINY, **bad})


def test_a_mask_that_leaves_nothing_is_refused():
    with pytest.raises(MmsslError, match="leaves 0 of 24 patches visible"):
        tiny(mask_ratio=0.99)


def test_wrong_batches_and_masks_are_named():
    model = tiny()
    with pytest.raises(MmsslError, match="a batch is a dict"):
        model(torch.zeros(2, 3, 16, 24))
    with pytest.raises(MmsslError, match="shape"):
        model(images(2, (24, 16)))
    with pytest.raises(MmsslError, match=r"\[0, 1\]"):
        model.encoder.check({"image": torch.full((1, 3, 16, 24), 9.0)})
    with pytest.raises(MmsslError, match="unknown modality of a mask 'imgae'"):
        model(images(), {"imgae": torch.ones(3, 24, dtype=torch.bool)})
    with pytest.raises(MmsslError, match="masks must hold 'image'"):
        model(images(), {})
    with pytest.raises(MmsslError, match=r"\(3, 24\)"):
        model(images(), keys=torch.arange(2))
    model.encoder.resize((24, 16))
    with pytest.raises(MmsslError, match="resized"):
        model(images(2, (24, 16)))
