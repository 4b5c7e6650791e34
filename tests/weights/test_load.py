"""What a source is, our own runs and exports, and one sentence for everything that is no source."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmssl
from mmssl.config import save_config, to_dict
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.weights.load import recognise

SMALL = {"size": "custom", "dim": 32, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8, "mask_ratio": 0.5}
SMALL |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def checkpoint(run, method, step):
    """A checkpoint as training writes it."""
    import yaml

    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    save_file(method.state_dict(), folder / "model.safetensors")
    (folder / "manifest.json").write_text("{}")
    (run / "config.yaml").write_text(yaml.safe_dump({"method": to_dict(method.config), "data": {"source": ["x"]}}))
    return folder


@pytest.fixture
def method():
    torch.manual_seed(0)
    return create_method("mae", **SMALL).eval()


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_run_gives_its_newest_checkpoint(tmp_path, method):
    torch.manual_seed(1)
    newer = create_method(method.config)
    old = checkpoint(tmp_path, method, 900)
    checkpoint(tmp_path, newer, 1000)
    (tmp_path / "checkpoints" / "step_00002000").mkdir()  # no weights in it
    assert same(mmssl.load_method(tmp_path), newer)
    assert same(mmssl.load(tmp_path), newer.encoder)
    assert same(mmssl.load_method(old), method)
    assert same(mmssl.load_method(old / "model.safetensors"), method)
    assert mmssl.load_method(tmp_path).config == method.config
    assert not mmssl.load_method(tmp_path).training


def test_run_gives_its_export_to_users(tmp_path, method):
    checkpoint(tmp_path, create_method(method.config), 5)
    method.encoder.save_pretrained(tmp_path / "export")
    for source in (tmp_path, tmp_path / "export", str(tmp_path / "export"), tmp_path / "export" / "model.safetensors"):
        assert same(mmssl.load(source), method.encoder)
    with pytest.raises(MmsslError, match="an encoder alone"):
        mmssl.load_method(tmp_path / "export")


def test_image_size_and_device(tmp_path, method):
    method.encoder.save_pretrained(tmp_path)
    encoder = mmssl.load(tmp_path, image_size=(16, 32), device="cpu")
    assert encoder.grids == {"image": (2, 4)}
    assert same(mmssl.load(tmp_path, image_size=16), method.encoder)
    with pytest.raises(MmsslError, match="not divisible"):
        mmssl.load(tmp_path, image_size=20)


def test_what_the_source_says_itself_is_not_overridden(tmp_path, method):
    checkpoint(tmp_path, method, 1)
    assert mmssl.load(tmp_path, heads=2).config.heads == 2
    with pytest.raises(MmsslError, match="says itself that heads is 2"):
        mmssl.load(tmp_path, heads=4)
    with pytest.raises(MmsslError, match="says itself that norm_pix is True"):
        mmssl.load_method(tmp_path, norm_pix=False)


def test_run_without_checkpoint_or_method(tmp_path, method):
    save_config(method.config, tmp_path / "config.yaml")
    with pytest.raises(MmsslError, match="has no checkpoint yet"):
        mmssl.load(tmp_path)
    folder = checkpoint(tmp_path, method, 1)
    (tmp_path / "config.yaml").write_text("loop: {}\n")
    with pytest.raises(MmsslError, match="no pretraining method"):
        mmssl.load_method(folder)


def test_checkpoint_of_another_size_or_method(tmp_path, method):
    folder = checkpoint(tmp_path, method, 1)
    state = load_file(folder / "model.safetensors")
    other = create_method(replace(method.config, dim=64))
    save_file(other.state_dict(), folder / "model.safetensors")
    with pytest.raises(MmsslError, match="of another method or size"):
        mmssl.load_method(tmp_path)
    save_file({k: v for k, v in state.items() if not k.startswith("decoder.")}, folder / "model.safetensors")
    with pytest.raises(MmsslError, match=r"missing: decoder\."):
        mmssl.load_method(tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("name: mae", "name: maw"))
    with pytest.raises(MmsslError, match="did you mean 'mae'"):
        mmssl.load_method(tmp_path)


def test_truncated_checkpoint_and_export(tmp_path, method):
    weights = checkpoint(tmp_path, method, 1) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(MmsslError, match="cut short"):
        mmssl.load(tmp_path)
    method.encoder.save_pretrained(tmp_path / "export")
    weights = tmp_path / "export" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(MmsslError, match="damaged"):
        mmssl.load(tmp_path)


def test_nothing_there(tmp_path, offline):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MmsslError, match="holds nothing that can be read"):
        mmssl.load(tmp_path / "empty")
    with pytest.raises(MmsslError, match="there is no file or folder"):
        mmssl.load(tmp_path / "no" / "such" / "folder")
    with pytest.raises(MmsslError, match="there is no file or folder"):
        mmssl.load("runs/nothing.pth")
    with pytest.raises(MmsslError, match="describes no model"):
        (tmp_path / "empty" / "config.json").write_text('{"a": 1}')
        mmssl.load(tmp_path / "empty")
    with pytest.raises(MmsslError, match="pretrained=False is for"):
        mmssl.load(tmp_path, pretrained=False)


def test_hub_name_offline_is_one_sentence(offline):
    with pytest.raises(MmsslError) as error:
        mmssl.load("facebook/vit-mae-base")
    said = str(error.value)
    assert "no local file or folder 'facebook/vit-mae-base'" in said
    assert "connect to the internet" in said
    assert "\n" not in said


def test_hub_name_is_read_like_a_folder(tmp_path, monkeypatch, method):
    method.encoder.save_pretrained(tmp_path)
    asked = []

    def snapshot(name, **_):
        asked.append(name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert same(mmssl.load("somebody/an-encoder"), method.encoder)
    assert asked == ["somebody/an-encoder"]


def test_a_local_folder_comes_before_the_hub(tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    method.encoder.save_pretrained(tmp_path / "runs" / "one")
    assert recognise("runs/one")[0] == "export"
