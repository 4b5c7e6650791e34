"""Every file is decoded whole, in processes that can be killed; skip lists are written, read, followed and grow."""

import logging
import os
import time
from pathlib import Path

import pytest
import torch
import video_toys as toys

from mmssl import open_dataset
from mmssl.data import video_files
from mmssl.data.clips import ClipSampling
from mmssl.data.loader import Loader
from mmssl.data.skip_list import add_to_skip_list, exclude, follow_skip_list, read_skip_list, write_skip_list
from mmssl.data.vetting import vet, vet_once
from mmssl.errors import MmsslError

SMALL = {"size": (16, 24)}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Good, short and broken files of every kind."""
    folder = tmp_path / "videos"
    folder.mkdir()
    toys.write_video(folder / "a.mp4", n=70, **SMALL)
    toys.write_video(folder / "b.mkv", n=9, **SMALL)
    toys.truncated(folder / "cut.mp4", n=70, **SMALL)
    toys.damaged(folder / "damaged.mp4", n=70, size=(64, 64), index_first=True)
    toys.empty(folder / "empty.mp4")
    toys.audio_only(folder / "sound.mp4")
    toys.not_a_video(folder / "text.avi")
    toys.write_video(folder / "y.mp4", n=70, **SMALL)
    return folder


def names(found: dict) -> set[str]:
    return {Path(name).name for name in found}


def test_broken_videos_are_named_with_their_reasons(videos):
    found = vet(open_dataset(videos, split="all"), workers=2, limit=20)
    assert {Path(name).name: n for name, n in found.good.items()} == {"a.mp4": 70, "b.mkv": 9, "y.mp4": 70}
    assert names(found.bad) == {"cut.mp4", "damaged.mp4", "empty.mp4", "sound.mp4", "text.avi"}
    reasons = {Path(name).name: reason for name, reason in found.bad.items()}
    assert "no video" in reasons["sound.mp4"] and len(set(reasons.values())) >= 3
    assert all(reason and "\n" not in reason for reason in reasons.values())


def test_damage_beyond_the_first_frames_is_found(tmp_path):
    (tmp_path / "videos").mkdir()
    toys.damaged(tmp_path / "videos" / "late.mp4", n=90, size=(64, 64), index_first=True)
    toys.write_video(tmp_path / "videos" / "whole.mp4", n=90, size=(64, 64))
    dataset = open_dataset(
        tmp_path / "videos", split="all", clip=ClipSampling(frames=2, stride=1, test_clips=9), views=True
    )
    assert dataset.fetch(torch.tensor([0]))["index"].tolist() == [0]  # its beginning can be read
    assert names(vet(dataset, workers=1).bad) == {"late.mp4"}


def test_short_videos_are_bad_where_the_clip_says_so(videos):
    for name in ("cut.mp4", "damaged.mp4", "empty.mp4", "sound.mp4", "text.avi"):
        (videos / name).unlink()
    found = vet(open_dataset(videos, split="all", clip=ClipSampling(short="skip")), workers=1)
    assert names(found.bad) == {"b.mkv"} and "too short" in str(found.bad)


def test_a_decoder_that_hangs_or_crashes_is_survived(videos, monkeypatch):
    """What is fixed up here is inherited by the processes that are forked."""
    read = video_files.decoder.read_clips

    def harmful(path, *args, **kwargs):
        if str(path).endswith("b.mkv"):
            time.sleep(1000)
        if str(path).endswith("y.mp4"):
            os._exit(7)
        return read(path, *args, **kwargs)

    dataset = open_dataset(videos, split="all")
    monkeypatch.setattr(video_files.decoder, "read_clips", harmful)
    told = []
    bad = vet(dataset, workers=2, limit=1.0, tell=told.append).bad
    reasons = {Path(name).name: reason for name, reason in bad.items()}
    assert reasons["b.mkv"] == "took longer than 1 s" and reasons["y.mp4"] == "the decoder crashed (exit code 7)"
    assert "a.mp4" not in reasons
    assert dataset.bad.count == 0 and not dataset.bad.places  # nothing is noted in the dataset


def test_pictures_are_decoded_whole(pictures):
    file = pictures / "ant" / "03.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    found = vet(open_dataset(pictures, split="all"), workers=2)
    assert list(found.bad) == [str(file)] and len(found.good) == 19
    (pictures / "bee" / "00.jpg").write_bytes(b"")
    found = vet(open_dataset(pictures, split="all", max_bad=0.0).subset([1, 2]), workers=1)
    assert len(found.bad) == 2  # the whole of the dataset, and no limit


def test_wrong_limit():
    with pytest.raises(MmsslError, match="limit is a number of seconds above 0, got -1"):
        vet(None, limit=-1.0)


def spoil(pictures: Path, *which: str) -> None:
    for name in which:
        (pictures / name).write_bytes(b"not a picture")


def test_vetted_once_in_a_run(pictures, tmp_path, caplog):
    spoil(pictures, "ant/01.jpg", "bee/04.jpg")
    file = tmp_path / "run" / "skipped.txt"
    file.parent.mkdir()
    dataset = open_dataset(pictures, image_size=16, split="all", max_bad=0.0)
    vet_once(dataset, file, workers=1)
    assert dataset.bad.places == {1, 14} and dataset.bad.count == 0
    assert dataset.fetch(torch.arange(4))["index"].tolist() == [0, 2, 2, 3]
    text = file.read_text()
    assert "20 files of pictures were decoded, 2 are bad" in text and str(pictures / "ant" / "01.jpg") in text
    spoil(pictures, "ant/02.jpg")  # after it was vetted
    again = open_dataset(pictures, image_size=16, split="all", max_bad=0.5)
    with caplog.at_level(logging.WARNING, logger="mmssl.data"):
        vet_once(again, file, workers=1, is_main=False)
        assert again.bad.places == {1, 14} and "2 of 20 samples are left out" in caplog.text
        again.fetch(torch.arange(4))
    assert list(names(read_skip_list(file))).count("02.jpg") == 1 and again.bad.count == 1


# Skip lists.


def test_training_adds_to_the_list_and_the_next_run_follows_it(pictures, tmp_path):
    spoil(pictures, "ant/01.jpg", "ant/05.jpg")
    file = tmp_path / "skip.txt"
    for count in (2, 0):
        dataset = open_dataset(pictures, image_size=16, split="all", max_bad=0.1, skip_list=file)
        loader = Loader(dataset, 4, workers=2)
        first = list(loader.epoch(0))
        assert dataset.bad.count == count
        loader.close()
    assert file.read_text().count("\n") == 3 and "pictures/ant/01.jpg\tUnidentifiedImageError" in file.read_text()
    assert all(place not in (1, 5) for batch in first for place in batch["index"].tolist())
    dataset = open_dataset(pictures, image_size=16, split="all", max_bad=0.0, skip_list=file)
    list(Loader(dataset, 4).epoch(0))  # what is on the list does not count


def test_every_way_to_write_a_path(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    file = pictures / "list.txt"
    lines = [
        "# a comment",
        "",
        "ant/00.jpg\tgrey",
        f"{pictures}/ant/01.jpg",
        "pictures/ant/02.jpg\t\r",
        "not/there.jpg\tx",
    ]
    file.write_text("\n".join(lines))
    dataset = open_dataset("pictures", split="all")
    assert exclude(dataset, read_skip_list(file)) == 3 and dataset.bad.places == {0, 1, 2}
    add_to_skip_list(file, dataset.sample_name(3), "two\twords\nand more")
    assert file.read_text().endswith("not/there.jpg\tx\nant/03.jpg\ttwo words and more\n")
    add_to_skip_list(file, dataset.sample_name(3), "again")
    add_to_skip_list(file, dataset.sample_name(4), "FileNotFoundError: [Errno 2] No such file or directory")
    assert file.read_text().endswith("and more\n")  # once, and not what may be there tomorrow


def test_what_may_be_there_tomorrow_is_not_listed(videos, tmp_path):
    file, cut = tmp_path / "skip.txt", videos / "cut.mp4"
    dataset = open_dataset(videos, split="all", image_size=16, max_bad=1.0, skip_list=file)
    (videos / "a.mp4").unlink()
    dataset.fetch(torch.arange(3))
    assert {"a.mp4", "cut.mp4"} <= names(dataset.bad.names)
    assert str(cut) in read_skip_list(file) and "a.mp4" not in file.read_text()


def test_odd_names_survive(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    odd = [folder / "#1.jpg", folder / "ünï cödé.jpg", Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg"))]
    write_skip_list(folder / "skip.txt", {str(path): "bad" for path in odd})
    assert {str(path) for path in odd} <= read_skip_list(folder / "skip.txt").keys()


def test_wrong_lists(pictures, tmp_path):
    with pytest.raises(MmsslError, match="must be a text file in a folder that exists"):
        open_dataset(pictures, split="all", skip_list=tmp_path / "no" / "skip.txt")
    with pytest.raises(MmsslError, match="must be a text file in a folder that exists"):
        open_dataset(pictures, split="all", skip_list=tmp_path)
    every = open_dataset(pictures, split="all")
    write_skip_list(tmp_path / "all.txt", {every.sample_name(k): "no" for k in range(20)})
    with pytest.raises(MmsslError, match="all of the 20 samples are on a skip list"):
        follow_skip_list(every, tmp_path / "all.txt")
