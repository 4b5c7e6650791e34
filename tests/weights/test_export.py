"""Weights out: an export that mmssl.load reads back bit for bit, with a model card that says what it is."""

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import save_file

import mmssl
from mmssl.config import to_dict
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.weights.export import export, export_encoder

SMALL = {"size": "custom", "dim": 32, "depth": 2, "heads": 4, "image_size": 16, "patch_size": 4, "mask_ratio": 0.5}
SMALL |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture
def method():
    torch.manual_seed(0)
    method = create_method("mae", **SMALL)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    return method.eval()


@pytest.fixture
def run(tmp_path, method):
    """A run folder as training leaves it."""
    run = tmp_path / "demo"
    folder = run / "checkpoints" / "step_00000300"
    folder.mkdir(parents=True)
    save_file(method.state_dict(), folder / "model.safetensors")
    recipe = {"method": to_dict(method.config), "data": {"source": ["mmssl/metaworld/drawer-open-v0"]}}
    recipe["loop"] = {"steps": 300, "batch_size": 64, "seed": 7}
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    return run


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_round_trip_is_bit_equal(run, method, tmp_path):
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    for out in (export(run), export(run, tmp_path / "elsewhere")):
        assert sorted(p.name for p in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        encoder = mmssl.load(out)
        assert same(encoder, method.encoder)
        assert encoder.config == method.encoder.config
        with torch.no_grad():
            assert torch.equal(encoder({"image": images}).tokens, method.encoder({"image": images}).tokens)
    assert same(mmssl.load(run), method.encoder)


def test_resized_encoder_keeps_its_table(run, tmp_path):
    encoder = mmssl.load(run, image_size=(24, 16))
    encoder.save_pretrained(tmp_path / "resized")
    again = mmssl.load(export(tmp_path / "resized", tmp_path / "out"))
    assert again.grids == {"image": (6, 4)}
    assert same(again, encoder)


def test_card_says_what_a_user_needs(run):
    (run / "scores.json").write_text(
        json.dumps(
            {"rows": [{"evaluator": "ridge", "target": "state", "encoder": "random", "metric": "r2", "value": 0.4}]}
        )
    )
    card = (export(run, license="cc-by-4.0") / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["library_name"] == "mmssl"
    assert "mae" in front["tags"]
    for said in (
        "32, 2, 4",
        "mmssl/metaworld/drawer-open-v0",
        "300",
        "uint8 (B, 3, 16, 16)",
        "applied inside",
        "ridge",
    ):
        assert said in card
    assert "Not said yet" in (export(run) / "README.md").read_text()


@pytest.mark.parametrize("format", ["mmssl", "timm", "transformers"])
def test_code_in_the_card_runs(run, method, tmp_path, monkeypatch, format):
    monkeypatch.chdir(tmp_path)
    card = (export(run.relative_to(tmp_path), format=format) / "README.md").read_text()
    names = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
    assert names["features"].pooled().shape == (1, 32)
    assert "features.tokens      # (1, 16, 32)" in card
    if format != "mmssl":  # the other library's model holds these weights too, not random ones
        name = {"timm": "norm.weight", "transformers": "vit.layernorm.weight"}[format]
        assert torch.equal(names["model"].state_dict()[name], method.encoder.norm.weight)


@pytest.mark.parametrize("format", ["timm", "transformers"])
def test_other_formats_are_read_back(run, method, format):
    out = export(run, format=format)
    assert out == run / f"export-{format}"
    assert same(mmssl.load(out), method.encoder)
    assert f"library_name: {format}" in (out / "README.md").read_text()
    if format == "transformers":
        assert same(mmssl.load_method(out), method)


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    torch.manual_seed(0)
    method = create_method("mae", **(SMALL | {"norm_eps": 1e-5}))
    method.encoder.save_pretrained(tmp_path / "a")
    with pytest.raises(MmsslError, match="norm_eps 1e-05"):
        export(tmp_path / "a", tmp_path / "b", format="timm")
    with pytest.raises(MmsslError, match="an encoder alone"):
        export(tmp_path / "a", tmp_path / "b", format="transformers")
    assert not (tmp_path / "b").exists()


def test_foreign_files_are_kept(run, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(MmsslError, match="is not empty"):
        export(run, out)
    export(run, out, overwrite=True)
    assert (out / "thesis.txt").read_text() == "years of work"
    assert mmssl.load(out).embed_dim == 32
    with pytest.raises(MmsslError, match="is the run itself"):
        export(run, run, overwrite=True)


def test_nothing_to_export(tmp_path, run):
    with pytest.raises(MmsslError, match="there is no file or folder"):
        export(tmp_path / "nothing" / "here" / "at" / "all")
    mmssl.load(run).save_pretrained(tmp_path / "alone")
    with pytest.raises(MmsslError, match="say where to write"):
        export(tmp_path / "alone")


def test_unwritable_place(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MmsslError, match="could not be written"):
        export(run, tmp_path / "file" / "below")


def test_encoder_in_memory(tmp_path, method):
    recipe = {"method": {"name": "mae"}, "data": {"source": [str(tmp_path / "secret" / "faces")]}}
    out = export_encoder(method.encoder, tmp_path / "out", recipe, license="mit", shown_as=tmp_path / "final")
    assert same(mmssl.load(out), method.encoder)
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    assert "# final" in card
    assert "| data | faces |" in card  # no path of this machine
    assert "secret" not in card
