"""Tensors from files, and one sentence for each file that is not what it should be."""

import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from mmssl.errors import MmsslError
from mmssl.weights.files import read_folder, read_state

STATE = {"a": torch.arange(2000.0), "b.c": torch.ones(2, 3)}


class Code:
    """Unpickling it would run a command."""

    def __reduce__(self):
        return os.mkdir, ("pickled_code_ran",)


def same(state, other=STATE):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in other)


@pytest.mark.parametrize(
    "content", [STATE, {"model": STATE}, {"state_dict": STATE, "epoch": 3}, {"model_state": STATE}, {"module": STATE}]
)
def test_state_is_found_wherever_it_is(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    assert same(read_state(tmp_path / "x.pth")[0])


def test_wrappers_prefixes_are_dropped(tmp_path):
    torch.save({"model": {f"module.{k}": v for k, v in STATE.items()}}, tmp_path / "x.pth")
    assert same(read_state(tmp_path / "x.pth")[0])


def test_old_format_and_safetensors(tmp_path):
    torch.save({"model": STATE}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    save_file(STATE, tmp_path / "x.safetensors")
    assert same(read_state(tmp_path / "x.pth")[0])
    assert same(read_state(tmp_path / "x.safetensors")[0])


def test_training_arguments_are_read_from_a_namespace(tmp_path):
    torch.save({"model": STATE, "args": argparse.Namespace(norm_pix_loss=False)}, tmp_path / "x.pth")
    assert read_state(tmp_path / "x.pth")[1] == {"norm_pix_loss": False}


@pytest.mark.parametrize(
    ("cfg", "wanted"), [("MVIT:\n  DEPTH: 24\n", {"MVIT": {"DEPTH": 24}}), ("a: [", {}), ("x", {})]
)
def test_settings_of_pyslowfast_are_yaml(tmp_path, cfg, wanted):
    torch.save({"model_state": STATE, "cfg": cfg}, tmp_path / "x.pyth")
    state, arguments = read_state(tmp_path / "x.pyth")
    assert same(state) and arguments == wanted


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_truncated_file(tmp_path, zipped, part):
    torch.save({"model": STATE}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(MmsslError, match="cut short or damaged"):
        read_state(tmp_path / "x.pth")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_truncated_safetensors(tmp_path, part):
    save_file(STATE, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(MmsslError, match="cut short"):
        read_state(tmp_path / "x.safetensors")


def test_pickled_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": STATE, "extra": Code()}, "torch.pth")
    with open("plain.pth", "wb") as file:
        pickle.dump({"model": Code()}, file)
    torch.save(torch.nn.Linear(2, 2), "module.pth")
    for name in ("torch.pth", "plain.pth", "module.pth"):
        with pytest.raises(MmsslError, match="pickled Python objects"):
            read_state(name)
    assert not (tmp_path / "pickled_code_ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x00" * 300, b"PKPKPKPKPK", b"\x89PNG\r\n"])
def test_not_a_checkpoint(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(MmsslError, match=r"is not a checkpoint|cut short or damaged"):
        read_state(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [{}, {"model": {}}, [1, 2], {"epoch": 3}])
def test_no_weights_inside(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(MmsslError, match="holds no weights"):
        read_state(tmp_path / "x.pth")


def test_no_such_file(tmp_path):
    with pytest.raises(MmsslError, match="there is no file"):
        read_state(tmp_path / "x.pth")


def test_folder_in_shards(tmp_path):
    for i, (name, value) in enumerate(STATE.items()):
        save_file({name: value}, tmp_path / f"part{i}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "part0.safetensors", "b.c": "part1.safetensors"}}'
    )
    assert same(read_folder(tmp_path))


def test_folder_without_weights(tmp_path):
    with pytest.raises(MmsslError, match="no weights"):
        read_folder(tmp_path)
