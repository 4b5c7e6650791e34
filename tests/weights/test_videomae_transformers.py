"""transformers' VideoMAE folders, all generations of names, in and out; exports and their cards."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from videomae_models import (
    DIM,
    OWN,
    SIZE,
    TINY,
    N,
    assert_same_features,
    assert_same_method,
    authors_state,
    save,
    write_run,
)

import mmssl
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.weights.classifier import load_classifier
from mmssl.weights.export import export


def as_it_is_saved(folder, model):
    """Leave what this version of transformers writes by itself: q_bias and v_bias."""


def with_names_in_memory(folder, model):
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")


def as_bin(folder, model):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("write", [as_it_is_saved, with_names_in_memory, as_bin])
def test_folder_for_pretraining(tmp_path, make_videomae, clips, mask, write):
    model = make_videomae(norm_pix_loss=write is not as_bin, layer_norm_eps=1e-3)
    model.save_pretrained(tmp_path)
    write(tmp_path, model)
    method, encoder = mmssl.load_method(tmp_path), mmssl.load(tmp_path)
    assert method.config.norm_pix is (write is not as_bin)
    assert method.encoder.config.norm_eps == 1e-3
    assert_same_features(encoder, model.videomae, clips, mask)
    assert_same_method(method, model, clips, mask)
    assert all(torch.equal(v, method.encoder.state_dict()[k]) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize("mean_pooling", [True, False])
def test_base_folder_has_a_final_norm_where_it_does_not_pool(tmp_path, make_videomae, clips, mean_pooling):
    model = make_videomae("Model", use_mean_pooling=mean_pooling, layer_norm_eps=1e-12)
    model.save_pretrained(tmp_path)
    encoder = mmssl.load(tmp_path)
    assert encoder.config.final_norm is not mean_pooling
    assert_same_features(encoder, model, clips)


@pytest.mark.parametrize(("mean_pooling", "pooling"), [(True, "mean"), (False, "first")])
def test_folder_of_a_classifier(tmp_path, make_videomae, clips, mean_pooling, pooling):
    model = make_videomae("ForVideoClassification", use_mean_pooling=mean_pooling)
    model.save_pretrained(tmp_path)
    classifier = load_classifier(tmp_path)
    assert classifier.pooling == pooling
    assert getattr(classifier.head.norm, "eps", None) == (model.fc_norm.eps if mean_pooling else None)
    with torch.no_grad():
        theirs = model(classifier.encoder.tokenizers["video"].prepare(clips)).logits
        assert (classifier({"video": clips}) - theirs).abs().max() < 1e-5
    assert_same_features(mmssl.load(tmp_path), model.videomae, clips)


def test_folder_for_other_clips(tmp_path, make_videomae):
    make_videomae().save_pretrained(tmp_path)
    other = make_videomae(num_frames=6, image_size=[16, 24])
    clips = torch.randint(0, 256, (2, 6, 3, 16, 24), dtype=torch.uint8)
    assert_same_features(mmssl.load(tmp_path, frames=6, image_size=(16, 24)), other.videomae, clips)
    assert mmssl.load_method(tmp_path, frames=6).encoder.grids == {"video": (3, 4, 4)}


@pytest.mark.parametrize("name", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_mean_and_std_are_the_folders(tmp_path, make_videomae, name):
    make_videomae().save_pretrained(tmp_path)
    (tmp_path / name).write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}')
    config = mmssl.load(tmp_path).config.tokenizers["video"]
    assert config.mean == (0.5, 0.4, 0.3)
    assert config.std == (0.1, 0.2, 0.3)


def test_folder_that_is_not_what_it_says(tmp_path, make_videomae, make_vitmae):
    make_videomae().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "vivit"}))
    with pytest.raises(MmsslError, match="of type 'vivit'; readable are videomae, vit_mae, vit"):
        mmssl.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in make_vitmae().state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(MmsslError, match="lacks blocks"):
        mmssl.load(tmp_path)
    make_videomae("Model").save_pretrained(tmp_path)
    with pytest.raises(MmsslError, match="holds the encoder alone, no decoder"):
        mmssl.load_method(tmp_path)


def test_tensors_without_their_folder(tmp_path, make_videomae, clips):
    model = make_videomae()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "weights.safetensors")
    assert_same_features(mmssl.load(tmp_path / "weights.safetensors", **OWN), model.videomae, clips)


def test_export_is_read_by_transformers(tmp_path, make_videomae, clips, mask):
    from transformers import VideoMAEForPreTraining

    model = make_videomae(image_size=[SIZE, SIZE])
    method = mmssl.load_method(save(authors_state(model), tmp_path / "x.pth"), decoder_heads=2, **OWN)
    run = write_run(tmp_path / "run", method)
    out = export(run, format="transformers", license="mit")
    theirs, report = VideoMAEForPreTraining.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert not theirs.config.use_mean_pooling and theirs.config.layer_norm_eps == 1e-6
    again = mmssl.load_method(out)
    assert_same_method(again, theirs.eval(), clips, mask)
    assert all(torch.equal(v, method.state_dict()[k]) for k, v in again.state_dict().items())
    assert again.encoder.config == method.encoder.config
    with pytest.raises(MmsslError, match="use format 'mmssl'"):
        export(run, format="timm")


@pytest.mark.parametrize("format", ["mmssl", "transformers"])
def test_code_in_the_card_runs(tmp_path, monkeypatch, format):
    monkeypatch.chdir(tmp_path)
    method = create_method("videomae", **TINY).eval()
    out = export(write_run(tmp_path / "run", method).relative_to(tmp_path), format=format)
    card, names = (out / "README.md").read_text(), {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
    assert names["features"].tokens.shape == (1, N, DIM)
    for said in (
        "uint8 (B, 4, 3, 32, 32)",
        "| clips: stride | 4 |",
        "2 x 4 x 4",
        "frames, of which a token has | 4, 2",
    ):
        assert said in card
    assert "- video\n" in card and "image-feature-extraction" not in card
    encoder = mmssl.load(out)
    assert encoder.config == method.encoder.config
    assert all(torch.equal(v, method.encoder.state_dict()[k]) for k, v in encoder.state_dict().items())
