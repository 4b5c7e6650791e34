"""Checkpoints are whole or not there, whatever happens while they are written."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn
from training_toys import ToyModel, assert_same, train, weights

from mmssl.errors import MmsslError
from mmssl.training import atomic
from mmssl.training.checkpoint import RunFolder, model_tensors


class Killed(BaseException):
    """Stands for a kill -9: nothing that handles exceptions may handle it."""


def test_what_a_checkpoint_holds(tmp_path):
    model = ToyModel()
    train(tmp_path, model, steps=4)
    folder = tmp_path / "checkpoints" / "step_00000004"
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "model.safetensors", "state.pt"]
    assert_same(safetensors.torch.load_file(folder / "model.safetensors"), dict(model.state_dict()))
    state = torch.load(folder / "state.pt", weights_only=True)
    assert set(state["optimizer"]) == {name for name, _ in model.named_parameters()}
    assert json.loads((folder / "manifest.json").read_text())["step"] == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "lose", "manifest"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage, capsys):
    train(tmp_path, steps=8)
    newest = tmp_path / "checkpoints" / "step_00000008"
    file = newest / ("manifest.json" if damage == "manifest" else "model.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "lose":
        file.unlink()
    elif damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])
    said = []
    assert RunFolder(tmp_path).latest(said.append).step == 4
    assert len(said) == 1 and "step_00000008 is damaged" in said[0] and "trying the one before" in said[0]
    train(tmp_path, steps=8)  # goes on from step 4 and mends the folder
    assert RunFolder(tmp_path).latest().step == 8
    train(tmp_path / "whole", steps=8)
    assert_same(weights(tmp_path), weights(tmp_path / "whole"))


def test_nothing_but_damaged_checkpoints_is_said(tmp_path):
    train(tmp_path, steps=4)
    (tmp_path / "checkpoints" / "step_00000004" / "state.pt").write_bytes(b"")
    with pytest.raises(MmsslError, match=r"state.pt has 0 bytes of .*start again with --overwrite"):
        RunFolder(tmp_path).latest(lambda sentence: None)


CALLS = [(os, "fsync"), (os, "replace"), (shutil, "rmtree"), (torch, "save"), (safetensors.torch, "save_file")]


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_call_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, after):
    """Dies before, or right after, the n-th call that touches the disk, for every n."""
    model = ToyModel()
    for n in range(100):
        path = tmp_path / str(n)
        run = RunFolder(path)
        run.start()
        run.save(1, model, {"optimizer": {}}, keep=1)
        calls = []

        def dying(real, n=n, calls=calls):
            def call(*args, **kwargs):
                calls.append(real)
                if len(calls) == n + 1 and not after:
                    raise Killed
                result = real(*args, **kwargs)
                if len(calls) == n + 1:
                    raise Killed
                return result

            return call

        with monkeypatch.context() as patch:
            for module, name in CALLS:
                patch.setattr(module, name, dying(getattr(module, name)))
            try:
                run.save(2, model, {"optimizer": {}}, keep=1)
                survived = True
            except Killed:
                survived = False
        again = RunFolder(path)
        again.start()
        assert again.latest().step in (1, 2) and not list(again.checkpoints.glob(".tmp*"))
        if survived:
            assert n >= 8 and again.latest().step == 2 and len(again.all_checkpoints()) == 1
            return
    raise AssertionError("saving never ended")


def test_saving_the_same_step_again_replaces_it(tmp_path):
    run = RunFolder(tmp_path)
    run.start()
    run.save(3, ToyModel(), {"a": 1}, keep=2)
    run.save(3, ToyModel(), {"a": 2}, keep=2)
    assert run.latest().state() == {"a": 2} and len(run.all_checkpoints()) == 1
    assert not list(run.checkpoints.glob(".tmp*"))


def test_tied_weights_are_saved_under_both_names():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    tensors = model_tensors(model)
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
    assert safetensors.torch.load(safetensors.torch.save(tensors)).keys() == tensors.keys()


def test_another_architecture_is_said_with_the_keys(tmp_path):
    train(tmp_path, steps=4)
    with pytest.raises(MmsslError, match=r"body.0.weight is \(16, 8\) in the checkpoint and \(32, 8\) in the model"):
        train(tmp_path, ToyModel(width=32), steps=8)
    other = ToyModel()
    other.extra = nn.Linear(2, 2)
    with pytest.raises(MmsslError, match=r"extra.weight is only in the model.*--overwrite"):
        train(tmp_path, other, steps=8)
    del other.extra, other.body[3]
    with pytest.raises(MmsslError, match=r"body.3.weight is only in the checkpoint"):
        train(tmp_path, other, steps=8)


def test_another_optimizer_or_a_newly_frozen_weight_is_said(tmp_path, monkeypatch):
    train(tmp_path, steps=4)
    frozen = ToyModel()
    frozen.body[0].requires_grad_(False)
    with pytest.raises(MmsslError, match=r"also trained 'body.0"):
        train(tmp_path, frozen, steps=8)
    monkeypatch.setattr("training_toys.OPTIM", __import__("mmssl").training.optim.OptimConfig(name="sgd", lr=0.1))
    with pytest.raises(MmsslError, match="another optimizer than SGD"):
        train(tmp_path, steps=8)


def test_a_changed_rate_or_decay_holds_after_resuming(tmp_path, monkeypatch):
    from mmssl.training.optim import OptimConfig

    train(tmp_path, steps=4)
    monkeypatch.setattr("training_toys.OPTIM", OptimConfig(lr=0.0, weight_decay=0.9))
    train(tmp_path, steps=8)
    run = RunFolder(tmp_path)
    old, new = (c.tensors()["body.0.weight"] for c in run.all_checkpoints())
    assert torch.equal(old, new)  # the old rate would have moved it


def test_a_full_disk_is_said_and_the_old_checkpoint_stays(tmp_path, monkeypatch):
    train(tmp_path, steps=4)
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: real._replace(free=1000))
    with pytest.raises(
        MmsslError, match=r"no disk space for the checkpoint of step 8: it needs .* MB and 0.0 MB are free"
    ):
        train(tmp_path, steps=8)
    assert RunFolder(tmp_path).latest().step == 4


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("No space left on device (28)")]
)
def test_a_disk_that_fills_up_while_writing_is_said(tmp_path, monkeypatch, error):
    train(tmp_path, steps=4)

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MmsslError, match="no disk space for the checkpoint of step 8"):
        train(tmp_path, steps=8)
    assert RunFolder(tmp_path).latest().step == 4
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))


def test_a_folder_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(MmsslError, match=r"holds 'thesis.tex' and no config.yaml"):
            RunFolder(tmp_path).start(overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(MmsslError, match="is a file"):
        RunFolder(file).start()


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(tmp_path):
    train(tmp_path, steps=4)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path).start(overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "notes.txt"]
    assert RunFolder(tmp_path).latest() is None


def test_two_processes_do_not_share_a_run_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mmssl.training.lock import folder_lock\n"
        "from mmssl.errors import MmsslError\n"
        "try:\n    with folder_lock(Path(sys.argv[1])): print('mine')\n"
        "except MmsslError as error: print(error)"
    )

    def try_it() -> str:
        return subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout

    with RunFolder(tmp_path).lock():
        assert f"is in use by process {os.getpid()} on" in try_it()
    assert try_it() == "mine\n"
