"""Audio-MAE: its encoder against timm's, its global decoder against MAE's, its loss against a slow version."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

import mmssl
from mmssl.config import from_dict, to_dict
from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.methods.audiomae import AudioMAE, AudioMAEConfig
from mmssl.methods.base import MethodConfig
from mmssl.methods.mae import MAE, MAEConfig
from mmssl.tokenizers.fbank import SILENCE

TINY = {"size": "custom", "dim": 32, "depth": 2, "heads": 4, "frames": 48, "mel_bins": 16, "patch_size": 4}
TINY |= {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2}


def tiny(**changes) -> AudioMAE:
    torch.manual_seed(0)
    return AudioMAE(AudioMAEConfig(**{**TINY, **changes}))


def sounds(n=3, samples=8000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"audio": 0.1 * torch.randn(n, 1, samples, generator=generator)}


def spectrograms(n=2, shape=(48, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"audio": 3 * torch.randn(n, 1, *shape, generator=generator) - 4}


def swapped_table(dim: int, rows: int, columns: int) -> torch.Tensor:
    """The authors' table by its closed form, token by token: place i has column i mod rows and row i // rows."""
    omega = [10000 ** (-k / (dim / 4)) for k in range(dim // 4)]
    table = []
    for i in range(rows * columns):
        table.append([f(x * w) for x in (i % rows, i // rows) for f in (math.sin, math.cos) for w in omega])
    return torch.tensor(table)


def timm_twin(ours: Encoder) -> VisionTransformer:
    """timm's model with our weights, its table made by the closed form."""
    shape = ours.config
    theirs = VisionTransformer(
        img_size=(1024, 128), patch_size=16, in_chans=1, num_classes=0, global_pool="", class_token=True,
        embed_dim=shape.dim, depth=shape.depth, num_heads=shape.heads, qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("tokenizers.")}
    proj = ours.tokenizers["audio"].proj
    state |= {"patch_embed.proj.weight": proj.weight.data.view(-1, 1, 16, 16), "patch_embed.proj.bias": proj.bias.data}
    table = torch.cat([torch.zeros(1, shape.dim), swapped_table(shape.dim, 64, 8)])
    theirs.load_state_dict(state | {"pos_embed": table[None]})
    return theirs


def test_the_encoder_is_timms_with_the_authors_transposed_table():
    torch.manual_seed(0)
    ours = AudioMAE(AudioMAEConfig(size="custom", dim=32, depth=2, heads=4, decoder_depth=1)).encoder
    with torch.no_grad():
        for p in ours.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    theirs, batch = timm_twin(ours), spectrograms(2, (1024, 128))
    features, reference = ours(batch), theirs(ours.tokenizers["audio"].prepare(batch["audio"]))
    assert features.grid == {"audio": (64, 8)}
    assert (features.tokens - reference[:, 1:]).abs().max() < 1e-5
    assert (features.cls - reference[:, 0]).abs().max() < 1e-5

    weight = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1)) / reference.shape[1]
    (torch.cat([features.cls[:, None], features.tokens], 1) * weight).sum().backward()
    (reference * weight).sum().backward()
    found = dict(ours.named_parameters())
    checked = 0
    for name, p in theirs.named_parameters():
        own = found.get(name.replace("patch_embed", "tokenizers.audio"))
        if own is not None and own.requires_grad:
            assert (own.grad - p.grad.view_as(own)).abs().max() < 1e-5, name
            checked += 1
    assert checked == sum(p.requires_grad for p in found.values())


def test_the_global_decoder_is_maes():
    """The same weights on grey pictures whose values are those of the spectrogram."""
    ours = tiny(decoder="global", positions="sincos", mask_ratio=0.75)
    shape = {k: v for k, v in TINY.items() if k not in ("frames", "mel_bins")}
    mae = MAE(MAEConfig(**shape, image_size=(48, 16), channels=1, mean=(0.0,), std=(1.0,)))
    state = {k.replace("tokenizers.audio", "tokenizers.image"): v for k, v in ours.state_dict().items()}
    mae.load_state_dict({k: v.view_as(mae.state_dict()[k]) for k, v in state.items()} | _statistics_of(mae))
    pixels = torch.rand(2, 1, 48, 16, generator=torch.Generator().manual_seed(3))
    keys = sample_keys(0, 0, 0, torch.arange(2))
    mask = ours.sampler(ours.encoder.grids, keys)["audio"]
    one, two = ours({"audio": ours.tokenizer.restore(pixels)}, keys=keys), mae({"image": pixels}, {"image": mask})
    torch.testing.assert_close(one["loss"], two["loss"], rtol=1e-5, atol=1e-5)


def _statistics_of(mae: MAE) -> dict[str, torch.Tensor]:
    return {k: v for k, v in mae.state_dict().items() if k.endswith((".mean", ".std"))}


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("mask", ["random", "time_frequency"])
def test_the_loss_is_the_slow_one(norm_pix, mask):
    model, batch = tiny(norm_pix=norm_pix, mask=mask).eval(), spectrograms()
    found = model.reconstruct(batch)
    total, count = model(batch)["loss"]
    normalised = (batch["audio"][:, 0] - model.config.mean) / (2 * model.config.std)
    slow, number = 0.0, 0
    for row in range(2):
        for i in range(48):
            if not found["mask"][row, i]:
                continue
            t, f = 4 * (i // 4), 4 * (i % 4)  # time slow, frequency fast: 12 x 4 patches
            patch = normalised[row, t : t + 4, f : f + 4].flatten()
            if norm_pix:
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            slow += (patch - found["prediction_patches"][row, i]).square().mean().item()
            number += 1
    assert count.item() == number
    assert total.item() == pytest.approx(slow, rel=1e-5)


def test_waveforms_and_their_spectrograms_are_the_same_input():
    model, batch = tiny().eval(), sounds()  # the windows' bias has dropout
    spectrogram = {"audio": model.tokenizer.spectrogram(batch["audio"])}
    torch.testing.assert_close(model(batch)["loss"], model(spectrogram)["loss"])


@pytest.mark.parametrize(("size", "millions"), [("small", 72.7), ("base", 137.0), ("large", 354.6)])
def test_published_sizes(size, millions):
    with torch.device("meta"):
        model = AudioMAE(AudioMAEConfig(size=size))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert model.encoder.grids == {"audio": (64, 8)} and model.sampler.visible(model.encoder.grids) == {"audio": 102}
    assert model.config.decoder_shape() == (512, 16, 16) and model.config.norm_pix
    assert AudioMAEConfig(decoder="global").decoder_shape() == (512, 8, 16)


@pytest.mark.parametrize(
    ("mask", "visible"), [("random", 102), ("time_frequency", 19 * 5), ("time", 19 * 8), ("frequency", 64 * 5)]
)
def test_each_mask_reads_its_own_ratios(mask, visible):
    config = AudioMAEConfig(mask=mask)
    assert config.mask_sampler().visible({"audio": (64, 8)}) == {"audio": visible}


def test_overlapping_patches_learn_as_the_authors_do_and_are_not_put_together():
    with torch.device("meta"):
        authors = AudioMAE(AudioMAEConfig(size="small", stride=10))
    assert authors.grid == (101, 12) and authors.decoder.window == (6, 6)
    model, batch = tiny(stride=2, mel_bins=16), sounds()
    assert model.grid == (23, 7) and model.encoder.config.positions == "sincos"
    assert model(batch)["loss"][0].isfinite()
    with pytest.raises(MmsslError, match="overlap, so that no spectrogram"):
        model.reconstruct(batch)


@pytest.mark.parametrize("decoder", ["window", "global"])
@pytest.mark.parametrize("patch_stats", ["visible", "true"])
def test_reconstruction_contract(decoder, patch_stats):
    model, batch = tiny(decoder=decoder).eval(), sounds()
    out = model.reconstruct(batch, patch_stats=patch_stats)
    assert set(out) == {"mask", "target", "masked", "prediction", "prediction_patches", "target_patches"}
    assert out["mask"].sum(1).tolist() == [39] * 3
    torch.testing.assert_close(out["target"], model.tokenizer.spectrogram(batch["audio"]), atol=1e-4, rtol=0)
    shown = model.tokenizer.unpatchify((~out["mask"])[..., None].expand(-1, -1, 16))
    assert torch.equal(out["prediction"][shown], out["target"][shown])
    assert torch.equal(out["masked"][shown], out["target"][shown]) and (out["masked"][~shown] == SILENCE).all()
    assert not torch.allclose(out["prediction"][~shown], out["target"][~shown])


def test_reconstruction_does_not_leak_unless_asked():
    model, batch = tiny().eval(), spectrograms()
    masks = model.sampler(model.encoder.grids, torch.arange(2))
    hidden = model.tokenizer.unpatchify(masks["audio"][..., None].expand(-1, -1, 16))
    other = {"audio": torch.where(hidden, batch["audio"] / 3, batch["audio"])}
    assert torch.equal(*(model.reconstruct(b, masks)["prediction"] for b in (batch, other)))
    leaking = [model.reconstruct(b, masks, patch_stats="true")["prediction"] for b in (batch, other)]
    assert not torch.equal(*leaking)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(2, 4), st.integers(2, 4),
    st.sampled_from(["window", "global"]), st.sampled_from(["random", "time_frequency"]),
)  # fmt: skip
def test_any_lattice_learns(times, pitches, p, q, decoder, mask):
    if times * pitches < 4 or (mask == "time_frequency" and min(times, pitches) < 2):
        return
    ratios = {"mask_ratio": 0.5, "time_ratio": 0.5, "frequency_ratio": 0.5}
    lattice = {"frames": times * p, "mel_bins": pitches * q, "patch_size": (p, q)}
    model = tiny(**lattice, **ratios, decoder=decoder, mask=mask)
    total, count = model(sounds(2))["loss"]
    (total / count).backward()
    visible = (times // 2) * (pitches // 2) if mask == "time_frequency" else times * pitches // 2
    assert math.isfinite(total.item()) and count.item() == 2 * (times * pitches - visible)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("decoder", ["window", "global"])
def test_rows_may_differ(decoder):
    model, batch = tiny(decoder=decoder).eval(), sounds()
    ragged = torch.arange(48)[None] >= torch.tensor([[5], [11], [35]])
    total, count = model(batch, {"audio": ragged})["loss"]
    alone = [model({"audio": batch["audio"][i : i + 1]}, {"audio": ragged[i : i + 1]})["loss"] for i in range(3)]
    assert count.item() == sum(c.item() for _, c in alone) == 43 + 37 + 13
    assert total.item() == pytest.approx(sum(t.item() for t, _ in alone), rel=1e-5)


def test_compiles_without_graph_breaks():
    model, batch = tiny(depth=1).eval(), sounds()  # the global decoder is compiled in MAE's tests
    keys = sample_keys(0, 0, 0, torch.arange(3))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, result = model(batch, keys=keys)["loss"], compiled(batch, keys=keys)["loss"]
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-4)
    result[0].backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    expected[0].backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, atol=1e-3, rtol=1e-3)


def test_a_longer_encoder_is_refused_by_its_decoder_and_stands_alone(tmp_path):
    model, batch = tiny(), sounds(2, 16000)
    table = model.tokenizer.pos_embed.clone()
    model.encoder.resize(frames=96)
    assert model.encoder(batch).grid == {"audio": (24, 4)} and model.encoder.config.tokenizers["audio"].frames == 96
    assert torch.equal(model.tokenizer.pos_embed[:, :48], table)
    with pytest.raises(MmsslError, match="resized"):
        model(batch)
    model.encoder.save_pretrained(tmp_path)
    assert torch.equal(Encoder.from_pretrained(tmp_path)(batch).tokens, model.encoder(batch).tokens)
    assert model.encoder.resize(mel_bins=32).grids == {"audio": (24, 8)}
    with pytest.raises(MmsslError, match="no images or clips; leave out image_size"):
        model.encoder.resize(32)
    with pytest.raises(MmsslError, match="not divisible by patch_size 4x4"):
        model.encoder.resize(frames=50)


def test_a_microphone_can_be_the_modality():
    model = tiny(modality="audio/left")
    assert model({"audio/left": sounds()["audio"]})["loss"][0].isfinite()
    with pytest.raises(MmsslError, match="lacks the modality 'audio/left'"):
        model(sounds())


def test_create_method_and_config_round_trip():
    model = mmssl.create_method("audiomae", **TINY)
    assert isinstance(model, AudioMAE) and "audiomae" in mmssl.list_methods()
    assert from_dict(MethodConfig, to_dict(model.config)) == model.config
    with pytest.raises(MmsslError, match=r"unknown key .*'mel_bin': did you mean 'mel_bins'"):
        mmssl.create_method("audiomae", mel_bin=2)
    learned = tiny(positions="learned")
    assert learned.tokenizer.pos_embed.requires_grad and learned.decoder.pos_embed.requires_grad


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"frames": 50}, "50 frames of 16 mel_bins are not divisible by patch_size 4x4; the nearest .* 48 frames"),
        ({"patch_size": (4, 5)}, "not divisible by patch_size 4x5"),
        ({"stride": 5}, r"stride \(5, 5\) must not be above patch_size"),
        ({"mel_bins": 512}, "mel_bins 512 is more than the transform carries"),
        ({"sample_rate": 0}, "sample_rate must be 1 or more"),
        ({"mask_ratio": 1.0}, "between 0 and 1"),
        ({"mask": "time", "time_ratio": 1.0}, "between 0 and 1"),
        ({"mask": "tube"}, "unknown mask 'tube'.*random"),
        ({"modality": "image"}, "'audio' or 'audio/<microphone>', not from 'image'"),
        ({"size": "giant"}, "unknown size 'giant'"),
        ({"decoder": "windows"}, "unknown decoder 'windows': did you mean 'window'"),
        ({"decoder_dim": 18}, "multiple of 4"),
        ({"decoder_depth": 0}, "decoder_depth"),
        ({"window": (0, 4)}, "a window must be"),
        ({"shift": (4, 0)}, "a shift must be"),
        ({"std": 0.0}, "std must be above 0"),
    ],
)
def test_impossible_settings_are_named(bad, words):
    with pytest.raises(MmsslError, match=words):
        AudioMAEConfig(**{**TINY, **bad})


def test_a_mask_that_leaves_nothing_is_refused():
    ways = "change the mask's ratio, frames, mel_bins or patch_size"
    with pytest.raises(MmsslError, match=f"mask_ratio 0.99 leaves 0 of 48 patches visible.*{ways}"):
        tiny(mask_ratio=0.99)
    with pytest.raises(MmsslError, match=r"mask time_frequency with time_ratio 0.95 and .* leaves 0 of 48 patches"):
        tiny(mask="time_frequency", time_ratio=0.95)
    with pytest.raises(MmsslError, match="leaves 48 of 48 patches visible"):
        tiny(mask_ratio=1e-18)


def test_wrong_batches_and_masks_are_named():
    model = tiny()
    with pytest.raises(MmsslError, match=r"waveforms \(batch, 1, samples\).*mix"):
        model({"audio": torch.zeros(2, 2, 4000)})
    with pytest.raises(MmsslError, match=r"resize\(frames=96\)"):
        model(spectrograms(2, (96, 16)))
    with pytest.raises(MmsslError, match="divide 16-bit samples"):
        model({"audio": torch.zeros(2, 1, 4000, dtype=torch.int16)})
    with pytest.raises(MmsslError, match="NaN"):
        model.check({"audio": torch.full((1, 1, 4000), float("nan"))})
    with pytest.raises(MmsslError, match="masks must hold 'audio'"):
        model(sounds(), {})
    with pytest.raises(MmsslError, match=r"\(3, 48\)"):
        model(sounds(), {"audio": torch.ones(3, 47, dtype=torch.bool)})
    with pytest.raises(MmsslError, match="unknown patch_stats"):
        model.reconstruct(sounds(), patch_stats="past")


def test_sound_shorter_than_a_window_is_padding():
    """Ten milliseconds still make one frame; nothing of it is NaN."""
    model = tiny()
    total, _ = model(sounds(2, 160))["loss"]
    assert total.isfinite()


@pytest.mark.parametrize("decoder", ["window", "global"])
def test_half_precision_gives_about_the_same_loss(decoder):
    model, batch = tiny(decoder=decoder).eval(), sounds()
    expected, spectrogram = model(batch)["loss"][0], model.tokenizer.spectrogram(batch["audio"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.tokenizer.spectrogram(batch["audio"]), spectrogram)
        torch.testing.assert_close(model(batch)["loss"][0], expected, rtol=0.02, atol=0)
