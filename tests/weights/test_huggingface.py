"""transformers' ViTMAE and ViT folders, all generations of names, in and out."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTMAEForPreTraining, ViTModel

import mmssl
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.weights.export import export
from mmssl.weights.huggingface import to_transformers

N = 16


@torch.no_grad()
def losses(method, vitmae, images):
    """The same images and mask through both: (ours, theirs), and the largest difference of the encoder's tokens."""
    noise = torch.rand(len(images), N, generator=torch.Generator().manual_seed(2))
    pixels = method.tokenizer.prepare(images)
    theirs = vitmae(pixels, noise=noise)
    mask = {"image": theirs.mask.bool()}
    total, count = method({"image": images}, masks=mask)["loss"]
    visible = method.encoder({"image": images}, masks=mask)
    shuffled = vitmae.vit(pixels, noise=noise).last_hidden_state[:, 1:]
    raster = noise.argsort(1)[:, : shuffled.shape[1]].argsort(1)  # transformers keeps the tokens in shuffled order
    tokens = shuffled.gather(1, raster[..., None].expand_as(shuffled))
    return total / count, theirs.loss, (visible.tokens - tokens).abs().max()


def with_new_names(folder, vitmae):
    """Write the weights under the names that transformers 5 has in memory, which it does not write itself."""
    save_file({k: v.contiguous() for k, v in vitmae.state_dict().items()}, folder / "model.safetensors")


def with_old_names(folder, vitmae):
    """Write the weights under transformers 4's names."""
    places = {"vit.layers": "vit.encoder.layer", ".mlp.fc1": ".intermediate.dense", ".mlp.fc2": ".output.dense"}
    places |= {f".{x[0]}_proj": f".attention.{x}" for x in ("query", "key", "value")}
    places |= {".o_proj": ".output.dense"}
    state = {}
    for name, value in vitmae.state_dict().items():
        for new, old in places.items():
            name = name.replace(new, old)
        state[name] = value.contiguous()
    assert "vit.encoder.layer.0.attention.attention.query.weight" in state
    assert "decoder.decoder_layers.0.attention.attention.query.weight" in state
    save_file(state, folder / "model.safetensors")


def as_it_is_saved(folder, vitmae):
    """Leave what this version of transformers writes by itself."""


def as_bin(folder, vitmae):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("write", [as_it_is_saved, with_new_names, with_old_names, as_bin])
@pytest.mark.parametrize("norm_pix", [True, False])
def test_folder_equals_transformers(tmp_path, make_vitmae, images, write, norm_pix):
    vitmae = make_vitmae(norm_pix_loss=norm_pix)
    vitmae.save_pretrained(tmp_path)
    write(tmp_path, vitmae)
    method = mmssl.load_method(tmp_path)
    ours, theirs, apart = losses(method, vitmae, images)
    assert method.config.norm_pix is norm_pix
    assert abs(ours - theirs) < 1e-5 * max(1, theirs)
    assert apart < 1e-5
    encoder = mmssl.load(tmp_path)
    assert all(torch.equal(v, method.encoder.state_dict()[k]) for k, v in encoder.state_dict().items())


def test_encoder_saved_alone(tmp_path, make_vitmae):
    vitmae = make_vitmae()
    vitmae.vit.save_pretrained(tmp_path / "alone")
    vitmae.save_pretrained(tmp_path / "whole")
    alone, whole = mmssl.load(tmp_path / "alone").state_dict(), mmssl.load(tmp_path / "whole").state_dict()
    assert alone.keys() == whole.keys()
    assert all(torch.equal(alone[k], whole[k]) for k in whole)
    with pytest.raises(MmsslError, match="holds the encoder alone"):
        mmssl.load_method(tmp_path / "alone")


def test_epsilon_and_mask_ratio_are_the_configs(tmp_path, make_vitmae, images):
    vitmae = make_vitmae(layer_norm_eps=1e-3, mask_ratio=0.5)
    vitmae.save_pretrained(tmp_path)
    method = mmssl.load_method(tmp_path)
    assert method.encoder.config.norm_eps == 1e-3
    assert method.config.mask_ratio == 0.5
    ours, theirs, apart = losses(method, vitmae, images)
    assert abs(ours - theirs) < 1e-5
    assert apart < 1e-5


def test_norm_pix_of_a_folder_can_be_overridden(tmp_path, make_vitmae):
    make_vitmae(norm_pix_loss=False).save_pretrained(tmp_path)
    assert mmssl.load_method(tmp_path, norm_pix=True).config.norm_pix
    with pytest.raises(MmsslError, match="says itself that heads is 4"):
        mmssl.load(tmp_path, heads=8)


def test_mean_and_std_are_the_folders(tmp_path, make_vitmae):
    make_vitmae().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}')
    config = mmssl.load(tmp_path).config.tokenizers["image"]
    assert config.mean == (0.5, 0.4, 0.3)
    assert config.std == (0.1, 0.2, 0.3)


def test_vit_folder_equals_transformers(tmp_path, images):
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160}
    vit = ViTModel(ViTConfig(**shape, image_size=32, patch_size=8, qkv_bias=False)).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.2)
    vit.save_pretrained(tmp_path)
    encoder = mmssl.load(tmp_path)
    with torch.no_grad():
        theirs = vit(encoder.tokenizers["image"].prepare(images)).last_hidden_state
        features = encoder({"image": images})
    assert (features.tokens - theirs[:, 1:]).abs().max() < 1e-5
    assert (features.cls - theirs[:, 0]).abs().max() < 1e-5
    assert encoder.config.qkv_bias == "none"


@pytest.mark.parametrize("gone", ["vit.layers.1.attention.k_proj.weight", "decoder.mask_token"])
def test_missing_keys_are_named_as_the_authors_do(tmp_path, make_vitmae, gone):
    vitmae = make_vitmae()
    vitmae.save_pretrained(tmp_path)
    save_file({k: v.contiguous() for k, v in vitmae.state_dict().items() if k != gone}, tmp_path / "model.safetensors")
    named = {"vit.layers.1.attention.k_proj.weight": "blocks.1.attn.qkv.weight", "decoder.mask_token": "mask_token"}[
        gone
    ]
    with pytest.raises(MmsslError, match=f"lacks {re.escape(named)}"):
        mmssl.load_method(tmp_path)


def test_other_models_are_refused(tmp_path, make_vitmae):
    make_vitmae().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, said in (({"model_type": "bert"}, "of type 'bert'"), ({"hidden_act": "relu"}, "activation 'relu'")):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(MmsslError, match=said):
            mmssl.load(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(MmsslError, match="not valid JSON"):
        mmssl.load(tmp_path)


def test_config_that_contradicts_the_weights(tmp_path, make_vitmae):
    make_vitmae().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 7}))
    with pytest.raises(MmsslError, match="does not divide the width"):
        mmssl.load(tmp_path)


def test_export_is_read_by_transformers(tmp_path, make_vitmae, images):
    make_vitmae().save_pretrained(tmp_path / "theirs")
    method = mmssl.load_method(tmp_path / "theirs")
    out = export(tmp_path / "theirs", tmp_path / "out", format="transformers", license="apache-2.0")
    model, report = ViTMAEForPreTraining.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ours, theirs, apart = losses(method, model.eval(), images)
    assert abs(ours - theirs) < 1e-5
    assert apart < 1e-5
    again = mmssl.load_method(out)
    assert again.config == method.config
    assert all(torch.equal(v, method.state_dict()[k]) for k, v in again.state_dict().items())


def test_export_keeps_mean_and_std(tmp_path, make_vitmae):
    make_vitmae().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [1, 2, 3]}')
    again = mmssl.load(export(tmp_path / "a", tmp_path / "b", format="transformers")).config.tokenizers["image"]
    assert again.mean == (0.5, 0.4, 0.3) and again.std == (1, 2, 3)


def test_what_vitmae_cannot_hold_is_refused():
    method = create_method("mae", size="custom", dim=16, depth=1, heads=2, image_size=(16, 32), patch_size=8)
    with pytest.raises(MmsslError, match="square images"):
        to_transformers(method)
