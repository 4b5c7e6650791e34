"""SiamMAE: its encoder against transformers' ViTMAE, its loss against a slow one, and which frame sees what."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ViTMAEConfig, ViTMAEModel

import mmssl
from mmssl.config import from_dict, to_dict
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.methods.base import MethodConfig
from mmssl.methods.siammae import SiamMAE, SiamMAEConfig

TINY = {"size": "custom", "dim": 32, "depth": 2, "heads": 4, "image_size": (16, 24), "patch_size": 4, "mask_ratio": 0.9}
TINY |= {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2, "decoder_hidden": 24}
ORDERS = ["rsp", "cropmae"]


def tiny(**changes) -> SiamMAE:
    torch.manual_seed(0)
    return SiamMAE(SiamMAEConfig(**{**TINY, **changes})).eval()


def clips(n=3, size=(16, 24), seed=0, frames=2):
    generator = torch.Generator().manual_seed(seed)
    return {"video": torch.randint(0, 256, (n, frames, 3, *size), dtype=torch.uint8, generator=generator)}


def drawn(model, n=3):
    return model.sampler(model.encoder.grids, sample_keys(0, 0, 0, torch.arange(n)))


def changed(batch, frame, masks, shown):
    """The batch with other pixels in the patches of one frame that are masked (or `shown`)."""
    mask = ~masks["image"] if shown else masks["image"]
    place = tiny().tokenizer.unpatchify(mask[..., None].expand(-1, -1, 48))
    video = batch["video"].clone()
    video[:, frame] = torch.where(place, video[:, frame] // 3, video[:, frame])
    return {"video": video}


def transformers_twin(ours: SiamMAE) -> ViTMAEModel:
    """Their encoder of the same shape, every parameter drawn at random and given to ours as well."""
    config = ours.encoder.config
    theirs = ViTMAEModel(
        ViTMAEConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.dim,
            image_size=ours.tokenizer.config.image_size[0],
            patch_size=ours.tokenizer.config.patch_size[0],
            layer_norm_eps=1e-6,
        )
    ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        theirs.embeddings.position_embeddings[:, 0] = 0
        kernel, encoder = theirs.embeddings.patch_embeddings.projection, ours.encoder
        ours.tokenizer.proj.weight.copy_(kernel.weight.permute(0, 2, 3, 1).flatten(1))
        ours.tokenizer.proj.bias.copy_(kernel.bias)
        ours.tokenizer.pos_embed.copy_(theirs.embeddings.position_embeddings[:, 1:])
        encoder.cls_token.copy_(theirs.embeddings.cls_token)
        encoder.norm.load_state_dict(theirs.layernorm.state_dict())
        for a, b in zip(encoder.blocks, theirs.layers, strict=True):
            three = (b.attention.q_proj, b.attention.k_proj, b.attention.v_proj)
            a.attn.qkv.weight.copy_(torch.cat([m.weight for m in three]))
            a.attn.qkv.bias.copy_(torch.cat([m.bias for m in three]))
            for own, other in (
                (a.attn.proj, b.attention.o_proj),
                (a.norm1, b.layernorm_before),
                (a.norm2, b.layernorm_after),
                (a.mlp.fc1, b.mlp.fc1),
                (a.mlp.fc2, b.mlp.fc2),
            ):
                own.load_state_dict(other.state_dict())
    return theirs


@pytest.mark.parametrize("size", ["custom", "small"])
def test_both_frames_go_through_vitmaes_encoder(size):
    """The past whole and the future masked: the decoder is given exactly transformers' tokens."""
    shape = {"image_size": 32} if size == "custom" else {"dim": None, "depth": None, "heads": None, "image_size": 224}
    model = tiny(**shape, size=size, patch_size=shape["image_size"] // 14 if size == "small" else 8, mask_ratio=0.8)
    theirs = transformers_twin(model)
    batch, given = clips(2, model.tokenizer.config.image_size), {}
    masks = drawn(model, 2)
    n = model.tokenizer.num_tokens

    def look(_, args, kwargs):
        given.update(past=kwargs["context"], future=args[0])

    model.decoder.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        model(batch, keys=sample_keys(0, 0, 0, torch.arange(2)))
        past, future = (model.tokenizer.prepare(frame) for frame in batch["video"].unbind(1))
        theirs.config.mask_ratio = 0.0
        in_order = torch.arange(n).expand(2, n).float()
        assert (given["past"] - theirs(past, noise=in_order).last_hidden_state).abs().max() < 1e-5
        theirs.config.mask_ratio = 0.8
        visible_first = in_order + n * masks["image"]
        assert (given["future"] - theirs(future, noise=visible_first).last_hidden_state[:, 1:]).abs().max() < 1e-5


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_loss_is_the_slow_one(order, norm_pix):
    model, batch = tiny(decoder_order=order, norm_pix=norm_pix), clips()
    masks = drawn(model)
    total, count = model(batch, masks)["loss"]
    errors, tokenizer, decoder = [], model.tokenizer, model.decoder
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (tokenizer.config.mean, tokenizer.config.std))
    for video, mask in zip(batch["video"], masks["image"], strict=True):
        past = model.encoder({"image": video[:1]})
        future = model.encoder({"image": video[1:]}, {"image": mask[None]})
        x = decoder.mask_token[0].repeat(24, 1)
        x = x.index_put((future.index[0],), decoder.embed(future.tokens[0])) + decoder.pos_embed[0]
        x = torch.cat([decoder.embed(future.cls), x])[None]
        context = decoder.embed(torch.cat([past.cls[:, None], past.tokens], dim=1))
        for block in decoder.blocks:
            x = block(x, context)
        x = decoder.pred(decoder.norm(x))[0, 1:]
        image = (video[1] / 255 - mean) / std
        for place in mask.nonzero()[:, 0].tolist():
            row, column = divmod(place, 6)
            patch = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
            if norm_pix:
                patch = (patch - patch.mean()) / (patch.var(unbiased=True) + 1e-6) ** 0.5
            errors.append(((x[place] - patch) ** 2).mean())
    assert count.item() == len(errors) == 3 * 22
    assert (total / count).item() == pytest.approx(torch.stack(errors).mean().item(), abs=1e-5)


def test_95_percent_leave_9_patches_of_196_and_the_past_is_whole():
    model = tiny(image_size=224, patch_size=16, mask_ratio=0.95)
    assert (~drawn(model)["image"]).sum(1).tolist() == [9] * 3
    assert model(clips(1, (224, 224)))["loss"][1].item() == 187


@pytest.mark.parametrize("order", ORDERS)
def test_the_past_is_seen_and_hidden_patches_are_not(order):
    model, batch = tiny(decoder_order=order), clips()
    masks = drawn(model)
    guess = model.reconstruct(batch, masks)
    loss = model(batch, masks)["loss"][0]

    hidden = changed(batch, 1, masks, shown=False)
    assert torch.equal(model.reconstruct(hidden, masks)["prediction_patches"], guess["prediction_patches"])
    assert not torch.equal(model(hidden, masks)["loss"][0], loss)
    for other in (changed(batch, 1, masks, shown=True), changed(batch, 0, masks, shown=False)):
        moved = model.reconstruct(other, masks)["prediction_patches"] - guess["prediction_patches"]
        assert (moved.abs().amax((1, 2)) > 1e-4).all()


@pytest.mark.parametrize("frame", [0, 1])
def test_gradients_reach_the_encoder_through_both_frames(frame):
    model = tiny(decoder_order="cropmae").train()
    video = torch.rand(2, 2, 3, 16, 24, requires_grad=True)
    masks = drawn(model, 2)
    model._predict(model._pair({"video": video}), masks, None).patches.square().sum().backward()
    seen = video.grad[:, frame].abs().sum((1, 2, 3))
    assert (seen > 0).all()
    model(clips(2))["loss"][0].backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_sampler_and_explicit_masks_agree_and_rows_may_differ():
    model, batch = tiny(), clips()
    masks = drawn(model)
    a, b = model(batch, keys=sample_keys(0, 0, 0, torch.arange(3)))["loss"], model(batch, masks)["loss"]
    torch.testing.assert_close(a, b)

    ragged = torch.arange(24)[None] >= torch.tensor([[5], [11], [23]])
    total, count = model(batch, {"image": ragged})["loss"]
    alone = [model({"video": batch["video"][i : i + 1]}, {"image": ragged[i : i + 1]})["loss"] for i in range(3)]
    assert count.item() == sum(c.item() for _, c in alone) == 19 + 13 + 1
    assert total.item() == pytest.approx(sum(t.item() for t, _ in alone), rel=1e-5)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 4), st.integers(2, 4), st.integers(1, 5), st.sampled_from(ORDERS), st.booleans(), st.integers(0, 99)
)
def test_any_size_learns_and_the_same_keys_give_the_same_bits(rows, columns, patch, order, norm_pix, seed):
    size = (rows * patch, columns * patch)
    model = tiny(image_size=size, patch_size=patch, mask_ratio=0.5, norm_pix=norm_pix, decoder_order=order)
    batch, keys = clips(2, size, seed), sample_keys(seed, 0, 0, torch.arange(2))
    total, count = model(batch, keys=keys)["loss"]
    assert torch.equal(total, model(batch, keys=keys)["loss"][0])
    total.backward()
    assert math.isfinite(total.item()) and count.item() == 2 * (rows * columns - int(rows * columns * 0.5))
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_without_keys_the_index_decides():
    model, batch = tiny(), clips()
    first = model(batch)["loss"][0]
    assert torch.equal(first, model(batch)["loss"][0])
    assert not torch.equal(first, model({**batch, "index": torch.tensor([7, 8, 9])})["loss"][0])


def ramps(n, generator):
    """A pair of equal frames of 2 x 3 patches, each of which brightens to the right or downwards, by chance."""
    ramp = torch.linspace(0, 1, 4)
    right = torch.rand(n, 1, 2, 3, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3) < 0.5
    frame = torch.where(right, ramp.repeat(3), ramp.repeat(2)[:, None])
    return frame[:, None].expand(-1, 2, 3, -1, -1)


@pytest.mark.parametrize("order", ORDERS)
def test_it_learns_to_look_at_the_same_place_of_the_past(order):
    """Patches say nothing of one another: only the past's patch at the same place does."""
    shape = {"dim": 32, "depth": 1, "heads": 2, "image_size": (8, 12), "mask_ratio": 0.8}
    shape |= {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 1, "decoder_hidden": 64, "decoder_drop": 0.0}
    model = tiny(**shape, decoder_order=order).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(500):
        video = ramps(16, generator)
        total, count = model({"video": video}, keys=sample_keys(0, step, 0, torch.arange(16)))["loss"]
        if total < 0.05 * count:
            break
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert total < 0.05 * count
    anothers = torch.stack([video[:, 0].roll(1, 0), video[:, 1]], dim=1)
    assert model({"video": anothers})["loss"][0] > 0.5 * count


def test_compiles_without_graph_breaks():
    batch, keys = clips(), sample_keys(0, 0, 0, torch.arange(3))
    model = tiny(depth=1)
    result = torch.compile(model, backend="aot_eager", fullgraph=True)(batch, keys=keys)["loss"]
    torch.testing.assert_close(result, model(batch, keys=keys)["loss"], atol=1e-4, rtol=1e-5)
    result[0].backward()
    training = torch.compile(tiny(depth=1, decoder_order="cropmae").train(), backend="aot_eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert training(batch, keys=keys)["loss"][0].isfinite()


def test_bfloat16_autocast_is_close():
    model, batch = tiny(), clips()
    exact = model(batch)["loss"][0]
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = model(batch)["loss"]
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("patch_stats", ["past", "true"])
def test_reconstruction_contract(norm_pix, patch_stats):
    model, batch = tiny(norm_pix=norm_pix), clips()
    out = model.reconstruct(batch, patch_stats=patch_stats)
    assert out["mask"].shape == (3, 24) and out["mask"].sum(1).tolist() == [22] * 3
    hidden = model.tokenizer.unpatchify(out["mask"][..., None].expand(-1, -1, 48))
    for name in ("target", "masked", "prediction"):
        assert out[name].shape == (3, 2, 3, 16, 24) and out[name].dtype == torch.float32
        assert out[name].min() >= 0 and out[name].max() <= 1
        torch.testing.assert_close(out[name][:, 0], batch["video"][:, 0] / 255, atol=1e-5, rtol=0)
        torch.testing.assert_close(out[name][:, 1][~hidden], out["target"][:, 1][~hidden])
    torch.testing.assert_close(out["target"], batch["video"] / 255, atol=1e-5, rtol=0)
    assert (out["masked"][:, 1][hidden] == 0.5).all()
    assert not torch.allclose(out["prediction"][:, 1][hidden], out["target"][:, 1][hidden])
    total, count = model(batch)["loss"]
    error = (out["prediction_patches"] - out["target_patches"]).square().mean(-1)[out["mask"]]
    assert error.mean().item() == pytest.approx((total / count).item(), rel=1e-4)


def test_reconstruction_does_not_leak_unless_asked():
    model, batch = tiny(), clips()
    masks = drawn(model)
    other = changed(batch, 1, masks, shown=False)
    honest = [model.reconstruct(b, masks)["prediction"] for b in (batch, other)]
    assert torch.equal(*honest)
    leaking = [model.reconstruct(b, masks, patch_stats="true")["prediction"] for b in (batch, other)]
    assert not torch.equal(*leaking)
    with pytest.raises(MmsslError, match="unknown patch_stats 'visible'"):
        model.reconstruct(batch, patch_stats="visible")


def test_the_patches_brightness_is_the_pasts():
    """With a decoder that predicts zeros, a masked patch is filled with the past's mean at the same place."""
    model, batch = tiny(), clips()
    torch.nn.init.zeros_(model.decoder.pred.weight)
    torch.nn.init.zeros_(model.decoder.pred.bias)
    out = model.reconstruct(batch)
    tokenizer = model.tokenizer
    means = tokenizer.target(batch["video"][:, 0]).mean(-1, keepdim=True).expand(-1, -1, 48)
    filled = tokenizer.restore(tokenizer.unpatchify(means)).clamp(0, 1)
    hidden = tokenizer.unpatchify(out["mask"][..., None].expand(-1, -1, 48))
    torch.testing.assert_close(out["prediction"][:, 1][hidden], filled[hidden])


def test_a_camera_can_be_the_modality_and_the_encoder_is_of_images():
    model = tiny(modality="video/wrist")
    assert model({"video/wrist": clips()["video"]})["loss"][0].isfinite()
    assert model.encoder.modalities == ("image",)
    with pytest.raises(MmsslError, match="'video/wrist'"):
        model(clips())


def test_the_decoder_of_each_size():
    for size, shape in {"small": (256, 4, 8), "base": (512, 8, 16), "large": (1024, 12, 16)}.items():
        config = SiamMAEConfig(size=size)
        block = config.decoder_block()
        assert config.decoder_shape() == shape and (block.dim, block.heads) == shape[::2]
        assert int(block.dim * block.mlp_ratio) == 4 * shape[0] and block.drop == block.attn_drop == 0
        block = SiamMAEConfig(size=size, decoder_order="cropmae").decoder_block()
        assert int(block.dim * block.mlp_ratio) == 2048 and block.drop == block.attn_drop == 0.1
    assert SiamMAEConfig(size="base", decoder_depth=3).decoder_shape() == (512, 3, 16)
    with torch.device("meta"):
        model = SiamMAE(SiamMAEConfig())
        twin = SiamMAE(SiamMAEConfig(decoder_order="cropmae"))
    assert sum(p.numel() for p in model.encoder.parameters() if p.requires_grad) / 1e6 == pytest.approx(21.6, rel=0.01)
    # in millions, as CropMAE's code wrote them into its args.json for ViT-S/16
    for part, millions in ((twin, 28.2017), (twin.encoder.blocks, 21.2936), (twin.decoder.blocks, 6.315)):
        assert round(sum(p.numel() for p in part.parameters() if p.requires_grad) / 1e6, 4) == millions


def test_create_method_and_config_round_trip():
    model = mmssl.create_method("siammae", **TINY)
    assert isinstance(model, SiamMAE) and "siammae" in mmssl.list_methods()
    assert from_dict(MethodConfig, to_dict(model.config)) == model.config


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"mask_ratio": 1.0}, "between 0 and 1"),
        ({"image_size": 30}, "not divisible by patch_size"),
        ({"dim": None}, "dim not given"),
        ({"heads": 5}, "multiple of heads"),
        ({"decoder_heads": 3}, "multiple of heads"),
        ({"decoder_dim": 18}, "decoder_dim must be a multiple of 4"),
        ({"decoder_depth": 0}, "decoder_depth"),
        ({"decoder_hidden": 0}, "decoder_hidden"),
        ({"decoder_drop": 1.0}, "decoder_drop must be in"),
        ({"decoder_order": "rps"}, "unknown decoder_order 'rps': did you mean 'rsp'"),
        ({"modality": "image"}, "'video' or 'video/<camera>', not from 'image'"),
        ({"size": "giant"}, "unknown size 'giant'"),
    ],
)
def test_impossible_settings_are_named(bad, words):
    with pytest.raises(MmsslError, match=words):
        SiamMAEConfig(**{**TINY, **bad})


def test_wrong_batches_and_masks_are_named():
    model = tiny()
    with pytest.raises(MmsslError, match="leaves 0 of 24 patches visible"):
        tiny(mask_ratio=0.99)
    for wrong in (clips(frames=16), clips(frames=1), {"video": clips()["video"][:, 0]}):
        for call in (model, model.check, model.reconstruct):
            with pytest.raises(MmsslError, match=r"\(batch, 2, 3, 16, 24\).*set data.clip.how to pair"):
                call(wrong)
    with pytest.raises(MmsslError, match=r"set data.image_size to \[16, 24\]"):
        model.check(clips(size=(24, 16)))
    with pytest.raises(MmsslError, match=r"lacks 'video', pairs of frames .*: it is \['image'\]"):
        model({"image": clips()["video"][:, 0]})
    with pytest.raises(MmsslError, match="it is Tensor"):
        model(clips()["video"])
    with pytest.raises(MmsslError, match="uint8"):
        model({"video": clips()["video"].long()})
    with pytest.raises(MmsslError, match=r"\[0, 1\]"):
        model.check({"video": clips()["video"].float()})
    with pytest.raises(MmsslError, match="masks must hold 'image'"):
        model(clips(), {})
    with pytest.raises(MmsslError, match=r"\(3, 24\)"):
        model(clips(), {"image": torch.ones(3, 23, dtype=torch.bool)})
    model.encoder.resize((24, 16))
    with pytest.raises(MmsslError, match="resized"):
        model(clips(size=(24, 16)))
