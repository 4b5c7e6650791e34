"""MV-MAE against loops over samples, views, frames and places; any subset of views; one view learned from another."""

import math

import pytest
import torch
import torch.nn.functional as F

import mmssl
from mmssl.config import from_dict, to_dict
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.methods.base import MethodConfig
from mmssl.methods.mvmae import MVMAE, MVMAEConfig

TINY = {"size": "custom", "dim": 16, "depth": 2, "heads": 2, "image_size": (8, 12), "patch_size": 4, "frames": 3}
TINY |= {"views": ("a", "b", "c"), "mask_ratio": 0.5, "decoder_dim": 12, "decoder_depth": 2, "decoder_heads": 3}
PLACES = 6  # of a frame


def tiny(**changes) -> MVMAE:
    """A model whose every parameter is random, so that no mistake hides behind an initial zero or one."""
    torch.manual_seed(0)
    model = MVMAE(MVMAEConfig(**{**TINY, **changes})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = float(name.split(".")[-2].startswith("norm")) if "." in name else 0.0
            p.copy_(p if "pos_embed_spatial" in name else torch.randn(p.shape) * 0.3 + scale)
    return model


def batch_of(n=2, views=("a", "b", "c"), frames=3, kind="video", seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, frames, 3, 8, 12) if kind == "video" else (n, 3, 8, 12)
    names = [f"{kind}/{view}" for view in views] or [kind]
    batch = {name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for name in names}
    return {**batch, "index": torch.arange(n)}


def norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def slow_block(x, block):
    """A pre-norm block on one sample's tokens (n, D), head by head."""
    y, heads = norm(x, block.norm1), block.attn.heads
    q, k, v = (y @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, -1)
    d = q.shape[1] // heads
    parts = [slice(h * d, h * d + d) for h in range(heads)]
    mixed = torch.cat([(q[:, p] @ k[:, p].T / math.sqrt(d)).softmax(-1) @ v[:, p] for p in parts], -1)
    x = x + mixed @ block.attn.proj.weight.T + block.attn.proj.bias
    y = norm(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    return x + F.gelu(y) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def place_vector(n: int, dim: int) -> torch.Tensor:
    """MAE's position of place n of two rows and three columns: the column first, sines before cosines."""
    quarter, values = dim // 4, []
    for coordinate in (n % 3, n // 3):
        waves = [coordinate * 10000 ** (-k / quarter) for k in range(quarter)]
        values += [math.sin(w) for w in waves] + [math.cos(w) for w in waves]
    return torch.tensor(values)


def patches_of(frame: torch.Tensor) -> list[torch.Tensor]:
    """Normalised patches of one frame (3, H, W), channel fastest."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (frame.float() / 255 - mean[:, None, None]) / std[:, None, None]
    return [x[:, r : r + 4, c : c + 4].permute(1, 2, 0).flatten() for r in (0, 4) for c in (0, 4, 8)]


def slow_tokens(model, frame: torch.Tensor) -> list[torch.Tensor]:
    """Tokens of one frame without positions."""
    tok = model.encoder.tokenizers[model.config.modality]
    values = patches_of(frame)
    if tok.stem is not None:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (frame.float() / 255 - mean[:, None, None]) / std[:, None, None]
        for conv in tok.stem.convs:
            x = F.pad(x, (1, 1, 1, 1))
            x = F.conv2d(x[None], conv.weight, conv.bias, stride=2)[0].clamp(min=0)
        values = [x[:, r, c] for r in range(2) for c in range(3)]
    return [tok.proj.weight @ value + tok.proj.bias for value in values]


def slow_sample(model, clips: dict[str, torch.Tensor], masks: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the model says about every place of one sample's clips (T, 3, H, W), view by view."""
    encoder, decoder = model.encoder, model.decoder
    times, dim = encoder.tokenizers["video"].pos_embed_temporal[0], encoder.embed_dim
    sequence, seen = [encoder.cls_token[0, 0]], []
    for view, clip in clips.items():
        for t, frame in enumerate(clip):
            for n, token in enumerate(slow_tokens(model, frame)):
                if not masks[view][t * PLACES + n]:
                    sequence.append(token + place_vector(n, dim) + times[t] + encoder.type_embed[view][0, 0])
                    seen.append((view, t, n))
    x = torch.stack(sequence)
    for block in encoder.blocks:
        x = slow_block(x, block)
    x = norm(x, encoder.norm) @ decoder.embed.weight.T + decoder.embed.bias
    sequence = [x[0] + decoder.cls_position[0, 0]]
    for view, clip in clips.items():
        for t in range(len(clip)):
            for n in range(PLACES):
                at = (view, t, n)
                token = x[1 + seen.index(at)] if at in seen else decoder.mask_token[0, 0]
                where = place_vector(n, x.shape[1]) + decoder.pos_embed_temporal[0, t]
                sequence.append(token + where + decoder.type_embed[view][0, 0])
    x = torch.stack(sequence)
    for block in decoder.blocks:
        x = slow_block(x, block)
    return list(norm(x, decoder.norm)[1:] @ decoder.pred.weight.T + decoder.pred.bias)


@pytest.mark.parametrize("early_conv", [True, False])
@pytest.mark.parametrize(("views", "frames"), [("abc", 3), ("ca", 2)])
def test_it_is_the_slow_version(early_conv, views, frames):
    model, batch = tiny(early_conv=early_conv), batch_of(views=sorted(views), frames=frames)
    names = [name for name in batch if name != "index"]
    keys = sample_keys(3, 0, 0, batch["index"])
    masks = model.sampler({name: (frames, 2, 3) for name in names}, keys)
    errors = {loss_on: [] for loss_on in ("all", "masked")}
    for b in range(2):
        clips = {name: batch[name][b] for name in names}
        said = slow_sample(model, clips, {name: masks[name][b] for name in names})
        true = [patch for name in names for frame in clips[name] for patch in patches_of(frame)]
        hidden = torch.cat([masks[name][b] for name in names])
        error = torch.stack([(s - t).square().mean() for s, t in zip(said, true, strict=True)])
        errors["all"].append(error), errors["masked"].append(error[hidden])
        found = model.fill(batch, model.see(batch, None, keys))
        torch.testing.assert_close(torch.cat([found[n][b] for n in names]), torch.stack(said), atol=1e-5, rtol=1e-5)
    for loss_on, error in errors.items():
        other = tiny(early_conv=early_conv, loss_on=loss_on)
        for out in (other(batch, keys=keys), other(batch, masks=masks)):
            total, count = out["loss"]
            torch.testing.assert_close(total / count, torch.cat(error).mean(), atol=1e-5, rtol=1e-5)
        assert {f"loss_{name}" for name in names} <= set(out)


def test_whole_views_are_hidden_and_the_keys_say_which():
    model, batch = tiny(), batch_of(8)
    keys = sample_keys(1, 2, 0, batch["index"])
    masks = model.see(batch, None, keys).masks
    shown = torch.stack([(~masks[f"video/{v}"]).unflatten(1, (3, 6)).sum(2) for v in "abc"])  # (V, B, T)
    assert (shown.sum((0, 2)) == 18).all()  # of 54: .5 + .5 / 3 are masked
    assert ((shown == 0).sum(0) >= 1).all() and (shown == 0).any(2).any(1).all()
    again, other = (model.see(batch, None, k).masks for k in (keys, keys + 1))
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert any(not torch.equal(masks[name], other[name]) for name in masks)


def test_the_published_masks():
    model = MVMAE(MVMAEConfig(depth=1, decoder_depth=1))
    assert model.encoder.grids == {"video/front": (4, 6, 6), "video/wrist": (4, 6, 6)}
    assert model.sampler.budget(model.encoder.grids) == 14 and model.encoder.embed_dim == 256
    assert model.sampler.budget({"video": (4, 6, 6)}) == 14  # a tenth of 144: nothing is hidden of a single view
    assert [conv.out_channels for conv in model.encoder.tokenizers["video"].stem.convs] == [16, 32, 64, 128]


@pytest.mark.parametrize("views", ["a", "b", "bc", "abc", ""])
def test_any_of_the_views(views):
    model, batch = tiny(), batch_of(views=tuple(views))
    names = [name for name in batch if name != "index"]
    features = model.encoder(batch)
    assert features.tokens.shape == (2, 18 * len(names), 16) and list(features.grid) == names
    total, count = model(batch)["loss"]
    assert total.isfinite() and count == 2 * 18 * len(names)
    found = model.reconstruct(batch)
    assert {key.removeprefix("prediction/") for key in found if "/" in key and key.startswith("pred")} == set(names)
    assert found["prediction"].shape == (2, 3, 3, 8, 12) and found[f"target/{names[0]}"].max() <= 1


def test_a_view_of_no_name_has_the_mean_of_the_vectors():
    model = tiny()
    with torch.no_grad():
        for module in (model.encoder, model.decoder):
            for name in ("video/b", "video/c"):
                module.type_embed[name].copy_(module.type_embed["video/a"])
    named, bare = batch_of(views=("a",)), batch_of(views=("a",))
    bare["video"] = bare.pop("video/a")
    torch.testing.assert_close(model.encoder(bare).tokens, model.encoder(named).tokens)
    torch.testing.assert_close(model(bare)["loss"], model(named)["loss"])


def test_single_frames_are_the_first_of_a_clip():
    model, batch = tiny(), batch_of(views=("b",))
    one = {"video/b": batch["video/b"][:, :1]}
    masks = {"video/b": torch.arange(18).expand(2, 18) >= 6}  # of the clip only its first frame is seen
    torch.testing.assert_close(model.encoder(one).tokens, model.encoder(batch, masks).tokens, atol=1e-5, rtol=1e-5)


def test_rows_that_lack_a_view_count_for_nothing_there():
    model, batch = tiny(), batch_of(3)
    batch["present/video/b"] = torch.tensor([True, False, True])
    before = model(batch)
    assert before["loss"][1] == 3 * 54 - 18
    batch["video/b"][1] = 255 - batch["video/b"][1]
    torch.testing.assert_close(model(batch)["loss"], before["loss"])


def test_a_hidden_view_learns_from_the_others_alone():
    model, batch = tiny(), batch_of()
    pixels = {name: x.float().div(255).requires_grad_() for name, x in batch.items() if name != "index"}
    masks = model.hide(pixels, "video/b")
    said = model.fill(pixels, model.see(pixels, masks, None))["video/b"]
    said.sum().backward()
    assert pixels["video/b"].grad is None or not pixels["video/b"].grad.any()
    assert pixels["video/a"].grad.abs().sum() > 0 and pixels["video/c"].grad.abs().sum() > 0


def test_reconstruct_from_another_view():
    model, batch = tiny(), batch_of()
    found = model.reconstruct(batch, masks=model.hide(batch, "video/b"))
    assert found["mask/video/b"].all() and not found["mask/video/a"].any()
    assert (found["masked/video/b"] == 0.5).all()
    torch.testing.assert_close(found["prediction/video/a"], batch["video/a"] / 255, atol=1e-6, rtol=0)


def test_images_instead_of_clips():
    model, batch = tiny(modality="image", frames=1), batch_of(kind="image")
    assert model.encoder.modalities == ("image/a", "image/b", "image/c")
    assert model(batch)["loss"][1] == 2 * 18 and model.reconstruct(batch)["prediction"].shape == (2, 3, 8, 12)
    assert model.encoder({"image": batch["image/a"]}).map("image").shape == (2, 2, 3, 16)


def test_one_camera_alone_is_the_autoencoder_of_mwm():
    model = tiny(modality="image", frames=1, views=(), mask_ratio=0.75)
    assert model.encoder.modalities == ("image",) and model.sampler.budget(model.encoder.grids) == 1
    assert model(batch_of(views=(), kind="image"))["loss"][0].isfinite()


def test_it_learns_to_tell_one_view_from_another():
    """View b is the negative of view a: from a alone b is soon far better than its mean picture."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    def pair(n: int) -> dict[str, torch.Tensor]:
        left_and_right = torch.rand(n, 1, 1, 2, generator=generator)
        x = left_and_right.expand(n, 3, 2, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)  # (n, 3, 4, 4)
        return {"image/a": x, "image/b": 1 - x, "index": torch.arange(n)}

    shape = {"dim": 32, "depth": 1, "decoder_dim": 32, "decoder_depth": 1, "heads": 2, "decoder_heads": 2}
    size = {"modality": "image", "frames": 1, "views": ("a", "b"), "image_size": 4, "patch_size": 2}
    model = MVMAE(MVMAEConfig(**shape, **size, mask_ratio=0.1, early_conv=False))
    optimizer, held_out = torch.optim.AdamW(model.parameters(), lr=5e-3), pair(64)
    for step in range(120):
        batch = pair(32)
        total, count = model(batch, keys=sample_keys(0, step, 0, batch["index"]))["loss"]
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    found = model.eval().reconstruct(held_out, masks=model.hide(held_out, "image/b"))
    true = found["target/image/b"]
    error = (found["prediction/image/b"] - true).square().mean()
    assert error < 0.4 * (true - true.mean(0)).square().mean()


def test_settings_come_back_from_a_mapping_and_weights_from_the_disk(tmp_path):
    model, batch = tiny(), batch_of()
    assert from_dict(MethodConfig, to_dict(model.config)) == model.config
    model.encoder.save_pretrained(tmp_path)
    assert torch.equal(mmssl.load(tmp_path)(batch).tokens, model.encoder(batch).tokens)


def test_coins_are_the_released_way_to_choose():
    assert tiny(draw="coins").sampler.draw == "coins" and tiny().sampler.draw == "uniform"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modality": "audio"}, "modality 'audio'"),
        ({"loss_on": "visible"}, "loss_on 'visible'"),
        ({"draw": "dice"}, "draw 'dice'"),
        ({"modality": "image"}, "clips of one frame, got frames 3"),
        ({"decoder_dim": 6, "decoder_heads": 2}, "multiple of 4, got 6"),
        ({"decoder_depth": 0}, "at least 1, got 0"),
        ({"patch_size": 2, "image_size": 6, "dim": 15, "heads": 1}, "dim to be a multiple of 2, got 15|even|multiple"),
        ({"mask_ratio": 0.99}, "leaves no patch visible"),
        ({"mask_ratio": 1.0}, "strictly between 0 and 1"),
        ({"hidden_views": -1}, "hidden_views must be 0 or more"),
        ({"views": ("a", "a")}, "different names"),
    ],
)
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(MmsslError, match=words):
        MVMAE(MVMAEConfig(**{**TINY, **changes}))


def test_an_encoder_of_another_size_is_refused():
    model, batch = tiny(), batch_of()
    model.encoder.resize(frames=2)
    with pytest.raises(MmsslError, match=r"resized to a lattice of \(2, 2, 3\), the decoder has \(3, 2, 3\)"):
        model({name: x[:, :2] if name != "index" else x for name, x in batch.items()})
