"""Lists of sounds: AudioSet's, the authors' JSON, ESC-50's, plain CSV; classes, parts, folds, and what is refused."""

import json
import logging

import numpy as np
import pytest
import torch
from audio_toys import write_sound

from mmssl import open_dataset
from mmssl.data.audio import read_audio
from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.loader import Loader
from mmssl.errors import MmsslError

SHORT = AudioSampling(seconds=0.25)
IDS = ("--PJHxphWEs", "Yabcdefghij", "0_2345678_0")
CLASSES = (
    'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/t/dd00088,Gargling\n'
)
AUDIOSET = (
    "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=22160, num_segs=22160\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
    '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
    'Yabcdefghij, 0.200, 0.500, "/m/05zppz"\n'
    '0_2345678_0, 1.000, 11.000, "/t/dd00088"\n'
    'not_there_1, 1.000, 11.000, "/m/09x0r"\n'
)


@pytest.fixture
def audioset(tmp_path):
    """Two clips that are cut already, and one whole video, under three ways to call them."""
    write_sound(tmp_path / "balanced" / "--PJHxphWEs_30.wav", 0.5)
    write_sound(tmp_path / "balanced" / "YYabcdefghij.flac", 1.0)
    write_sound(tmp_path / "balanced" / "0_2345678_0.ogg", 0.5)
    (tmp_path / "balanced.csv").write_text(AUDIOSET)
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    return tmp_path


def test_audioset(audioset, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(audioset / "balanced.csv", audio=SHORT, split="all")
    assert "1 of the 4 clips of" in caplog.text
    assert dataset.task == "multi_label" and dataset.classes == ["Speech", "Male speech, man speaking", "Gargling"]
    expected = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 1]])
    assert torch.equal(dataset.labels(), expected)
    batch = dataset.fetch(torch.tensor([2, 0]))
    assert torch.equal(batch["label"], expected[[2, 0]]) and batch["label"].dtype == torch.float32
    assert dataset[0]["audio"].shape == (1, 4000)
    # 0.2 to 0.5 of the whole video, of which the middle quarter of a second
    whole = read_audio(audioset / "balanced" / "YYabcdefghij.flac")
    np.testing.assert_array_equal(dataset[1]["audio"][0], whole[3200 + 400 : 3200 + 4400])


def test_audioset_is_balanced_by_its_packed_labels_even_without_a_target(audioset):
    """Weights: Speech alone 1, Gargling shared by two; so 1.5, 1 and 0.5 of 3."""
    options = {"audio": SHORT, "split": "all", "balance": True, "epoch_samples": 3000}
    for target in (None, "none"):
        dataset = open_dataset(audioset / "balanced.csv", target=target, **options)
        share = torch.bincount(Loader(dataset, 10).order(0), minlength=3) / 3000
        torch.testing.assert_close(share, torch.tensor([1.5, 1.0, 0.5]) / 3, atol=0.04, rtol=0)


def test_the_card_of_audioset(audioset, monkeypatch):
    for part in ("unbalanced_train", "balanced_train", "eval"):
        lines = AUDIOSET.splitlines(keepends=True)
        (audioset / f"{part}_segments.csv").write_text("".join(lines[:3] + lines[3 : 4 + 2 * (part == "eval")]))
    monkeypatch.setenv("AUDIOSET", str(audioset))
    train, test = (open_dataset("audioset", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (2, 3) and train[0]["audio"].shape == (1, 160000)
    assert train.classes == test.classes and len(open_dataset("audioset-20k")) == 1


def test_labels_that_the_class_list_lacks_are_all_named(audioset):
    (audioset / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/09x0r,Speech\n")
    with pytest.raises(MmsslError, match=r"lacks 2 of the labels of 'balanced': '/m/05zppz', '/t/dd00088'; mend"):
        open_dataset(audioset / "balanced.csv")
    (audioset / "class_labels_indices.csv").write_text("index,mid\n0,/m/09x0r\n")
    with pytest.raises(MmsslError, match=r"must have the columns index,mid,display_name, counted from 0"):
        open_dataset(audioset / "balanced.csv")


def test_no_clip_of_audioset_is_there(audioset):
    (audioset / "lost").mkdir()
    (audioset / "lost" / "balanced.csv").write_text(AUDIOSET)
    with pytest.raises(MmsslError, match=r"none of the 4 clips of .* put them there as <YouTube id>\.wav"):
        open_dataset(audioset / "lost" / "balanced.csv")


def test_the_authors_json(tmp_path):
    paths = [tmp_path / "sounds" / f"{k}.wav" for k in range(3)]
    for path in paths:
        write_sound(path, 0.5)
    labels = ["/m/09x0r,/t/dd00088", "/m/05zppz", "/m/09x0r"]
    rows = [{"wav": str(path), "labels": label} for path, label in zip(paths, labels, strict=True)]
    (tmp_path / "train.json").write_text(json.dumps({"data": rows}))
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    dataset = open_dataset(tmp_path / "train.json", split="all", audio=SHORT)
    assert torch.equal(dataset.labels(), torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 0]]))
    lists = [{"path": f"sounds/{k}.wav", "labels": ["b", "a"][: k + 1]} for k in range(2)]
    (tmp_path / "plain.json").write_text(json.dumps(lists))
    (tmp_path / "class_labels_indices.csv").unlink()
    plain = open_dataset(tmp_path / "plain.json", split="all", audio=SHORT)
    assert plain.classes == ["a", "b"] and plain.labels().tolist() == [[0.0, 1.0], [1.0, 1.0]]


@pytest.fixture
def esc50(tmp_path):
    folder = tmp_path / "ESC-50-master"
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category in ((0, "dog"), (14, "chirping_birds"), (1, "rooster")):
            name = f"{fold}-100032-A-{target}.wav"
            write_sound(folder / "audio" / name, 0.3, 44100)
            rows.append(f"{name},{fold},{target},{category},True,100032,A")
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("how", ["folder", "list", "card"])
def test_esc50_and_its_folds(esc50, monkeypatch, how):
    monkeypatch.setenv("ESC50", str(esc50))
    source = {"folder": esc50, "list": esc50 / "meta" / "esc50.csv", "card": "esc50"}[how]
    fold = {s: open_dataset(source, split=s, fold=2, audio=SHORT) for s in ("train", "test", "all")}
    assert {s: len(d) for s, d in fold.items()} == {"train": 12, "test": 3, "all": 15}
    test = fold["test"]
    assert test.folds == 5 and test.task == "single_label" and test.classes == ["dog", "rooster", "chirping_birds"]
    assert all("/2-" in test.sample_name(k) for k in range(3)) and test.labels().tolist() == [0, 2, 1]
    assert test[0]["audio"].shape == (1, 4000)
    assert all("/5-" in open_dataset(source, split="test").sample_name(k) for k in range(3))  # the last, by default
    with pytest.raises(MmsslError, match=r"fold must be a number from 1 to 5 of '\S+', got 6"):
        open_dataset(source, split="test", fold=6)


def test_plain_csv_with_parts_and_segments(tmp_path):
    write_sound(tmp_path / "a b.wav", 2.0)
    (tmp_path / "list.csv").write_text(
        "path,label,start,end,split\na b.wav,low,0,0.5,train\na b.wav,high,1.25,1.75,test\na b.wav,high,,,train\n"
    )
    train, test = (open_dataset(tmp_path / "list.csv", split=split, audio=SHORT) for split in ("train", "test"))
    assert (len(train), len(test)) == (2, 1) and train.classes == ["high", "low"]
    whole = read_audio(tmp_path / "a b.wav")
    np.testing.assert_array_equal(test[0]["audio"][0], whole[20000 + 2000 : 20000 + 6000])
    starts = train.fetch(torch.zeros(30, dtype=torch.int64), torch.arange(30), None)
    assert torch.equal(starts["audio"][0, 0], torch.from_numpy(whole[2000:6000]))


def test_a_list_without_labels_and_one_that_is_held_out(tmp_path):
    for k in range(5):
        write_sound(tmp_path / f"{k}.wav", 0.3)
    (tmp_path / "list.txt").write_text("path\n" + "".join(f"{k}.wav\n" for k in range(5)))
    train, test = (open_dataset(tmp_path / "list.txt", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 1) and train.task is None and "label" not in train[0]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "path,label\n", "is empty; write one sound a line"),
        ("a.csv", "sound.wav,dog\nb.wav,cat\n", "has no column for the path"),
        ("a.csv", "path,label\n,dog\n", "entry 2 of .* has no path"),
        ("a.csv", "path,fold\na.wav,one\n", "fold and target must be whole numbers"),
        ("a.csv", "path,start,end\na.wav,3,2\n", "ends at 2 s, not after its start at 3 s"),
        ("a.csv", "path,label\na.wav,dog\nb.wav,\n", "1 of the 2 sounds of 'a' have no label or several"),
        ("a.json", "{", "is no JSON"),
        ("a.json", '{"rows": []}', 'must be {"data"'),
        ("a.json", '[{"labels": "x"}]', "entry 1 of .* has no path"),
        ("a.csv", '--PJHxphWEs, 30.0, 40.0, "/m/1"\nsomething else\n', "is not `YTID, start, end"),
    ],
)
def test_lists_that_are_wrong(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(MmsslError, match=sentence):
        open_dataset(tmp_path / name, split="all", audio=SHORT)


def test_lists_of_videos_are_still_lists_of_videos(tmp_path):
    (tmp_path / "list.csv").write_text("a.mp4 0\nb.mp4 1\n")
    with pytest.raises(MmsslError, match="the videos of 'list' are not there"):
        open_dataset(tmp_path / "list.csv", split="all")
