"""Which family of published weights a file is of, and what comes of it through the public functions."""

import argparse

import audiomae_models
import pytest
import torch
from test_siammae import DIM, HEADS, Oracle
from videomae_models import authors_state, write_run

import mmssl
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.weights.classifier import load_classifier
from mmssl.weights.export import export
from mmssl.weights.init import load_into
from mmssl.weights.published import LAYOUTS, read_published_file
from mmssl.weights.siammae import siammae_to_authors

SMALL = {"size": "custom", "dim": 32, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8, "decoder_depth": 1}
CLIPS = SMALL | {"frames": 4, "mask_ratio": 0.5, "decoder_dim": 16, "decoder_heads": 2}


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_every_family_is_told_from_the_others(tmp_path, make_vit, make_vitmae, make_videomae, make_stmae):
    names, words = [layout.name for layout in LAYOUTS], ("VideoMAE", "ST-MAE", "CropMAE", "Audio-MAE", "timm")
    videos, stmae, cropmae, audiomae, mae = (next(name for name in names if word in name) for word in words)
    for state, name in (
        (make_vit().state_dict(), mae),
        (make_vitmae().state_dict(), mae),
        (Oracle().state_dict(), cropmae),
        (make_videomae().state_dict(), videos),
        (authors_state(make_videomae()), videos),
        (authors_state(make_videomae("ForVideoClassification"), ""), videos),
        (make_stmae("MaskedAutoencoder").state_dict(), stmae),
        (make_stmae("Classifier").state_dict(), stmae),
        (audiomae_models.make(audiomae_models.MaskedAutoencoder).state_dict(), audiomae),
        (audiomae_models.make(audiomae_models.MaskedAutoencoder, decoder="global").state_dict(), audiomae),
        (audiomae_models.make(audiomae_models.Classifier).state_dict(), audiomae),
        (make_vit(in_chans=1).state_dict(), mae),
    ):
        torch.save({"model": state}, tmp_path / "x.pth")
        assert read_published_file(tmp_path / "x.pth")[0].name == name


@pytest.mark.parametrize(("said", "wanted"), [({}, 0.95), ({"masking_ratio": 0.9}, 0.9)])
def test_file_of_cropmae(tmp_path, images, said, wanted):
    oracle = Oracle().eval()
    arguments = argparse.Namespace(norm_pix_loss=True, **said)
    torch.save({"model": oracle.state_dict(), "args": arguments}, tmp_path / "x.pth")
    method = mmssl.load_method(tmp_path / "x.pth", heads=HEADS, decoder_heads=4)
    assert method.config.name == "siammae" and method.config.norm_pix
    assert method.config.mask_ratio == wanted
    encoder = mmssl.load(tmp_path / "x.pth", heads=HEADS)
    assert encoder.modalities == ("image",)
    assert same(encoder, method.encoder)
    with torch.no_grad():
        pixels = torch.nn.functional.interpolate(images.float(), 64).to(torch.uint8)
        theirs = oracle.encode(encoder.tokenizers["image"].prepare(pixels), torch.zeros(len(images), 64).bool())
        assert (encoder({"image": pixels}).tokens - theirs[:, 1:]).abs().max() < 1e-5 * theirs.abs().max()
    with pytest.raises(MmsslError, match="frames= is for encoders of video"):
        mmssl.load(tmp_path / "x.pth", heads=HEADS, frames=2)


def test_siammae_starts_from_an_image_model_and_back(tmp_path, make_vit):
    torch.save({"model": make_vit(embed_dim=384, num_heads=6).state_dict()}, tmp_path / "mae.pth")
    shape = {"size": "custom", "dim": 384, "depth": 2, "heads": 6, "image_size": 32, "patch_size": 8}
    siammae = create_method("siammae", **shape, mask_ratio=0.5, decoder_order="cropmae")
    assert "the encoder's weights" in load_into(siammae, tmp_path / "mae.pth")
    assert same(siammae.encoder, mmssl.load(tmp_path / "mae.pth"))
    arguments = argparse.Namespace(masking_ratio=0.5)
    torch.save({"model": siammae_to_authors(siammae), "args": arguments}, tmp_path / "cropmae.pth")
    again = create_method("siammae", **shape, mask_ratio=0.5, decoder_order="cropmae")
    assert "all weights" in load_into(again, tmp_path / "cropmae.pth")
    assert same(again, siammae)
    mae = create_method("mae", **shape)
    assert "the encoder's weights" in load_into(mae, tmp_path / "cropmae.pth")
    assert same(mae.encoder, siammae.encoder)


@pytest.mark.parametrize("name", ["videomae", "stmae", "siammae"])
def test_runs_are_exported_and_read_back(tmp_path, name):
    method = create_method(name, **{k: v for k, v in CLIPS.items() if name != "siammae" or k != "frames"}).eval()
    run = write_run(tmp_path / "run", method)
    out = export(run)
    encoder = mmssl.load(out)
    assert encoder.config == method.encoder.config
    assert same(encoder, method.encoder)
    assert same(mmssl.load_method(run), method)
    assert mmssl.load_method(run, decoder_heads=2, image_size=16).config == method.config
    if name == "siammae":
        assert same(mmssl.load(export(run, format="timm")), method.encoder)
        return
    assert mmssl.load(out, frames=8, image_size=(16, 24)).grids == {"video": (4, 2, 3)}
    with pytest.raises(MmsslError, match=r"an encoder of video .* use format 'mmssl'"):
        export(run, format="timm")


def test_decoder_heads_that_the_size_implies_are_known(tmp_path):
    shape = {"size": "tiny", "depth": 1, "frames": 2, "image_size": 16, "patch_size": 8, "mask_ratio": 0.5}
    run = write_run(tmp_path, create_method("videomae", **shape))
    assert mmssl.load_method(run, decoder_heads=3).decoder.blocks[0].attn.heads == 3
    with pytest.raises(MmsslError, match="says itself that decoder_heads is 3"):
        mmssl.load_method(run, decoder_heads=6)
    with pytest.raises(MmsslError, match="says itself that frames is 2"):
        mmssl.load_method(run, frames=16)


@pytest.mark.parametrize("name", ["stmae", "siammae"])
def test_what_transformers_has_no_model_for(tmp_path, name):
    method = create_method(name, **{k: v for k, v in CLIPS.items() if name != "siammae" or k != "frames"})
    with pytest.raises(MmsslError, match=f"holds '{name}'; the transformers format is for 'mae' and 'videomae' alone"):
        export(write_run(tmp_path, method), format="transformers")


def test_classifiers_are_of_others(tmp_path):
    run = write_run(tmp_path, create_method("videomae", **CLIPS))
    with pytest.raises(MmsslError, match="is no fine-tuned classifier of others"):
        load_classifier(run)


def test_file_of_siammae_without_its_decoder_is_an_mae(tmp_path):
    state = {k: v for k, v in Oracle().state_dict().items() if not k.startswith("decoder_")}
    torch.save({"model": state}, tmp_path / "x.pth")
    assert mmssl.load(tmp_path / "x.pth", heads=HEADS).embed_dim == DIM
    with pytest.raises(MmsslError, match="holds the encoder alone"):
        mmssl.load_method(tmp_path / "x.pth", heads=HEADS)
