"""Audio-MAE's weights under the authors' names, against the model written anew (audiomae_models.py)."""

import re

import pytest
import torch
from audiomae_models import (
    MEAN,
    STATISTICS,
    STD,
    Classifier,
    Encoder,
    MaskedAutoencoder,
    assert_same_features,
    make,
    normalised,
    save,
)
from videomae_models import write_run

import mmssl
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.weights.classifier import load_classifier
from mmssl.weights.export import export
from mmssl.weights.init import load_into

HEADS = 4
KEEP = torch.tensor([1, 4, 9, 17, 30, 66, 95])


@pytest.fixture(scope="module")
def mel():
    """Raw log-mel (B, 1, T, M) of about the mean and std of AudioSet."""
    return torch.randn(2, 1, 192, 128, generator=torch.Generator().manual_seed(1)) * STD + MEAN


def mask_of(n: int) -> tuple[dict, torch.Tensor]:
    """The mask that leaves KEEP, and the places that it hides."""
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[:, KEEP] = False
    return {"audio": mask}, mask[0].nonzero()[:, 0]


@pytest.mark.parametrize("decoder", ["window", "global"])
def test_pretrained_file(tmp_path, mel, decoder):
    model = make(MaskedAutoencoder, decoder=decoder)
    path = save(model, tmp_path / "pretrained.pth")
    encoder = mmssl.load(path, heads=HEADS)
    assert encoder.modalities == ("audio",) and encoder.config.positions == "sincos_swapped"
    assert encoder.grids == {"audio": (12, 8)} and not encoder.training
    x = normalised(mel)
    with torch.no_grad():
        assert_same_features(encoder, model.features(x), mel)
    method = mmssl.load_method(path, heads=HEADS, decoder_heads=2)
    assert method.config.decoder == decoder and method.config.norm_pix and method.config.mask_ratio == 0.8
    masks, masked = mask_of(96)
    with torch.no_grad():
        theirs = model(x, KEEP)
        ours = method.reconstruct({"audio": mel}, masks)["prediction_patches"]
        total, count = method({"audio": mel}, masks=masks)["loss"]
        loss = model.loss(x, theirs, masked)
    assert (ours[:, masked] - theirs[:, masked]).abs().max() < 1e-5
    assert abs(total / count - loss) < 1e-5
    assert all(torch.equal(v, method.encoder.state_dict()[k]) for k, v in encoder.state_dict().items())
    assert torch.equal(method.decoder.pos_embed, model.decoder_pos_embed[:, 1:])


def test_waveforms_go_in_too(tmp_path):
    encoder = mmssl.load(save(make(Encoder), tmp_path / "x.pth"), heads=HEADS)
    wave = torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(2)) * 0.1
    with torch.no_grad():
        tokens = encoder({"audio": encoder.tokenizers["audio"].spectrogram(wave)}).tokens
        assert torch.equal(encoder({"audio": wave}).tokens, tokens)


def test_position_tables_are_the_files_own(tmp_path):
    model = make(MaskedAutoencoder)
    noise = torch.randn(model.pos_embed.shape, generator=torch.Generator().manual_seed(3))
    for table, scheme in ((model.pos_embed.data.clone(), "sincos_swapped"), (noise, "learned")):
        model.pos_embed.data = table
        encoder = mmssl.load(save(model, tmp_path / "x.pth"), heads=HEADS)
        assert encoder.config.positions == scheme
        assert torch.equal(encoder.tokenizers["audio"].pos_embed, table[:, 1:])
        assert torch.equal(encoder.cls_token, model.cls_token + table[:, :1])


def test_another_length_recuts_the_table(tmp_path):
    model = make(MaskedAutoencoder)
    path = save(model, tmp_path / "x.pth")
    shorter = mmssl.load(path, heads=HEADS, frames=96).tokenizers["audio"]
    assert shorter.grid == (6, 8)
    assert torch.equal(shorter.pos_embed, model.pos_embed[:, 1:49])
    longer = mmssl.load(path, heads=HEADS, frames=256).tokenizers["audio"]
    assert torch.equal(longer.pos_embed[:, :96], model.pos_embed[:, 1:])
    row = [f(torch.tensor(k * 10000 ** (-j / 8))) for k in (0, 8) for f in (torch.sin, torch.cos) for j in range(8)]
    assert torch.allclose(longer.pos_embed[0, 96], torch.stack(row), atol=1e-5)  # column 96 mod 12, row 96 // 12
    with pytest.raises(MmsslError, match="not divisible by patch_size 16x16"):
        mmssl.load(path, heads=HEADS, frames=100)
    with pytest.raises(MmsslError, match="says itself that frames is 192"):
        mmssl.load_method(path, heads=HEADS, decoder_heads=2, frames=96)


def test_learned_tables_are_interpolated(tmp_path):
    model = make(Encoder)
    model.pos_embed.data.normal_(generator=torch.Generator().manual_seed(4))
    longer = mmssl.load(save(model, tmp_path / "x.pth"), heads=HEADS, frames=384).tokenizers["audio"]
    assert longer.grid == (24, 8)
    old = model.pos_embed.data[:, 1:].reshape(1, 12, 8, 32).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(old, size=(24, 8), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.allclose(longer.pos_embed, wanted, atol=1e-5)


def test_overlapping_patches(tmp_path, mel):
    model = make(MaskedAutoencoder, stride=10, frames=176)
    path = save(model, tmp_path / "x.pth", use_custom_patch=True, audio_exp=True)
    method = mmssl.load_method(path, heads=HEADS, decoder_heads=2)
    assert method.encoder.grids == {"audio": (17, 12)} and method.encoder.config.positions == "sincos"
    tokenizer = method.encoder.tokenizers["audio"].config
    assert (tokenizer.frames, tokenizer.stride) == (176, (10, 10))
    mel = mel[:, :, :176]
    masks, masked = mask_of(204)
    with torch.no_grad():
        theirs = model(normalised(mel), KEEP)
        total, count = method({"audio": mel}, masks=masks)["loss"]
        assert abs(total / count - model.loss(normalised(mel), theirs, masked)) < 1e-5
        assert_same_features(method.encoder, model.features(normalised(mel)), mel)


@pytest.mark.parametrize(
    ("stride", "frames", "arguments", "wanted"),
    [
        (10, 192, {}, ((18, 12), 192)),  # 216 tokens are 27 x 8 too: the table tells
        (16, 432, {}, ((27, 8), 432)),
        (10, 182, {}, ((17, 12), 176)),  # of 176 to 185 frames, the multiple of 16
        (10, 156, {"audio_exp": True}, ((15, 12), 160)),
    ],
)
def test_lattice_by_the_number_of_tokens(tmp_path, stride, frames, arguments, wanted):
    model = make(Encoder, stride=stride, frames=frames, depth=1)
    encoder = mmssl.load(save(model, tmp_path / "x.pth", **arguments), heads=HEADS)
    assert (encoder.grids["audio"], encoder.tokenizers["audio"].config.frames) == wanted


def test_overlap_is_told_by_the_arguments_too(tmp_path):
    model = make(Encoder, stride=10, frames=192, depth=1)
    model.pos_embed.data.normal_(generator=torch.Generator().manual_seed(4))
    for overlap, grid in ((True, (18, 12)), (False, (27, 8))):
        path = save(model, tmp_path / "x.pth", use_custom_patch=overlap)
        assert mmssl.load(path, heads=HEADS).grids["audio"] == grid
    assert mmssl.load(save(model, tmp_path / "x.pth"), heads=HEADS).grids["audio"] == (27, 8)
    path = save(model, tmp_path / "x.pth", use_custom_patch=True)
    assert mmssl.load(path, heads=HEADS, frames=188).tokenizers["audio"].config.frames == 188


@pytest.mark.parametrize(
    ("dataset", "frames"), [("audioset", 192), ("esc50", 512), ("speechcommands", 128), (None, 192)]
)
def test_fine_tuned_files(tmp_path, dataset, frames):
    model = make(Classifier, frames=frames, depth=1)
    path = save(model, tmp_path / "finetuned.pth", **({"dataset": dataset} if dataset else {}))
    classifier = load_classifier(path, heads=HEADS)
    mean, std = STATISTICS[dataset or "audioset"]
    tokenizer = classifier.encoder.tokenizers["audio"].config
    assert (tokenizer.mean, tokenizer.std, tokenizer.frames) == (mean, std, frames)
    assert classifier.pooling == "mean" and not classifier.encoder.config.final_norm
    mel = torch.randn(2, 1, frames, 128, generator=torch.Generator().manual_seed(5)) * std + mean
    with torch.no_grad():
        theirs = model(normalised(mel, mean, std))
        assert (classifier({"audio": mel}) - theirs).abs().max() < 1e-5
        assert_same_features(mmssl.load(path, heads=HEADS), model.trunk(normalised(mel, mean, std)), mel)
    with pytest.raises(MmsslError, match=r"holds the encoder alone, no decoder; .* give the authors' pretrained\.pth"):
        mmssl.load_method(path, heads=HEADS)


def test_classifier_of_shorter_sound(tmp_path, mel):
    model = make(Classifier)
    classifier = load_classifier(save(model, tmp_path / "x.pth"), heads=HEADS, frames=96)
    model.pos_embed.data = model.pos_embed.data[:, :49]
    with torch.no_grad():
        assert (classifier({"audio": mel[:, :, :96]}) - model(normalised(mel[:, :, :96]))).abs().max() < 1e-5


def test_training_arguments(tmp_path):
    model = make(MaskedAutoencoder)
    said = {"norm_pix_loss": False, "mask_ratio": 0.7, "mask_2d": True, "mask_t_prob": 0.6, "mask_f_prob": 0.5}
    config = mmssl.load_method(save(model, tmp_path / "x.pth", **said), heads=HEADS, decoder_heads=2).config
    assert not config.norm_pix and config.mask_ratio == 0.7
    assert (config.mask, config.time_ratio, config.frequency_ratio) == ("time_frequency", 0.6, 0.5)


@pytest.mark.parametrize("frames", [256, 128])
def test_squares_of_one_channel(tmp_path, make_vit, frames):
    """A square lattice may be an image's or a sound's: 256 tokens are 16 x 16 or 32 x 8, 64 are 8 x 8 in both."""
    grey = make_vit(img_size=frames, patch_size=16, in_chans=1)
    path = save(grey.state_dict(), tmp_path / "grey.pth")
    encoder = mmssl.load(path, heads=HEADS)
    assert encoder.modalities == ("image",)
    images = torch.rand(1, 1, frames, frames, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        theirs = grey.forward_features(encoder.tokenizers["image"].prepare(images))
        assert (encoder({"image": images}).tokens - theirs[:, 1:]).abs().max() < 1e-5
    heard = mmssl.load(path, heads=HEADS, modality="audio")
    assert heard.grids == {"audio": (frames * frames // 2048, 8)}
    assert mmssl.load(path, heads=HEADS, modality="audio", frames=64).grids == {"audio": (4, 8)}


def test_a_square_of_tokens_whose_table_is_of_another_lattice_is_audio(tmp_path):
    path = save(make(Encoder, frames=512, depth=1), tmp_path / "esc50.pth")
    assert mmssl.load(path, heads=HEADS).grids == {"audio": (32, 8)}
    short = make(Encoder, frames=128, depth=1)
    assert mmssl.load(save(short, tmp_path / "x.pth"), heads=HEADS).grids == {"image": (8, 8)}
    short.pos_embed.data = make(Encoder, frames=512).pos_embed.data[:, :65]  # the first 64 of a longer model's
    assert mmssl.load(save(short, tmp_path / "x.pth"), heads=HEADS).grids == {"audio": (8, 8)}
    assert mmssl.load(save(short, tmp_path / "x.pth"), heads=HEADS, image_size=128).grids == {"image": (8, 8)}


def test_oblong_grey_images_say_their_size(tmp_path, make_vit):
    path = save(make_vit(img_size=(64, 96), patch_size=8, in_chans=1).state_dict(), tmp_path / "x.pth")
    assert mmssl.load(path, heads=HEADS).grids == {"audio": (6, 16)}  # 96 patches, as 48 frames have
    assert mmssl.load(path, heads=HEADS, image_size=(64, 96)).grids == {"image": (8, 12)}
    with pytest.raises(MmsslError, match=r"image_size=\(H, W\)"):
        mmssl.load(path, heads=HEADS, modality="image")


def test_what_the_user_says_must_be_possible(tmp_path, make_vit):
    colours = save(make_vit().state_dict(), tmp_path / "x.pth")
    with pytest.raises(MmsslError, match="holds a model of image by its names and shapes, not of audio"):
        mmssl.load(colours, heads=HEADS, modality="audio")
    with pytest.raises(MmsslError, match="unknown modality 'sound'"):
        mmssl.load(colours, heads=HEADS, modality="sound")
    mmssl.load(colours, heads=HEADS).save_pretrained(tmp_path / "ours")
    with pytest.raises(MmsslError, match="says itself that modality is 'image'"):
        mmssl.load(tmp_path / "ours", modality="audio")
    heard = save(make(MaskedAutoencoder), tmp_path / "y.pth")
    with pytest.raises(MmsslError, match="holds a model of audio or image by its names and shapes, not of video"):
        mmssl.load_method(heard, heads=HEADS, modality="video")
    with pytest.raises(MmsslError, match="image_size= is for encoders of images or video, and this one reads audio"):
        mmssl.load(heard, heads=HEADS, image_size=224)
    with pytest.raises(MmsslError, match="says itself that decoder_heads is 2"):
        mmssl.load_method(heard, heads=HEADS, decoder_heads=4)


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("pos_embed", "lacks pos_embed"),
        ("blocks.1.attn.qkv.weight", r"lacks blocks\.1\.attn\.qkv\.weight"),
        ("norm.bias", r"lacks norm\.bias"),
        ("mask_token", "lacks mask_token"),
        ("decoder_pos_embed", "lacks decoder_pos_embed"),
        ("decoder_blocks.1.attn.tau", r"lacks decoder_blocks\.1\.attn\.tau"),
        ("decoder_blocks.1.attn.meta_mlp.fc2.bias", r"lacks decoder_blocks\.1\.attn\.meta_mlp\.fc2\.bias"),
        ("decoder_blocks.0.attn.tau", r"it also has decoder_blocks\.0\.attn\.meta_mlp"),
    ],
)
def test_missing_parts_are_named(tmp_path, gone, named):
    state = make(MaskedAutoencoder).state_dict()
    del state[gone]
    with pytest.raises(MmsslError, match=named):
        mmssl.load_method(save(state, tmp_path / "x.pth", audio_exp=True), heads=HEADS, decoder_heads=2)


def test_parts_without_a_place_and_wrong_shapes_are_named(tmp_path):
    state = make(MaskedAutoencoder).state_dict()
    for more, said in (
        ({"blocks.0.attn.extra": torch.zeros(4)}, r"no place for blocks\.0\.attn\.extra"),
        ({"decoder_blocks.0.extra": torch.zeros(4)}, r"not Audio-MAE's decoder: it also has decoder_blocks\.0\.extra"),
        (
            {"decoder_pred.weight": torch.zeros(64, 16)},
            r"other shape: decoder\.pred\.weight \(64, 16\), not \(256, 16\)",
        ),
        ({"decoder_pos_embed": torch.zeros(1, 49, 16)}, r"other shape: decoder\.pos_embed \(1, 48, 16\)"),
        ({"pos_embed": torch.zeros(1, 100, 32)}, "positions for 99 patches, and no number of frames of 128 mel bins"),
        ({"patch_embed.proj.weight": torch.zeros(32, 1, 2, 16, 16)}, "is not an image model: its patch projection"),
    ):
        with pytest.raises(MmsslError, match=said) as error:
            mmssl.load_method(save(state | more, tmp_path / "x.pth", audio_exp=True), heads=HEADS, decoder_heads=2)
        assert "\n" not in str(error.value)


def test_position_of_cls_in_the_decoder(tmp_path, mel):
    model = make(MaskedAutoencoder)
    model.decoder_pos_embed.data[:, 0] = 1  # before windows it does nothing
    masks, masked = mask_of(96)
    with torch.no_grad():
        method = mmssl.load_method(save(model, tmp_path / "x.pth"), heads=HEADS)
        ours = method.reconstruct({"audio": mel}, masks)["prediction_patches"]
        assert (ours[:, masked] - model(normalised(mel), KEEP)[:, masked]).abs().max() < 1e-5
    model = make(MaskedAutoencoder, decoder="global")
    model.decoder_pos_embed.data[:, 0] = 1
    with pytest.raises(MmsslError, match="gives the decoder's cls token a position"):
        mmssl.load_method(save(model, tmp_path / "x.pth"), heads=HEADS, decoder_heads=2)


SMALL = {"size": "custom", "dim": 32, "depth": 2, "heads": 4, "decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2}


def test_a_run_starts_from_it(tmp_path):
    """Facts that a file does not say are those of the published sizes, so that the model is of one."""
    model = make(MaskedAutoencoder, dim=384, heads=6, depth=1, decoder_dim=512, decoder_heads=16)
    path = save(model, tmp_path / "x.pth")
    shape = SMALL | {"dim": 384, "heads": 6, "depth": 1, "decoder_dim": 512, "decoder_heads": 16}
    same = create_method("audiomae", frames=192, **shape)
    assert "all weights" in load_into(same, path)
    assert torch.equal(same.decoder.blocks[1].attn.tau, model.decoder_blocks[1].attn.tau)
    assert torch.equal(same.decoder.pos_embed, model.decoder_pos_embed[:, 1:])
    shorter = create_method("audiomae", frames=96, **shape)
    assert "the encoder's weights" in load_into(shorter, path)
    assert torch.equal(shorter.encoder.tokenizers["audio"].pos_embed, model.pos_embed[:, 1:49])
    lower = create_method("audiomae", frames=192, mel_bins=64, **shape)
    load_into(lower, path)
    assert torch.equal(lower.encoder.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    with pytest.raises(MmsslError, match=r"holds a model of audio, and this is a model of image"):
        load_into(create_method("mae", image_size=32, **shape), path)


def test_runs_are_exported_and_read_back(tmp_path):
    method = create_method("audiomae", frames=192, **SMALL).eval()
    run = write_run(tmp_path / "run", method)
    out = export(run)
    encoder = mmssl.load(out)
    assert encoder.config == method.encoder.config
    assert all(torch.equal(v, method.encoder.state_dict()[k]) for k, v in encoder.state_dict().items())
    assert mmssl.load(out, frames=96, modality="audio").grids == {"audio": (6, 8)}
    assert mmssl.load_method(run).config == method.config
    card = (out / "README.md").read_text()
    assert "192 x 128, (16, 16)" in card and "at 16000 samples a second" in card and "padded or cut to 192" in card
    example = re.search(r"x = torch\.zeros\(\((.*)\)\)", card)
    assert example[1] == "1, 1, 30960"  # 25 ms and 191 times 10 ms
    with pytest.raises(MmsslError, match=r"an encoder of audio .* use format 'mmssl'"):
        export(run, format="timm")


def test_windows_that_never_shift(tmp_path, mel):
    """The arguments alone tell them from those that do."""
    model = make(MaskedAutoencoder, shift=0)
    method = mmssl.load_method(save(model, tmp_path / "x.pth", no_shift=True), heads=HEADS)
    masks, masked = mask_of(96)
    with torch.no_grad():
        theirs = model(normalised(mel), KEEP)
        total, count = method({"audio": mel}, masks=masks)["loss"]
        assert abs(total / count - model.loss(normalised(mel), theirs, masked)) < 1e-5
