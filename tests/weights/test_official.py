"""The MAE authors' files: all layouts, against timm's and transformers' outputs."""

import argparse
import re

import pytest
import torch

import mmssl
from mmssl.errors import MmsslError
from mmssl.nn.positions import sincos_2d
from mmssl.nn.transformer import BlockConfig, Mlp
from mmssl.weights.layout import Facts, Published, Sizes
from mmssl.weights.official import build_mae, encoder_to_authors, mae_to_authors

DIM, HEADS, N = 64, 4, 16


def full_state(vitmae) -> dict:
    """A transformers ViTMAE's weights under the authors' names, renamed here by hand and not by the code under test."""
    state = {}
    own = vitmae.state_dict()
    state["cls_token"] = own["vit.embeddings.cls_token"]
    state["pos_embed"] = own["vit.embeddings.position_embeddings"]
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = own[f"vit.embeddings.patch_embeddings.projection.{kind}"]
        state[f"norm.{kind}"] = own[f"vit.layernorm.{kind}"]
        for part in ("embed", "norm", "pred"):
            state[f"decoder_{part}.{kind}"] = own[f"decoder.decoder_{part}.{kind}"]
        for ours, theirs in (("blocks", "vit.layers"), ("decoder_blocks", "decoder.decoder_layers")):
            for k in {int(m[1]) for n in own if (m := re.match(rf"{theirs}\.(\d+)\.", n))}:
                a, b = f"{ours}.{k}", f"{theirs}.{k}"
                qkv = [own[f"{b}.attention.{x}_proj.{kind}"] for x in "qkv"]
                state[f"{a}.attn.qkv.{kind}"] = torch.cat(qkv)
                state[f"{a}.attn.proj.{kind}"] = own[f"{b}.attention.o_proj.{kind}"]
                state[f"{a}.norm1.{kind}"] = own[f"{b}.layernorm_before.{kind}"]
                state[f"{a}.norm2.{kind}"] = own[f"{b}.layernorm_after.{kind}"]
                state[f"{a}.mlp.fc1.{kind}"] = own[f"{b}.mlp.fc1.{kind}"]
                state[f"{a}.mlp.fc2.{kind}"] = own[f"{b}.mlp.fc2.{kind}"]
    return state | {
        "mask_token": own["decoder.mask_token"],
        "decoder_pos_embed": own["decoder.decoder_pos_embed"],
    }


def save(state, path, **beside):
    torch.save({"model": state, **beside}, path)
    return path


@torch.no_grad()
def assert_same_features(encoder, vit, images):
    features = encoder({"image": images})
    theirs = vit.forward_features(encoder.tokenizers["image"].prepare(images))
    assert (features.tokens - theirs[:, 1:]).abs().max() < 1e-5
    assert (features.cls - theirs[:, 0]).abs().max() < 1e-5


def test_encoder_file_equals_timm(tmp_path, make_vit, images):
    vit = make_vit()
    encoder = mmssl.load(save(vit.state_dict(), tmp_path / "mae_pretrain_vit_tiny.pth"), heads=HEADS)
    assert not encoder.training
    assert encoder.config.norm_eps == 1e-6
    assert_same_features(encoder, vit, images)


def test_safetensors_and_bare_state_dicts_equal_timm(tmp_path, make_vit, images):
    from safetensors.torch import save_file

    vit = make_vit()
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    torch.save(vit.state_dict(), tmp_path / "bare.pth")
    for name in ("vit.safetensors", "bare.pth"):
        assert_same_features(mmssl.load(tmp_path / name, heads=HEADS), vit, images)


def test_half_precision_file_gives_float32(tmp_path, make_vit):
    state = {k: v.half() for k, v in make_vit().state_dict().items()}
    encoder = mmssl.load(save(state, tmp_path / "x.pth"), heads=HEADS)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("settings", [{"init_values": 0.1}, {"qkv_bias": False}, {"mlp_ratio": 3.3}])
def test_options_are_read_from_the_names(tmp_path, make_vit, images, settings):
    vit = make_vit(**settings)
    assert_same_features(mmssl.load(save(vit.state_dict(), tmp_path / "x.pth"), heads=HEADS), vit, images)


def test_no_row_for_cls_in_the_position_table(tmp_path, make_vit, images):
    vit = make_vit(no_embed_class=True)
    assert_same_features(mmssl.load(save(vit.state_dict(), tmp_path / "x.pth"), heads=HEADS), vit, images)


def test_encoder_without_cls(tmp_path, make_vit, images):
    vit = make_vit(class_token=False, global_pool="avg", fc_norm=False)
    encoder = mmssl.load(save(vit.state_dict(), tmp_path / "x.pth"), heads=HEADS)
    features = encoder({"image": images})
    assert features.cls is None
    assert (features.tokens - vit.forward_features(encoder.tokenizers["image"].prepare(images))).abs().max() < 1e-5


def test_position_table_is_the_files_own(tmp_path, make_vit):
    vit = make_vit()
    with torch.no_grad():
        vit.pos_embed[0, 0] = 0
        vit.pos_embed[0, 1:] = sincos_2d(DIM, (4, 4)) + 1e-6  # sine-cosine but for rounding, as published tables are
    encoder = mmssl.load(save(vit.state_dict(), tmp_path / "x.pth"), heads=HEADS)
    assert encoder.config.positions == "sincos"
    assert torch.equal(encoder.tokenizers["image"].pos_embed, vit.pos_embed[:, 1:])
    assert torch.equal(encoder.cls_token, vit.cls_token)


def test_another_image_size_interpolates_the_table(tmp_path, make_vit, images):
    vit = make_vit()
    path = save(vit.state_dict(), tmp_path / "x.pth")
    encoder = mmssl.load(path, heads=HEADS, image_size=(48, 16))
    square = vit.pos_embed[:, 1:].reshape(1, 4, 4, DIM).permute(0, 3, 1, 2)
    wanted = (
        torch.nn.functional.interpolate(square, size=(6, 2), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 12, DIM)
    )
    assert torch.allclose(encoder.tokenizers["image"].pos_embed, wanted, atol=1e-6)
    assert encoder({"image": torch.zeros(1, 3, 48, 16, dtype=torch.uint8)}).tokens.shape == (1, 12, DIM)
    assert_same_features(mmssl.load(path, heads=HEADS, image_size=32), vit, images)
    with pytest.raises(MmsslError, match="not divisible"):
        mmssl.load(path, heads=HEADS, image_size=30)


def test_table_of_no_square_needs_the_image_size(tmp_path, make_vit):
    vit = make_vit(img_size=(16, 48))
    path = save(vit.state_dict(), tmp_path / "x.pth")
    with pytest.raises(MmsslError, match=r"image_size=\(H, W\)"):
        mmssl.load(path, heads=HEADS)
    encoder = mmssl.load(path, heads=HEADS, image_size=(16, 48))
    assert torch.equal(encoder.tokenizers["image"].pos_embed, vit.pos_embed[:, 1:])


def test_full_file_gives_the_whole_method(tmp_path, make_vitmae, images):
    vitmae = make_vitmae()
    path = save(full_state(vitmae), tmp_path / "mae_pretrain_vit_tiny_full.pth")
    method = mmssl.load_method(path, heads=HEADS, decoder_heads=2)
    noise = torch.rand(len(images), N, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = vitmae(method.tokenizer.prepare(images), noise=noise)
        total, count = method({"image": images}, masks={"image": theirs.mask.bool()})["loss"]
    assert method.config.norm_pix
    assert abs(total / count - theirs.loss) < 1e-5
    encoder = mmssl.load(path, heads=HEADS)
    assert all(torch.equal(v, method.encoder.state_dict()[k]) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("name", "beside", "given", "wanted"),
    [
        ("mae_pretrain_vit_tiny_full.pth", {}, None, True),
        ("mae_visualize_vit_tiny.pth", {}, None, False),
        ("mae_visualize_vit_tiny.pth", {}, True, True),
        ("mae_pretrain_vit_tiny_full.pth", {}, False, False),
        ("checkpoint-799.pth", {"args": argparse.Namespace(norm_pix_loss=False)}, None, False),
        ("checkpoint-799.pth", {"args": argparse.Namespace(norm_pix_loss=True)}, None, True),
    ],
)
def test_whether_pixels_are_normalised_comes_from_arguments_name_or_user(
    tmp_path, make_vitmae, name, beside, given, wanted
):
    path = save(full_state(make_vitmae()), tmp_path / name, **beside)
    method = mmssl.load_method(path, heads=HEADS, decoder_heads=2, norm_pix=given)
    assert method.config.norm_pix is wanted


def test_raw_pixel_file_has_the_raw_loss(tmp_path, make_vitmae, images):
    vitmae = make_vitmae(norm_pix_loss=False)
    method = mmssl.load_method(save(full_state(vitmae), tmp_path / "mae_visualize.pth"), heads=HEADS, decoder_heads=2)
    noise = torch.rand(len(images), N, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = vitmae(method.tokenizer.prepare(images), noise=noise)
        total, count = method({"image": images}, masks={"image": theirs.mask.bool()})["loss"]
    assert abs(total / count - theirs.loss) < 1e-5 * theirs.loss.clamp(min=1)


def test_published_widths_have_published_heads(tmp_path, make_vit, images):
    vit = make_vit(embed_dim=384, depth=1, num_heads=6)
    path = save(vit.state_dict(), tmp_path / "small.pth")
    encoder = mmssl.load(path)
    assert encoder.config.heads == 6
    assert_same_features(encoder, vit, images)
    mvp = make_vit(embed_dim=384, depth=1, num_heads=12)  # the same names and shapes, another model
    assert_same_features(mmssl.load(path, heads=12), mvp, images)


def test_unknown_width_asks_for_heads(tmp_path, make_vit):
    path = save(make_vit().state_dict(), tmp_path / "x.pth")
    with pytest.raises(MmsslError, match="say it with heads="):
        mmssl.load(path)
    with pytest.raises(MmsslError, match="does not divide"):
        mmssl.load(path, heads=5)


def test_encoder_file_has_no_method(tmp_path, make_vit):
    path = save(make_vit().state_dict(), tmp_path / "mae_pretrain_vit_tiny.pth")
    with pytest.raises(MmsslError, match="holds the encoder alone"):
        mmssl.load_method(path, heads=HEADS)


def test_fine_tuned_files(tmp_path, make_vit, images):
    pooled = make_vit(global_pool="avg", num_classes=5)  # fc_norm after pooling, no norm before
    assert "norm.weight" not in pooled.state_dict()
    encoder = mmssl.load(save(pooled.state_dict(), tmp_path / "finetuned.pth"), heads=HEADS)
    assert not encoder.config.final_norm
    assert_same_features(encoder, pooled, images)
    assert encoder.config.positions == "learned"


@pytest.mark.parametrize(("dim", "hidden"), [(28, 61), (768, 3072), (1152, 4304), (64, 211)])
def test_hidden_width_survives_the_ratio(dim, hidden):
    """28 * (61 / 28) is less than 61 in floating point."""
    ratio = Sizes(dim, 1, hidden, 4, "full", False).mlp_ratio
    assert Mlp(BlockConfig(dim=dim, heads=4, mlp_ratio=ratio)).fc1.out_features == hidden


@pytest.mark.parametrize("gone", ["pos_embed", "blocks.1.mlp.fc2.bias", "norm.bias", "blocks.0.attn.qkv.weight"])
def test_missing_keys_are_named(tmp_path, make_vit, gone):
    state = make_vit().state_dict()
    del state[gone]
    with pytest.raises(MmsslError, match=f"lacks {re.escape(gone)}"):
        mmssl.load(save(state, tmp_path / "x.pth"), heads=HEADS)


def test_missing_decoder_keys_are_named(tmp_path, make_vitmae):
    state = full_state(make_vitmae())
    del state["decoder_blocks.0.norm1.weight"]
    with pytest.raises(MmsslError, match=r"lacks decoder_blocks\.0\.norm1\.weight"):
        mmssl.load_method(save(state, tmp_path / "x.pth"), heads=HEADS, decoder_heads=2)


def test_parts_without_a_place_are_named(tmp_path, make_vit):
    for settings, name in (
        ({"pre_norm": True}, "norm_pre"),
        ({"qk_norm": True}, "q_norm"),
        ({"reg_tokens": 2}, "reg_token"),
    ):
        with pytest.raises(MmsslError, match=name):
            mmssl.load(save(make_vit(**settings).state_dict(), tmp_path / "x.pth"), heads=HEADS)


def test_wrong_shapes_are_named(tmp_path, make_vit):
    state = make_vit().state_dict()
    state["blocks.1.attn.proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(MmsslError, match=r"blocks\.1\.attn\.proj\.weight \(3, 3\)"):
        mmssl.load(save(state, tmp_path / "x.pth"), heads=HEADS)


def test_video_model_is_no_image_model(tmp_path, make_vit):
    state = make_vit().state_dict()
    state["patch_embed.proj.weight"] = torch.zeros(DIM, 3, 2, 8, 8)
    with pytest.raises(MmsslError, match="not an image model"):
        mmssl.load(save(state, tmp_path / "x.pth"), heads=HEADS)


def test_other_layouts_are_refused(tmp_path):
    with pytest.raises(MmsslError, match="of no layout that can be read"):
        mmssl.load(save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth"))
    with pytest.raises(MmsslError, match="without their settings"):
        mmssl.load(save({"tokenizers.image.proj.weight": torch.zeros(3)}, tmp_path / "ours.pth"))


def test_decoder_with_a_position_for_cls_is_refused(make_vitmae):
    state = full_state(make_vitmae())
    state["decoder_pos_embed"] = state["decoder_pos_embed"] + 1
    with pytest.raises(MmsslError, match="cls token a position"):
        build_mae(Published(state, "x", Facts(heads=HEADS, decoder_heads=2)))


def test_there_and_back_is_exact(make_vitmae):
    state = full_state(make_vitmae())
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"][:, 0] = 0
    method = build_mae(Published(state, "x", Facts(heads=HEADS, decoder_heads=2)))
    back = mae_to_authors(method)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)
    encoder = encoder_to_authors(method.encoder)
    assert all(torch.equal(v, state[k]) for k, v in encoder.items())
    assert not any(k.startswith(("decoder", "mask")) for k in encoder)
