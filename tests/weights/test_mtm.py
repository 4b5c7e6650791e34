"""The MTM authors' layout, against a model that torch.nn's own layers make up under those names."""

import re
import sys
from pathlib import Path

import pytest
import torch

import mmssl
from mmssl.errors import MmsslError

sys.path.append(str(Path(__file__).parents[1] / "methods"))
from mtm_reference import Oracle

WIDTHS = {"state": 5, "action": 2, "return": 1}


@pytest.fixture
def oracle():
    torch.manual_seed(0)
    return Oracle(WIDTHS, length=3, dim=16, heads=2, depth=3, decoder_depth=2).scatter_all()


def saved(state, tmp_path):
    path = tmp_path / "140000.pt"
    torch.save({"model": state, "step": 140000}, path)
    return path


def test_a_file_gives_what_its_model_gives(oracle, tmp_path):
    method = mmssl.load_method(saved(oracle.state_dict(), tmp_path), heads=2)
    trajectory = {name: torch.randn(4, 3, n) for name, n in WIDTHS.items()}
    visible = {"state": torch.tensor([True, True, False]), "action": torch.tensor([False, True, False]),
               "return": torch.tensor([False] * 3)}  # fmt: skip
    masks = {name: ~steps.expand(4, 3) for name, steps in visible.items()}
    found, wanted = method.fill(trajectory, method.see(trajectory, masks, None)), oracle(trajectory, visible)
    for name in WIDTHS:
        torch.testing.assert_close(found[name], wanted[name], atol=2e-5, rtol=1e-4)


def test_the_encoder_alone(oracle, tmp_path):
    encoder = mmssl.load(saved(oracle.state_dict(), tmp_path), heads=2)
    state = torch.randn(2, 1, 5)
    token = oracle.encoder_embed_dict["states"](state) + oracle.encoder_per_dim_encoding["states"][0, 0, 0]
    wanted = oracle.encoder(token + oracle.pos_embed[0, :1, 0])
    torch.testing.assert_close(encoder({"state": state}).tokens, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda s: s.pop("decoder.norm.weight"), "lacks decoder.norm.weight"),
        (lambda s: s.update({"encoder_projection.1.weight": torch.zeros(4, 16)}), "bottleneck"),
        (lambda s: s.update({"encoder_per_dim_encoding.states": torch.zeros(1, 1, 5, 16)}), "several tokens"),
        (lambda s: s.update({"something": torch.zeros(1)}), "no place for something"),
        (lambda s: s.update({"encoder_embed_dict.images.weight": torch.zeros(16, 9)}), "images"),
    ],
)
def test_other_files_are_refused(oracle, tmp_path, change, sentence):
    state = dict(oracle.state_dict())
    change(state)
    with pytest.raises(MmsslError, match=re.escape(sentence)):
        mmssl.load_method(saved(state, tmp_path), heads=2)


def test_the_heads_must_be_said(oracle, tmp_path):
    with pytest.raises(MmsslError, match="heads="):
        mmssl.load_method(saved(oracle.state_dict(), tmp_path))
