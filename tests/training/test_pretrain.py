"""`mmssl pretrain` from end to end on a few small pictures."""

import dataclasses
import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from training_toys import assert_same, weights

from mmssl.config import load_config
from mmssl.data.loading import DataConfig
from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.methods.mae import MAE, MAEConfig
from mmssl.training.loop import LoopConfig
from mmssl.training.optim import OptimConfig
from mmssl.training.pretrain import PretrainConfig, pretrain
from mmssl.weights.load import load, load_method

TINY = MAEConfig(size="custom", dim=16, depth=1, heads=2, image_size=16, patch_size=4)
TINY = dataclasses.replace(TINY, decoder_dim=16, decoder_depth=1, decoder_heads=2, drop_path=0.2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for kind in ("a", "b"):
        (folder / kind).mkdir()
        for i in range(10):
            Image.fromarray(random.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / kind / f"{i}.png")
    return folder


def recipe(pictures, method=TINY, **loop) -> PretrainConfig:
    loop = {"steps": 6, "batch_size": 4, "log_every": 2, "checkpoint_every": 2, "device": "cpu", **loop}
    return PretrainConfig(method, LoopConfig(**loop), DataConfig(source=(str(pictures),)), OptimConfig(lr=1e-3))


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    return pretrain(recipe(pictures), tmp_path_factory.mktemp("runs") / "finished")


def test_a_run_folder_has_everything(finished, pictures):
    assert load_config(PretrainConfig, finished.config) == recipe(pictures)
    assert [json.loads(x)["step"] for x in finished.metrics.read_text().splitlines()] == [2, 4, 6]
    assert json.loads(finished.timing.read_text())["pretrain"] > 0
    assert "<html" in finished.report.read_text() and list(finished.tensorboard.iterdir())
    with np.load(finished.figures / "reconstruction.npz") as file:
        shapes = {name: (file[name].dtype.name, file[name].shape[1:]) for name in file}
    assert shapes == dict.fromkeys(("original", "masked", "reconstructed"), ("uint8", (16, 16, 3)))
    with np.load(finished.figures / "features.npz") as file:
        assert file["tokens"].shape == file["random"].shape == (len(file["image"]), 4, 4, 16)
        assert not np.allclose(file["tokens"], file["random"])


def test_the_masked_picture_hides_what_was_masked(finished):
    with np.load(finished.figures / "reconstruction.npz") as file:
        original, masked, made = (file[name] for name in ("original", "masked", "reconstructed"))
    hidden = (masked == 128).all(-1)
    assert hidden.mean() == pytest.approx(0.75, abs=0.01)
    assert (original[~hidden] == masked[~hidden]).all()
    assert np.abs(original[~hidden].astype(int) - made[~hidden]).max() <= 1  # visible patches are pasted


def test_the_export_is_the_encoder_of_the_last_checkpoint(finished):
    tensors = weights(finished.path)[1]
    encoder = Encoder.from_pretrained(finished.export)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, tensors[f"encoder.{name}"])
    assert_same(load(finished.path).state_dict(), encoder.state_dict())
    assert_same(load_method(finished.path).state_dict(), tensors)


def test_an_interrupted_run_goes_on_bit_for_bit_by_the_same_command(finished, pictures, tmp_path, monkeypatch, capsys):
    calls = []

    def stop(self, progress):
        calls.append(progress)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(MAE, "after_step", stop)
        with pytest.raises(SystemExit) as exit_:
            pretrain(recipe(pictures), tmp_path)
    assert exit_.value.code == 130 and "stopped at step 3 of 6 and saved" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()
    pretrain(recipe(pictures), tmp_path)
    assert "going on from" in capsys.readouterr().err
    assert_same(weights(finished.path), weights(tmp_path))


def test_a_changed_setting_is_said_and_a_changed_architecture_refused(pictures, tmp_path, capsys):
    pretrain(recipe(pictures), tmp_path)
    capsys.readouterr()
    pretrain(recipe(pictures, steps=8), tmp_path)
    assert "loop.steps was 6 and is 8 from here on" in capsys.readouterr().err
    wider = dataclasses.replace(TINY, dim=32)
    with pytest.raises(MmsslError, match=r"another architecture: encoder.cls_token is .*--overwrite"):
        pretrain(recipe(pictures, wider), tmp_path)
    assert load_config(PretrainConfig, tmp_path / "config.yaml").method == TINY, "a refused recipe must not be kept"
    assert pretrain(recipe(pictures, wider, steps=2), tmp_path, overwrite=True).latest().step == 2


def test_init_from_a_run_and_from_an_encoder(finished, pictures, tmp_path, monkeypatch):
    still = OptimConfig(lr=0.0, weight_decay=0.0)
    config = dataclasses.replace(recipe(pictures, steps=1, seed=5), optim=still)
    pretrain(config, tmp_path / "whole", init=finished.path)
    assert_same(weights(tmp_path / "whole")[1], weights(finished.path)[1])
    larger = dataclasses.replace(config, method=dataclasses.replace(TINY, image_size=24))
    pretrain(larger, tmp_path / "encoder", init=finished.export)
    mine, theirs = weights(tmp_path / "encoder")[1], weights(finished.path)[1]
    assert torch.equal(mine["encoder.blocks.0.attn.qkv.weight"], theirs["encoder.blocks.0.attn.qkv.weight"])
    assert not torch.equal(mine["decoder.embed.weight"], theirs["decoder.embed.weight"])
    with pytest.raises(MmsslError, match="does not fit this model"):
        pretrain(recipe(pictures, dataclasses.replace(TINY, dim=32)), tmp_path / "other", init=finished.export)


def test_the_command_is_written_down(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mmssl", "pretrain", "my recipe.yaml"])
    pretrain(recipe(pictures, steps=1), tmp_path)
    assert (tmp_path / "command.txt").read_text() == "mmssl pretrain 'my recipe.yaml'\n"


def test_no_data_and_too_little_data_are_said(pictures, tmp_path):
    with pytest.raises(MmsslError, match="no data was given"):
        pretrain(dataclasses.replace(recipe(pictures), data=DataConfig()), tmp_path)
    with pytest.raises(MmsslError, match="do not fill one batch"):
        pretrain(recipe(pictures, batch_size=64), tmp_path)


def test_unreadable_pictures_are_named(pictures, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, path in enumerate(sorted(pictures.rglob("*.png"))):
        (folder / f"{i}.png").write_bytes(path.read_bytes())
    (folder / "3.png").write_bytes(b"not a picture")
    config = recipe(folder, steps=5)
    pretrain(dataclasses.replace(config, data=dataclasses.replace(config.data, max_bad=0.5)), tmp_path / "run")
    assert "1 unreadable files were left out" in (err := capsys.readouterr().err) and "3.png" in err
