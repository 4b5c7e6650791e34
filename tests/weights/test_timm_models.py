"""timm's ViTs by name and from folders, in and out."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import mmssl
from mmssl.errors import MmsslError
from mmssl.weights.export import export

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}


def write_folder(model, folder, **arguments):
    """A folder in the layout of timm's hub repositories, as timm's save_for_hf makes it."""
    folder.mkdir(exist_ok=True)
    about = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input_size": [3, 32, 32], "num_classes": 0}
    about |= {"first_conv": "patch_embed.proj", "classifier": "head"}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": model.num_classes, "pretrained_cfg": about}
    (folder / "config.json").write_text(json.dumps(config | {"model_args": TINY | arguments}))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@torch.no_grad()
def assert_same_features(encoder, vit, images):
    features = encoder({"image": images})
    theirs = vit.forward_features(encoder.tokenizers["image"].prepare(images))
    assert (features.tokens - theirs[:, -features.tokens.shape[1] :]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"])
def test_named_architecture_with_random_weights(name):
    encoder = mmssl.load(f"timm:{name}", pretrained=False)
    assert encoder.config.heads == 3
    assert encoder.config.positions == "learned"
    assert encoder.config.tokenizers["image"].mean == (0.5, 0.5, 0.5)  # what these weights were trained with
    assert encoder({"image": torch.zeros(1, 3, 224, 224, dtype=torch.uint8)}).tokens.shape == (1, 196, 192)


def test_weights_of_a_named_model_come_through_the_hub_cache(tmp_path, monkeypatch):
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr("mmssl.weights.timm_models.download", lambda name, typed: asked.append(name) or tmp_path)
    encoder = mmssl.load("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert asked == ["timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"]
    assert torch.equal(encoder.blocks[3].attn.qkv.weight, model.blocks[3].attn.qkv.weight)
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert_same_features(encoder, model, image)


def test_offline_is_one_sentence(offline):
    with pytest.raises(MmsslError, match="could not be had from the Hugging Face hub") as error:
        mmssl.load("timm:vit_base_patch16_224.mae")
    assert "\n" not in str(error.value)


def test_unknown_names():
    with pytest.raises(MmsslError, match="did you mean 'vit_base_patch16_224'"):
        mmssl.load("timm:vit_base_patch_16_224")
    with pytest.raises(MmsslError, match="did you mean 'mae'"):
        mmssl.load("timm:vit_base_patch16_224.mea")
    with pytest.raises(MmsslError, match="an encoder alone"):
        mmssl.load_method("timm:vit_base_patch16_224.mae")


def test_folder_equals_timm(tmp_path, make_vit, images):
    vit = make_vit()
    encoder = mmssl.load(write_folder(vit, tmp_path))
    assert_same_features(encoder, vit, images)
    assert encoder.config.tokenizers["image"].std == (0.25, 0.25, 0.25)


def test_supervised_models_with_head_and_pooling(tmp_path, make_vit, images):
    vit = make_vit(global_pool="avg", num_classes=5)
    assert_same_features(mmssl.load(write_folder(vit, tmp_path, global_pool="avg")), vit, images)


def test_what_is_no_plain_vit_is_refused(tmp_path, make_vit):
    with pytest.raises(MmsslError, match="not a plain ViT"):
        mmssl.load("timm:resnet18", pretrained=False)
    with pytest.raises(MmsslError, match="not a plain ViT"):
        mmssl.load("timm:vit_pwee_patch16_reg1_gap_256", pretrained=False)
    with pytest.raises(MmsslError, match="norm_pre"):
        mmssl.load(write_folder(make_vit(pre_norm=True), tmp_path, pre_norm=True))


def test_a_difference_that_names_do_not_show_is_found(tmp_path, make_vit):
    vit = make_vit(act_layer="quick_gelu")
    with pytest.raises(MmsslError, match="a plain ViT does not"):
        mmssl.load(write_folder(vit, tmp_path, act_layer="quick_gelu"))


def test_folder_of_another_size(tmp_path, make_vit):
    write_folder(make_vit(), tmp_path, depth=3)
    with pytest.raises(MmsslError, match="do not fit"):
        mmssl.load(tmp_path)


def test_export_is_read_by_timm(tmp_path, make_vit, images):
    mmssl.load(write_folder(make_vit(), tmp_path / "theirs")).save_pretrained(tmp_path / "ours")
    out = export(tmp_path / "ours", tmp_path / "out", format="timm")
    encoder = mmssl.load(tmp_path / "ours")
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert_same_features(encoder, model, images)
    again = mmssl.load(out)
    assert again.config == encoder.config
    assert all(torch.equal(v, encoder.state_dict()[k]) for k, v in again.state_dict().items())
