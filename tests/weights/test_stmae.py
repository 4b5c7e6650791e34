"""ST-MAE's weights: mae_st's and PySlowFast's names, against the model written anew (stmae_models.py)."""

import argparse
import re

import pytest
import torch

import mmssl
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.nn.positions import interpolate_positions
from mmssl.weights.classifier import load_classifier
from mmssl.weights.init import load_into

HEADS, N = 4, 32
KEEP = torch.tensor([1, 4, 9, 17, 30])
MASKED = torch.tensor([i for i in range(N) if i not in KEEP])
CFG = "MVIT:\n  USE_MEAN_POOLING: {}\n  NUM_HEADS: 4\nDATA:\n  NUM_FRAMES: 4\n"


def save(state, path, key="model", **beside):
    torch.save({key: state, **beside}, path)
    return path


def pixels(clips):
    """As the authors feed them: (B, C, T, H, W), mean .45 and std .225."""
    return ((clips.float() / 255 - 0.45) / 0.225).transpose(1, 2)


def mask_of(clips):
    mask = torch.ones(len(clips), N, dtype=torch.bool)
    mask[:, KEEP] = False
    return {"video": mask}


@torch.no_grad()
def assert_same_features(encoder, model, clips, norm=True):
    theirs = model.trunk(pixels(clips))
    theirs = model.norm(theirs) if norm else theirs
    ours = encoder({"video": clips})
    scale = theirs.abs().max().clamp(min=1)
    assert (ours.tokens - theirs[:, 1:]).abs().max() < 1e-5 * scale
    assert (ours.cls - theirs[:, 0]).abs().max() < 1e-5 * scale


def slowfast_state(model, fused: bool = False) -> dict:
    """mae_st's names -> those of PySlowFast's MaskMViT, which has its decoder's layers and norm in `pred_head`."""
    places = {"decoder_blocks.": "pred_head.transforms.0.", "decoder_norm.": "pred_head.transforms.0.1."}
    places |= {"decoder_pred.": "pred_head.projections.0.", "decoder_pos_embed_": "dec_pos_embed_"}
    places |= {"head.": "head.projection."}
    state = {}
    for name, value in model.state_dict().items():
        start = next((p for p in places if name.startswith(p)), None)
        state[name if start is None else places[start] + name.removeprefix(start)] = value
    state.pop("decoder_cls_token", None)
    if fused:
        for name in [n for n in state if ".attn.q." in n]:
            three = [state.pop(name.replace(".q.", f".{x}.")) for x in "qkv"]
            state[name.replace(".q.", ".qkv.")] = torch.cat(three)
    return state


def test_pretraining_file_of_mae_st(tmp_path, make_stmae, clips):
    model = make_stmae("MaskedAutoencoder")
    path = save(model.state_dict(), tmp_path / "checkpoint-00099.pth", args=argparse.Namespace(mask_ratio=0.8))
    encoder = mmssl.load(path, heads=HEADS)
    assert encoder.config.positions == "separable" and encoder.config.qkv_bias == "full"
    assert_same_features(encoder, model, clips)
    method = mmssl.load_method(path, heads=HEADS, decoder_heads=2)
    assert method.config.norm_pix and method.config.mask_ratio == 0.8
    with torch.no_grad():
        theirs = model(pixels(clips), KEEP)
        ours = method.reconstruct({"video": clips}, mask_of(clips))["prediction_patches"]
        total, count = method({"video": clips}, masks=mask_of(clips))["loss"]
        loss = model.loss(pixels(clips), theirs, MASKED)
    assert (ours[:, MASKED] - theirs[:, MASKED]).abs().max() < 1e-5
    assert abs(total / count - loss) < 1e-5
    assert all(torch.equal(v, method.encoder.state_dict()[k]) for k, v in encoder.state_dict().items())


def test_raw_pixels_are_told_by_the_arguments(tmp_path, make_stmae):
    state = make_stmae("MaskedAutoencoder").state_dict()
    path = save(state, tmp_path / "x.pth", args=argparse.Namespace(norm_pix_loss=False))
    assert not mmssl.load_method(path, heads=HEADS, decoder_heads=2).config.norm_pix
    assert mmssl.load_method(path, heads=HEADS, decoder_heads=2, norm_pix=True).config.norm_pix


@pytest.mark.parametrize("fused", [False, True])
def test_pretraining_file_of_pyslowfast(tmp_path, make_stmae, clips, fused):
    model = make_stmae("MaskedAutoencoder")
    state = slowfast_state(model, fused)
    assert "pred_head.transforms.0.0.mlp.fc1.weight" in state and "dec_pos_embed_spatial" in state
    path = save(state, tmp_path / "k400_400ep_rep4_mr9_16x4.pyth", "model_state", cfg=CFG.format("false"), epoch=399)
    assert_same_features(mmssl.load(path, heads=HEADS), model, clips)
    with pytest.raises(MmsslError, match=r"PySlowFast's decoder.*read its encoder with mmssl\.load"):
        mmssl.load_method(path, heads=HEADS, decoder_heads=2)


def test_decoder_with_one_table_is_pyslowfasts_too(tmp_path, make_stmae, clips):
    model = make_stmae("MaskedAutoencoder")
    state = {k: v for k, v in slowfast_state(model).items() if not k.startswith("dec_pos_embed_")}
    state["decoder_pos_embed"] = torch.zeros(1, 1 + N, 32)  # MASK.DECODER_SEP_POS_EMBED False, its default
    path = save(state, tmp_path / "mae_pretrain_vit_large_k400.pth", "model_state")
    assert_same_features(mmssl.load(path, heads=HEADS), model, clips)
    with pytest.raises(MmsslError, match="PySlowFast's decoder"):
        mmssl.load_method(path, heads=HEADS, decoder_heads=2)


@pytest.mark.parametrize(
    ("names", "key", "beside"),
    [
        ("mae_st", "model", {}),
        ("pyslowfast", "model_state", {"cfg": CFG.format("true")}),
        ("pyslowfast", "model_state", {}),
        ("pyslowfast", "model_state", {"cfg": "MVIT: [unreadable"}),
    ],
)
def test_fine_tuned_files(tmp_path, make_stmae, clips, names, key, beside):
    model = make_stmae("Classifier")
    state = model.state_dict() if names == "mae_st" else slowfast_state(model)
    assert ("head.weight" in state) is (names == "mae_st")
    path = save(state, tmp_path / "finetuned.pth", key, **beside)
    encoder = mmssl.load(path, heads=HEADS)
    assert not encoder.config.final_norm
    assert_same_features(encoder, model, clips, norm=False)
    classifier = load_classifier(path, heads=HEADS)
    assert classifier.pooling == "mean"
    with torch.no_grad():
        assert (classifier({"video": clips}) - model(pixels(clips))).abs().max() < 1e-5
    with pytest.raises(MmsslError, match="holds the encoder alone, no decoder"):
        mmssl.load_method(path, heads=HEADS)


def test_fine_tuned_by_pyslowfast_on_the_cls_token(tmp_path, make_stmae, clips):
    model = make_stmae("Classifier")
    path = save(slowfast_state(model), tmp_path / "x.pyth", "model_state", cfg=CFG.format("false"))
    classifier = load_classifier(path, heads=HEADS)
    assert classifier.pooling == "cls"
    assert_same_features(classifier.encoder, model, clips)
    with torch.no_grad():
        theirs = model.head(model.norm(model.trunk(pixels(clips)))[:, 0])
        assert (classifier({"video": clips}) - theirs).abs().max() < 1e-5


def test_published_width_has_published_heads(tmp_path, make_stmae, clips):
    model = make_stmae("Classifier", dim=384, heads=6, depth=1)
    encoder = mmssl.load(save(model.state_dict(), tmp_path / "x.pth"))
    assert encoder.config.heads == 6
    assert_same_features(encoder, model, clips, norm=False)


def test_without_a_cls_token(tmp_path, make_stmae, clips):
    model = make_stmae("Encoder")
    state = {k: v for k, v in model.state_dict().items() if k not in ("cls_token", "pos_embed_class")}
    encoder = mmssl.load(save(state, tmp_path / "x.pth"), heads=HEADS)
    assert encoder.cls_token is None
    with torch.no_grad():
        x = model.patch_embed.proj(pixels(clips)).flatten(2).transpose(1, 2) + model.positions()[1]
        for block in model.blocks:
            x = block(x)
        assert (encoder({"video": clips}).tokens - model.norm(x)).abs().max() < 1e-5


def test_other_clips_interpolate_both_tables(tmp_path, make_stmae):
    model = make_stmae("Encoder")
    path = save(model.state_dict(), tmp_path / "x.pth")
    tokenizer = mmssl.load(path, heads=HEADS, frames=8, image_size=(16, 48)).tokenizers["video"]
    assert tokenizer.grid == (4, 2, 6)
    wanted = interpolate_positions(model.pos_embed_spatial.data, (4, 4), (2, 6))
    assert torch.allclose(tokenizer.pos_embed_spatial, wanted, atol=1e-6)
    time = torch.nn.functional.interpolate(model.pos_embed_temporal.data.transpose(1, 2), size=4, mode="linear")
    assert torch.allclose(tokenizer.pos_embed_temporal, time.transpose(1, 2), atol=1e-6)
    with pytest.raises(MmsslError, match="tubelet 2 does not divide the 3 frames"):
        mmssl.load(path, heads=HEADS, frames=3)


def test_places_of_no_square_need_the_image_size(tmp_path, make_stmae):
    path = save(make_stmae("MaskedAutoencoder", grid=(2, 2, 3)).state_dict(), tmp_path / "x.pth")
    with pytest.raises(MmsslError, match=r"positions for 6 places.*image_size=\(H, W\)"):
        mmssl.load(path, heads=HEADS)
    with pytest.raises(MmsslError, match="positions for 6 places"):
        mmssl.load(path, heads=HEADS, image_size=32)
    assert mmssl.load(path, heads=HEADS, image_size=(16, 24)).grids == {"video": (2, 2, 3)}
    method = mmssl.load_method(path, heads=HEADS, decoder_heads=2, image_size=(16, 24))
    assert method.encoder.grids == {"video": (2, 2, 3)}


def test_what_the_file_says_itself_is_not_overridden(tmp_path, make_stmae):
    path = save(make_stmae("MaskedAutoencoder").state_dict(), tmp_path / "x.pth")
    with pytest.raises(MmsslError, match="says itself that frames is 4"):
        mmssl.load_method(path, heads=HEADS, decoder_heads=2, frames=16)
    with pytest.raises(MmsslError, match=r"says itself that image_size is \(32, 32\)"):
        mmssl.load_method(path, heads=HEADS, decoder_heads=2, image_size=64)


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("pos_embed_class", "lacks pos_embed_class"),
        ("pos_embed_temporal", "lacks pos_embed_temporal"),
        ("blocks.1.attn.k.weight", r"lacks blocks\.1\.attn\.qkv\.weight"),
        ("blocks.1.attn.q.bias", r"lacks blocks\.1\.attn\.qkv\.bias"),
        ("norm.bias", r"lacks norm\.bias"),
        ("decoder_cls_token", "lacks decoder_cls_token"),
        ("decoder_pos_embed_temporal", "lacks decoder_pos_embed_temporal"),
        ("decoder_blocks.0.attn.v.weight", r"lacks decoder_blocks\.0\.attn\.qkv\.weight"),
    ],
)
def test_missing_parts_are_named(tmp_path, make_stmae, gone, named):
    state = make_stmae("MaskedAutoencoder").state_dict()
    del state[gone]
    with pytest.raises(MmsslError, match=named):
        mmssl.load_method(save(state, tmp_path / "x.pth"), heads=HEADS, decoder_heads=2)


def test_of_three_biases_one_missing_is_noticed(tmp_path, make_stmae):
    state = make_stmae("MaskedAutoencoder", depth=1).state_dict()
    del state["blocks.0.attn.q.bias"]
    with pytest.raises(MmsslError, match=r"no place for blocks\.0\.attn\.k\.bias, blocks\.0\.attn\.v\.bias"):
        mmssl.load(save(state, tmp_path / "x.pth"), heads=HEADS)


def test_parts_without_a_place_are_named(tmp_path, make_stmae):
    state = make_stmae("MaskedAutoencoder").state_dict()
    for more, said in (
        ({"blocks.0.attn.pool_q.weight": torch.zeros(4)}, r"no place for blocks\.0\.attn\.pool_q\.weight"),
        ({"decoder_blocks.0.extra": torch.zeros(4)}, r"not ST-MAE's decoder: it also has decoder_blocks\.0\.extra"),
        ({"decoder_pred.weight": torch.zeros(384, 32)}, "predicts 384 values a token, not one frame's 192"),
        ({"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8)}, "is not a video model"),
    ):
        with pytest.raises(MmsslError, match=said):
            mmssl.load_method(save(state | more, tmp_path / "x.pth"), heads=HEADS, decoder_heads=2)


def test_a_run_starts_from_it(tmp_path, make_stmae):
    model = make_stmae("MaskedAutoencoder", dim=384, heads=6, decoder_dim=512, decoder_heads=16, depth=1)
    path = save(model.state_dict(), tmp_path / "x.pth")
    shape = {"size": "custom", "dim": 384, "depth": 1, "heads": 6, "patch_size": 8, "image_size": 32, "mask_ratio": 0.5}
    same = create_method("stmae", frames=4, decoder_depth=1, **shape)
    assert "all weights" in load_into(same, path)
    assert torch.equal(same.decoder.pos_embed_spatial, model.decoder_pos_embed_spatial)
    assert torch.equal(same.encoder.cls_token, model.cls_token + model.pos_embed_class)
    longer = create_method("stmae", frames=8, decoder_depth=1, **shape)
    assert re.search("the encoder's weights", load_into(longer, path))
    assert longer.encoder.tokenizers["video"].pos_embed_temporal.shape == (1, 4, 384)
