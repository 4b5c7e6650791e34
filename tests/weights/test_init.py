"""Starting a method from weights."""

from dataclasses import replace

import pytest
import torch

import mmssl
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.weights.init import load_into

SMALL = {"size": "custom", "dim": 384, "depth": 1, "heads": 6, "image_size": 32, "patch_size": 8, "mask_ratio": 0.5}
SMALL |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture
def method():
    torch.manual_seed(0)
    return create_method("mae", **SMALL)


@pytest.fixture
def source(tmp_path, make_vitmae):
    """A whole MAE in transformers' format, of the method's sizes."""
    shape = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 6, "intermediate_size": 1536}
    shape |= {"decoder_hidden_size": 16, "decoder_intermediate_size": 64}
    make_vitmae(**shape).save_pretrained(tmp_path)
    return tmp_path


def equal(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_whole_method(method, source):
    assert "all weights" in load_into(method, source)
    assert equal(method.state_dict(), mmssl.load_method(source).state_dict())


def test_encoder_alone_where_the_decoder_is_another(method, source):
    other = create_method(replace(method.config, decoder_dim=32))
    before = other.decoder.pred.weight.clone()
    assert "the encoder's weights" in load_into(other, source)
    assert equal(other.encoder.state_dict(), mmssl.load(source).state_dict())
    assert torch.equal(other.decoder.pred.weight, before)


def test_decoder_with_other_heads_is_another(method, source):
    other = create_method(replace(method.config, decoder_heads=4))  # the same shapes
    before = other.decoder.blocks[0].attn.qkv.weight.clone()
    assert "the encoder's weights" in load_into(other, source)
    assert torch.equal(other.decoder.blocks[0].attn.qkv.weight, before)


def test_authors_encoder_file(tmp_path, method, make_vit):
    vit = make_vit(embed_dim=384, depth=1, num_heads=6)
    torch.save({"model": vit.state_dict()}, tmp_path / "x.pth")
    load_into(method, tmp_path / "x.pth")
    assert torch.equal(method.encoder.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)


def test_another_image_size_and_camera(source):
    other = create_method("mae", **(SMALL | {"image_size": (48, 64), "modality": "image/front"}))
    load_into(other, source)
    wanted = mmssl.load(source, image_size=(48, 64)).tokenizers["image"].pos_embed
    assert torch.equal(other.encoder.tokenizers["image/front"].pos_embed, wanted)


def test_another_size_is_refused(source):
    other = create_method("mae", **(SMALL | {"dim": 192}))
    with pytest.raises(MmsslError, match="of another method or size"):
        load_into(other, source)


def test_another_number_of_heads_is_refused(source):
    other = create_method("mae", **(SMALL | {"heads": 12}))
    with pytest.raises(MmsslError, match="has heads 6, this model 12"):
        load_into(other, source)


def test_a_damaged_source_is_said(tmp_path, method):
    (tmp_path / "x.pth").write_bytes(b"hello")
    with pytest.raises(MmsslError, match="is not a checkpoint"):
        load_into(method, tmp_path / "x.pth")
