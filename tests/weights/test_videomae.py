"""VideoMAE's authors' files, against transformers' outputs; starting from weights."""

import argparse

import pytest
import torch
from videomae_models import (
    DIM,
    FRAMES,
    HEADS,
    OWN,
    SIZE,
    TINY,
    as_the_authors,
    assert_same_features,
    assert_same_method,
    authors_state,
    save,
    write_run,
)

import mmssl
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.nn.positions import sinusoid
from mmssl.weights.classifier import load_classifier
from mmssl.weights.init import load_into


@pytest.mark.parametrize("key", ["model", "module"])
def test_pretraining_file(tmp_path, make_videomae, clips, mask, key):
    model = as_the_authors(make_videomae())
    path = save(authors_state(model), tmp_path / "checkpoint.pth", key)
    encoder = mmssl.load(path, **OWN)
    assert not encoder.training
    assert encoder.config.final_norm and encoder.config.qkv_bias == "qv" and encoder.config.norm_eps == 1e-6
    assert_same_features(encoder, model.videomae, clips)
    assert_same_features(encoder, model.videomae, clips, mask)
    method = mmssl.load_method(path, decoder_heads=2, **OWN)
    assert method.config.norm_pix and method.config.mask_ratio == 0.9
    assert_same_method(method, model, clips, mask)
    assert all(torch.equal(v, method.encoder.state_dict()[k]) for k, v in encoder.state_dict().items())


def test_raw_pixels(tmp_path, make_videomae, clips, mask):
    model = as_the_authors(make_videomae(norm_pix_loss=False))
    path = save(authors_state(model), tmp_path / "x.pth", args=argparse.Namespace(normlize_target=False))
    for said in ({}, {"norm_pix": False}):
        assert_same_method(mmssl.load_method(path, decoder_heads=2, **said, **OWN), model, clips, mask)
    assert mmssl.load_method(path, decoder_heads=2, norm_pix=True, **OWN).config.norm_pix


def test_lattice_is_the_users_or_the_arguments_or_16_frames_of_224(tmp_path, make_videomae):
    state = authors_state(make_videomae())
    arguments = argparse.Namespace(num_frames=8, num_segments=1, input_size=64, mask_ratio=0.75)
    bare, told = save(state, tmp_path / "bare.pth"), save(state, tmp_path / "told.pth", args=arguments)
    heads = {"heads": HEADS, "decoder_heads": 2}
    for path, said, grid in (
        (bare, {}, (8, 28, 28)),
        (bare, {"frames": 6, "image_size": (16, 24)}, (3, 2, 3)),
        (told, {}, (4, 8, 8)),
        (told, {"frames": 2, "image_size": 16}, (1, 2, 2)),
    ):
        encoder, method = mmssl.load(path, heads=HEADS, **said), mmssl.load_method(path, **heads, **said)
        assert encoder.grids == method.encoder.grids == {"video": grid}
        n = encoder.tokenizers["video"].num_tokens
        assert torch.equal(encoder.tokenizers["video"].pos_embed[0], sinusoid(DIM, n))
        assert torch.equal(method.decoder.pos_embed[0], sinusoid(32, n))
    assert mmssl.load_method(told, **heads).config.mask_ratio == 0.75
    with pytest.raises(MmsslError, match="tubelet 2 does not divide the 5 frames"):
        mmssl.load(bare, heads=HEADS, frames=5)


def test_published_widths_have_published_heads(tmp_path, make_videomae, clips):
    shape = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 6, "intermediate_size": 1536}
    shape |= {"decoder_hidden_size": 192, "decoder_num_attention_heads": 3, "decoder_intermediate_size": 768}
    model = make_videomae(**shape)
    method = mmssl.load_method(save(authors_state(model), tmp_path / "small.pth"), frames=FRAMES, image_size=SIZE)
    assert method.encoder.config.heads == 6 and method.decoder.blocks[0].attn.heads == 3
    assert_same_features(method.encoder, model.videomae, clips)


def test_half_precision_and_scaled_branches(tmp_path, make_videomae):
    state = {k: v.half() for k, v in authors_state(make_videomae()).items()}
    for k in range(2):
        state |= {f"encoder.blocks.{k}.gamma_{i}": torch.full((DIM,), 0.5).half() for i in (1, 2)}
    path = save(state, tmp_path / "x.pth")
    encoder = mmssl.load(path, **OWN)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert torch.equal(encoder.blocks[1].ls2.gamma, torch.full((DIM,), 0.5))
    with pytest.raises(MmsslError, match="no VideoMAE as published"):
        mmssl.load_method(path, decoder_heads=2, **OWN)


@pytest.mark.parametrize("prefix", ["", "encoder.", "backbone."])
def test_fine_tuned_file(tmp_path, make_videomae, clips, prefix):
    model = as_the_authors(make_videomae("ForVideoClassification"))
    path = save(authors_state(model, prefix), tmp_path / "finetuned.pth", "module")
    encoder = mmssl.load(path, **OWN)
    assert not encoder.config.final_norm
    assert_same_features(encoder, model.videomae, clips)
    classifier = load_classifier(path, **OWN)
    assert classifier.pooling == "mean" and classifier.head.norm.eps == 1e-6
    with torch.no_grad():
        logits = classifier({"video": clips})
        theirs = model(encoder.tokenizers["video"].prepare(clips)).logits
    assert logits.shape == (2, 5)
    assert (logits - theirs).abs().max() < 1e-5
    with pytest.raises(MmsslError, match="holds the encoder alone, no decoder"):
        mmssl.load_method(path, **OWN)


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("encoder.patch_embed.proj.weight", "is of no layout"),
        ("encoder.blocks.1.attn.v_bias", r"lacks blocks\.1\.attn\.v_bias"),
        ("encoder.norm.bias", r"lacks norm\.bias"),
        ("decoder.blocks.0.attn.qkv.weight", r"lacks decoder_blocks\.0\.attn\.qkv\.weight"),
        ("encoder_to_decoder.weight", r"lacks decoder_embed\.weight"),
        ("mask_token", "lacks mask_token"),
    ],
)
def test_missing_parts_are_named(tmp_path, make_videomae, gone, named):
    state = authors_state(make_videomae())
    del state[gone]
    with pytest.raises(MmsslError, match=named):
        mmssl.load_method(save(state, tmp_path / "x.pth"), decoder_heads=2, **OWN)


def test_parts_without_a_place_and_wrong_shapes_are_named(tmp_path, make_videomae):
    state = authors_state(make_videomae())
    for more, said in (
        ({"encoder.blocks.0.attn.logit_scale": torch.zeros(4)}, r"no place for blocks\.0\.attn\.logit_scale"),
        ({"decoder.blocks.0.extra": torch.zeros(4)}, r"not VideoMAE's decoder: it also has decoder_blocks\.0\.extra"),
        ({"decoder.head.weight": torch.zeros(7, 32)}, r"decoder\.pred\.weight \(7, 32\)"),
    ):
        with pytest.raises(MmsslError, match=said):
            mmssl.load_method(save(state | more, tmp_path / "x.pth"), decoder_heads=2, **OWN)


def test_damaged_and_pickled_files(tmp_path, make_videomae):
    path = save(authors_state(make_videomae()), tmp_path / "x.pth")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(MmsslError, match="cut short or damaged"):
        mmssl.load(path, **OWN)
    torch.save({"model": make_videomae()}, path)
    with pytest.raises(MmsslError, match="pickled Python objects"):
        mmssl.load_method(path, **OWN)


def test_frames_are_of_video_alone(tmp_path, make_vit):
    torch.save({"model": make_vit().state_dict()}, tmp_path / "mae.pth")
    with pytest.raises(MmsslError, match="frames= is for encoders of video or audio, and this one reads image"):
        mmssl.load(tmp_path / "mae.pth", heads=HEADS, frames=16)


def test_a_run_of_other_clips_starts_from_all_weights(tmp_path):
    source = create_method("videomae", **TINY)
    method = create_method("videomae", **(TINY | {"frames": 8, "image_size": (16, 40)}))
    assert "all weights" in load_into(method, write_run(tmp_path, source))
    own, theirs = method.state_dict(), source.state_dict()
    assert all(torch.equal(own[k], v) for k, v in theirs.items() if not k.endswith("pos_embed"))
    assert torch.equal(method.encoder.tokenizers["video"].pos_embed[0], sinusoid(DIM, 4 * 2 * 5))
    assert torch.equal(method.decoder.pos_embed[0], sinusoid(32, 4 * 2 * 5))


def test_a_run_starts_from_the_encoder_alone_where_the_decoder_is_another(tmp_path, make_videomae):
    make_videomae("Model").save_pretrained(tmp_path)
    method = create_method("videomae", **(TINY | {"frames": 6, "modality": "video/front"}))
    assert "the encoder's weights" in load_into(method, tmp_path)
    wanted = mmssl.load(tmp_path, frames=6)
    assert torch.equal(method.encoder.blocks[1].mlp.fc2.weight, wanted.blocks[1].mlp.fc2.weight)
    tokenizer = method.encoder.tokenizers["video/front"]
    assert torch.equal(tokenizer.proj.weight, wanted.tokenizers["video"].proj.weight)
    assert torch.equal(tokenizer.pos_embed, wanted.tokenizers["video"].pos_embed)


def test_images_do_not_start_video_nor_the_other_way_round(tmp_path, make_vitmae, make_videomae):
    make_vitmae().save_pretrained(tmp_path / "image")
    make_videomae().save_pretrained(tmp_path / "video")
    with pytest.raises(MmsslError, match="holds a model of image, and this is a model of video"):
        load_into(create_method("videomae", **TINY), tmp_path / "image")
    image = {k: v for k, v in TINY.items() if k != "frames"}
    with pytest.raises(MmsslError, match="holds a model of video, and this is a model of image"):
        load_into(create_method("mae", **image), tmp_path / "video")
