"""Training on data of which some files cannot be decoded: it goes on, it says which, and the next run knows."""

import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmssl.data import images, vetting
from mmssl.data.loading import DataConfig
from mmssl.errors import MmsslError
from mmssl.evaluation.finetune import FinetuneConfig, finetune
from mmssl.methods.mae import MAEConfig
from mmssl.training.loop import LoopConfig
from mmssl.training.pretrain import PretrainConfig, pretrain

TINY = MAEConfig(size="custom", dim=16, depth=1, heads=2, image_size=16, patch_size=8)
TINY = dataclasses.replace(TINY, decoder_dim=16, decoder_depth=1, decoder_heads=2)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(i).integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    return folder


@pytest.fixture
def harmful(monkeypatch, pictures) -> dict[str, str]:
    """Name -> harm of the pictures that do some to whoever opens them; forked processes inherit it."""
    harm = {}
    opened = images.ImageFiles._open

    def open_one(dataset, place: int):
        kind = harm.get("/".join(Path(dataset.files[place]).parts[-2:]))
        if kind == "sleep":
            time.sleep(1000)
        if kind == "crash":
            os._exit(9)
        return opened(dataset, place)

    monkeypatch.setattr(images.ImageFiles, "_open", open_one)
    return harm


def loop(steps: int = 8, **settings) -> LoopConfig:
    return LoopConfig(steps=steps, batch_size=4, device="cpu", **{"workers": 2, "worker_timeout": 0.8, **settings})


def recipe(pictures: Path, steps: int = 8, **data) -> PretrainConfig:
    source = DataConfig(source=(str(pictures),), **{"max_bad": 0.2, **data})
    return PretrainConfig(TINY, loop(steps), source)


def test_files_on_which_a_decoder_hangs_or_crashes_join_the_list(harmful, pictures, tmp_path, capsys):
    harmful.update({"a/0.png": "sleep", "b/2.png": "crash"})  # the very first sample is also what the model is shown
    listed = tmp_path / "skip.txt"
    run = pretrain(recipe(pictures, skip_list=listed), tmp_path / "run")
    lines = sorted(line for line in listed.read_text().splitlines() if not line.startswith("#"))
    assert lines == ["pictures/a/0.png\ttook longer than 0.8 s", "pictures/b/2.png\tthe decoder crashed (exit code 9)"]
    assert run.report.is_file() and "2 unreadable files were left out" in capsys.readouterr().err
    again = pretrain(recipe(pictures, 12, skip_list=listed, max_bad=0.0), tmp_path / "run")  # none is met again
    assert len(again.metrics.read_text().splitlines()) > 0


def test_too_many_of_them_end_the_run(harmful, pictures, tmp_path):
    harmful.update({"a/0.png": "crash", "b/2.png": "crash"})
    with pytest.raises(MmsslError, match=r"1 of 16 samples cannot be read, more than max_bad=0.01"):
        pretrain(recipe(pictures, max_bad=0.01), tmp_path / "run")


def test_vetted_before_the_first_step_and_never_again(harmful, pictures, tmp_path, monkeypatch):
    harmful["a/0.png"] = "crash"
    (pictures / "b" / "3.png").write_bytes(b"")
    run = pretrain(recipe(pictures, vet=True, max_bad=0.0), tmp_path / "run")
    text = run.skipped.read_text()
    assert "16 files of pictures were decoded, 2 are bad" in text
    assert f"{pictures}/a/0.png\tthe decoder crashed" in text and f"{pictures}/b/3.png\t" in text
    monkeypatch.setattr(vetting, "vet", None)  # going on does not vet again
    pretrain(recipe(pictures, 12, vet=True, max_bad=0.0), tmp_path / "run")
    with pytest.raises(TypeError):
        pretrain(recipe(pictures, vet=True, max_bad=0.0), tmp_path / "run", overwrite=True)


def test_fine_tuning_vets_too(harmful, pictures, tmp_path):
    export = pretrain(recipe(pictures), tmp_path / "run").export
    harmful["a/0.png"] = "crash"
    data = DataConfig(source=(str(pictures),), vet=True, max_bad=0.0)
    run = finetune(FinetuneConfig(data, loop(2)), tmp_path / "tuned", init=str(export))
    assert "a/0.png\tthe decoder crashed" in (run / "skipped.txt").read_text()


def test_wrong_time_limit():
    with pytest.raises(MmsslError, match=r"loop\.worker_timeout must be 0 or more, got -1"):
        loop(worker_timeout=-1.0)
