"""timm's conversions of Audio-MAE, against timm's own model."""

import json

import pytest
import torch
from audiomae_models import MEAN, STD, assert_same_features, normalised
from safetensors.torch import save_file

import mmssl
from mmssl.errors import MmsslError
from mmssl.weights.classifier import load_classifier

HEADS = 4
TINY = {"embed_dim": 64, "depth": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def mel():
    """Raw log-mel (B, 1, T, M) of about the mean and std of AudioSet."""
    return torch.randn(2, 1, 192, 128, generator=torch.Generator().manual_seed(1)) * STD + MEAN


def timm_folder(model, folder, settings=None, safetensors=True, **arguments):
    """A folder as gaunernst's conversions are: the size is in `pretrained_cfg` alone, and there is no mean."""
    about = {"tag": "audiomae", "custom_load": False, "input_size": [1, 192, 128], "fixed_input_size": True}
    about |= {"pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head"}
    config = {"architecture": "vit_base_patch16_224", "num_classes": model.num_classes, "pretrained_cfg": about}
    folder.mkdir(exist_ok=True)
    config |= {"model_args": TINY | arguments} | (settings or {})
    (folder / "config.json").write_text(json.dumps(config))
    if safetensors:
        save_file(model.state_dict(), folder / "model.safetensors")
    else:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_timm_conversion(tmp_path, make_vit, mel):
    vit = make_vit(img_size=(192, 128), patch_size=16, in_chans=1)
    encoder = mmssl.load(timm_folder(vit, tmp_path / "a"))
    tokenizer = encoder.tokenizers["audio"].config
    assert (tokenizer.mean, tokenizer.std, tokenizer.frames, tokenizer.mel_bins) == (MEAN, STD, 192, 128)
    with torch.no_grad():
        assert_same_features(encoder, vit.forward_features(normalised(mel)), mel)
    assert mmssl.load(tmp_path / "a", frames=96).grids == {"audio": (6, 8)}
    assert mmssl.load(tmp_path / "a", modality="image").grids == {"image": (12, 8)}
    with pytest.raises(MmsslError, match="holds no classifier"):
        load_classifier(tmp_path / "a")


def test_timm_conversion_of_a_fine_tuned_model(tmp_path, make_vit, mel):
    vit = make_vit(img_size=(192, 128), patch_size=16, in_chans=1, num_classes=5, global_pool="avg")
    folder = timm_folder(vit, tmp_path / "a", safetensors=False, global_pool="avg")
    classifier = load_classifier(folder)
    assert classifier.pooling == "mean"
    with torch.no_grad():
        assert (classifier({"audio": mel}) - vit(normalised(mel))).abs().max() < 1e-5
        assert_same_features(mmssl.load(folder), vit.forward_features(normalised(mel)), mel)


def test_timm_conversion_through_the_hub(tmp_path, monkeypatch, make_vit):
    folder = timm_folder(make_vit(img_size=(192, 128), patch_size=16, in_chans=1), tmp_path / "a")
    asked = []
    for module in ("load", "timm_models"):
        monkeypatch.setattr(f"mmssl.weights.{module}.download", lambda name, typed=None: asked.append(name) or folder)
    name = "gaunernst/vit_base_patch16_1024_128.audiomae_as2m"
    for source in (name, f"timm:hf_hub:{name}", f"timm:hf-hub:{name}"):
        assert mmssl.load(source).grids == {"audio": (12, 8)}
    assert asked == [name] * 3


def test_file_of_a_timm_conversion_without_its_folder(tmp_path, make_vit, mel):
    vit = make_vit(img_size=(192, 128), patch_size=16, in_chans=1)
    save_file(vit.state_dict(), tmp_path / "x.safetensors")
    with torch.no_grad():
        encoder = mmssl.load(tmp_path / "x.safetensors", heads=HEADS)
        assert_same_features(encoder, vit.forward_features(normalised(mel)), mel)
