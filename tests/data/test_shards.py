"""webdataset shards: every sample as webdataset reads it, indices that are kept, damaged files, splits, labels."""

import gzip
import io
import json
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mmssl import open_dataset
from mmssl.data import shards_index
from mmssl.data.loader import Loader
from mmssl.data.shards_files import _braces
from mmssl.data.shards_index import CLASS, IMAGE, JSON, TEXT
from mmssl.data.text import TextEncoding
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError

LINE = TextEncoding(length=24)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def picture(value: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(first: int, n: int) -> dict[str, bytes]:
    members = {}
    for k in range(first, first + n):
        members |= {f"{k:04d}.png": picture(k), f"{k:04d}.txt": f"picture {k}\n".encode()}
    return members


def values(dataset) -> list[int]:
    return dataset.fetch(torch.arange(len(dataset)))["image"][:, 0, 0, 0].tolist()


MIXED = {
    "notes": b"no suffix",
    "a/0.JPG": picture(10, "JPEG"),
    "a/0.txt": "  one caption \n\nanother é\n".encode(),
    "a/1.webp": picture(20, "WEBP"),
    "b/1.txt": b"text alone",
    "b/1.cls": b"3",
    "b/2.png": picture(30),
    "b/2.json": json.dumps({"caption": ["from", " JSON "], "width": 16}).encode(),
    "c.d/3.seg.png": picture(1),  # another part of the sample, and not its picture
    "c.d/3.jpg": picture(40, "JPEG"),
    "c.d/3.txt": b"\n",
    "c.d/3.json": b'{"text": "a text in JSON"}',
    "only/4.cls": b"1",
    f"{'long/' * 40}5.jpeg": picture(50, "JPEG"),
    f"{'long/' * 40}5.txt": b"a long name",
}


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_same_samples_and_bytes_as_webdataset(tmp_path, layout):
    webdataset = pytest.importorskip("webdataset")
    path = write(tmp_path / "d" / "0.tar", MIXED, format=layout)
    dataset = open_dataset(str(path), split="all", text=LINE)
    suffixes = {IMAGE: ("jpg", "jpeg", "png", "webp"), TEXT: ("txt",), JSON: ("json",), CLASS: ("cls",)}
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    theirs = [sample for sample in theirs if {"jpg", "jpeg", "png", "webp", "txt"} & sample.keys()]
    assert [dataset.key(k) for k in range(len(dataset))] == [sample["__key__"] for sample in theirs]
    for place, sample in enumerate(theirs):
        for part, names in suffixes.items():
            assert dataset.content(place, part) == next((sample[name] for name in names if name in sample), None)


def test_any_part_may_be_missing(tmp_path):
    dataset = open_dataset(write(tmp_path / "0.tar", MIXED).parent, split="all", image_size=8, text=LINE)
    batch = dataset.fetch(torch.arange(6))
    assert batch["present/image"].tolist() == [True, True, False, True, True, True]
    assert batch["present/text"].tolist() == [True, False, True, True, True, True]
    assert batch["image"][:, 0, 0, 0].tolist() == [10, 20, 0, 30, 40, 50]
    first = ["one caption", "", "text alone", "from", "a text in JSON", "a long name"]
    assert dataset.text_encoder.decode(batch["text"]) == first and not batch["text_mask"][1].any()
    several = [["one caption", "another é"], [], ["text alone"], ["from", "JSON"], ["a text in JSON"], ["a long name"]]
    assert [dataset.caption(k) for k in range(6)] == several
    assert dataset.sample_name(2) == f"{tmp_path}/0.tar/b/1" and dataset.targets == ()
    keys = torch.arange(64)
    drawn = dataset.fetch(torch.zeros(64, dtype=torch.int64), keys, Augmentation())["text"]
    assert set(dataset.text_encoder.decode(drawn)) == {"one caption", "another é"}


def test_what_all_samples_have_is_said_of_none(tmp_path):
    write(tmp_path / "d" / "0.tar", pairs(0, 4))
    batch = open_dataset(tmp_path / "d", split="all", image_size=8, text=LINE).fetch(torch.tensor([2, 0]))
    assert set(batch) == {"image", "text", "text_mask", "index"}
    write(tmp_path / "p" / "0.tar", {"0.png": picture(3)})
    assert set(open_dataset(tmp_path / "p", split="all", text=LINE)[0]) == {"image", "index"}
    write(tmp_path / "t" / "0.tar", {"0.txt": b"word"})
    assert set(open_dataset(tmp_path / "t", split="all", text=LINE)[0]) == {"text", "text_mask", "index"}


def test_without_text_only_pictures_are_samples(tmp_path):
    write(tmp_path / "d" / "0.tar", MIXED)
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8)
    assert values(dataset) == [10, 20, 30, 40, 50]
    write(tmp_path / "t" / "0.tar", {"0.txt": b"word"})
    with pytest.raises(MmsslError, match=r"have no picture; set data.text to read texts alone"):
        open_dataset(tmp_path / "t", split="all")
    write(tmp_path / "n" / "0.tar", {"0.mp4": b"word"})
    with pytest.raises(MmsslError, match=r"no sample with a picture or a text; a sample is KEY.jpg with KEY.txt"):
        open_dataset(tmp_path / "n", split="all", text=LINE)


def test_any_order_with_and_without_workers(tmp_path):
    for shard in range(3):
        write(tmp_path / "d" / f"{shard}.tar", pairs(10 * shard, 4 + shard))
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8, text=LINE)
    every = [0, 1, 2, 3, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24, 25]
    assert values(dataset) == every and dataset.fetch(torch.tensor([14, 0, 5]))["image"][:, 0, 0, 0].tolist() == [
        *(25, 0, 11)
    ]
    pool = Loader(dataset, 4, workers=2)  # forked from a process that has the shards open
    for left, right in zip(Loader(dataset, 4).epoch(1), pool.epoch(1), strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)
    pool.close()
    assert values(open_dataset(tmp_path / "d", split="all", image_size=8, cache="memory")) == every


def test_more_shards_than_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr("mmssl.data.shards._OPEN", 2)
    for shard in range(5):
        write(tmp_path / "d" / f"{shard}.tar", pairs(shard, 1))
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8)
    assert values(dataset) == [0, 1, 2, 3, 4] and values(dataset)[::-1] == [4, 3, 2, 1, 0]
    assert len(dataset._handles._files) == 2


def test_an_index_is_made_once_and_again_for_another_file(tmp_path, monkeypatch):
    path, made = write(tmp_path / "d" / "0.tar", pairs(0, 3)), []
    whole = shards_index.make_index
    monkeypatch.setattr(shards_index, "make_index", lambda file: made.append(file.name) or whole(file))
    for _ in range(2):
        assert values(open_dataset(tmp_path / "d", split="all", image_size=8)) == [0, 1, 2]
    assert len(made) == 1
    (kept,) = (tmp_path / "cache" / "shards").iterdir()
    assert kept.suffix == ".npz"
    write(path, pairs(7, 3))  # as large as before
    os.utime(path, ns=(1, 1))
    assert values(open_dataset(tmp_path / "d", split="all", image_size=8)) == [7, 8, 9] and len(made) == 2
    kept.write_bytes(kept.read_bytes()[:200])
    assert values(open_dataset(tmp_path / "d", split="all", image_size=8)) == [7, 8, 9] and len(made) == 3


def test_many_shards_are_walked_by_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("mmssl.data.shards._EACH", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    for shard in range(5):
        write(tmp_path / "d" / f"{shard}.tar", pairs(shard, 1))
    pools = []
    started = lambda *args: pools.append(args[0]) or ProcessPoolExecutor(*args)  # noqa: E731
    monkeypatch.setattr("mmssl.data.shards.ProcessPoolExecutor", started)
    assert values(open_dataset(tmp_path / "d", split="all", image_size=8)) == [0, 1, 2, 3, 4]
    assert values(open_dataset(tmp_path / "d", split="all", image_size=8)) == [0, 1, 2, 3, 4]
    assert pools == [2] and len(list((tmp_path / "cache" / "shards").iterdir())) == 5


def test_no_place_to_keep_an_index(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "file"))
    write(tmp_path / "d" / "0.tar", pairs(0, 3))
    assert values(open_dataset(tmp_path / "d", split="all", image_size=8)) == [0, 1, 2]
    assert os.listdir(tmp_path / "d") == ["0.tar"]


def test_a_shard_that_is_cut_off(tmp_path, caplog):
    path = write(tmp_path / "d" / "0.tar", pairs(0, 5))
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [m.offset_data + m.size for m in tar.getmembers()]
    inside = content[: ends[6] - 1]  # the fourth picture lacks its last byte
    path.write_bytes(inside)
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8, text=LINE)
    assert values(dataset) == [0, 1, 2]
    assert dataset.damage == {str(path): "cut off inside 0003.png"}
    assert "damaged shard, its good part is used" in caplog.text and str(path) in caplog.text
    path.write_bytes(content[: -(-ends[3] // 512) * 512])  # between two members
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8, text=LINE)
    assert values(dataset) == [0, 1] and "no end mark" in dataset.damage[str(path)]
    path.write_bytes(content[: -(-ends[3] // 512) * 512 + 100])  # inside a header
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8, text=LINE)
    assert values(dataset) == [0, 1] and "no member at byte" in dataset.damage[str(path)]


def test_a_damaged_stretch_is_skipped(tmp_path):
    path = write(tmp_path / "d" / "0.tar", pairs(0, 5))
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        second = tar.getmember("0001.png").offset
    content[second : second + 700] = bytes(range(1, 101)) * 7
    path.write_bytes(content)
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8, text=LINE)
    assert [dataset.key(k) for k in range(len(dataset))] == ["0000", "0001", "0002", "0003", "0004"]
    assert dataset.fetch(torch.arange(5))["present/image"].tolist() == [True, False, True, True, True]
    assert dataset.caption(1) == ["picture 1"]
    assert dataset.damage == {str(path): f"no member at byte {second}, the next 1024 bytes are skipped"}
    path.write_bytes(b"\x01" * 5000)
    with pytest.raises(MmsslError, match=r"no sample with a picture or a text \(no member at byte 0\)"):
        open_dataset(tmp_path / "d", split="all", text=LINE)
    path.write_bytes(b"")
    with pytest.raises(MmsslError, match=r"no sample with a picture or a text \(empty\)"):
        open_dataset(tmp_path / "d", split="all", text=LINE)


def test_a_long_name_that_is_cut_off(tmp_path):
    members = {"0.png": picture(1), "0.txt": b"word", f"{'long/' * 300}1.png": picture(2)}
    path = write(tmp_path / "d" / "0.tar", members, format=tarfile.GNU_FORMAT)
    with tarfile.open(path) as tar:
        end = -(-(tar.getmembers()[1].offset_data + 4) // 512) * 512
    path.write_bytes(path.read_bytes()[: end + 512 + 700])
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8, text=LINE)
    assert values(dataset) == [1] and len(dataset.damage) == 1


def test_unreadable_samples_are_skipped_and_named(tmp_path):
    members = pairs(0, 6) | {"0001.png": b"junk", "0003.txt": b"\xff\xfe\xfa", "0005.txt": b"", "0005.json": b"{"}
    write(tmp_path / "d" / "0.tar", members)
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8, text=LINE, max_bad=0.5)
    assert values(dataset) == [0, 2, 2, 4, 4, 0]
    assert [Path(name).name for name in dataset.bad.names] == ["0001", "0003", "0005"]
    path = tmp_path / "d" / "0.tar"
    os.truncate(path, 600)  # under the open dataset
    with pytest.raises(MmsslError, match=r"shorter than it was when it was indexed"):
        dataset.fetch(torch.tensor([4]))


def test_a_name_that_comes_twice(tmp_path):
    members = [("0.png", picture(1)), ("0.png", picture(2)), ("0.txt", b"a"), ("1.png", picture(3)), ("0.txt", b"b")]
    write(tmp_path / "d" / "0.tar", members)
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8, text=LINE)
    assert [dataset.key(k) for k in range(3)] == ["0", "1", "0"]
    assert dataset.content(0, IMAGE) == picture(1) and [dataset.caption(k) for k in range(3)] == [["a"], [], ["b"]]
    assert list(dataset.damage.values()) == ["0.png is there twice, the first one counts"]


def test_splits_by_folder_by_name_and_held_out(tmp_path):
    write(tmp_path / "f" / "train" / "part" / "0.tar", pairs(0, 3))
    write(tmp_path / "f" / "validation" / "0.tar", pairs(50, 2))
    write(tmp_path / "n" / "cc-train-00.tar", pairs(0, 2))
    write(tmp_path / "n" / "cc-train-01.tar", pairs(2, 1))
    write(tmp_path / "n" / "cc-val-00.tar", pairs(50, 2))
    for folder in ("f", "n"):
        parts = [values(open_dataset(tmp_path / folder, image_size=8, split=s)) for s in ("train", "test", "all")]
        assert parts == [[0, 1, 2], [50, 51], [0, 1, 2, 50, 51]]
        with pytest.raises(MmsslError, match=r"has no split 'dev'; valid: train, val"):
            open_dataset(tmp_path / folder, split="dev")
    write(tmp_path / "h" / "0.tar", pairs(0, 6))
    write(tmp_path / "h" / "1.tar", pairs(6, 4))
    parts = [values(open_dataset(tmp_path / "h", image_size=8, split=s)) for s in ("train", "test")]
    assert parts == [[0, 1, 2, 3, 5, 6, 7, 8], [4, 9]]
    with pytest.raises(MmsslError, match=r"no split 'val'; valid: train, test \(every 5th sample\), all"):
        open_dataset(tmp_path / "h", split="val")
    write(tmp_path / "one" / "0.tar", pairs(0, 1))
    with pytest.raises(MmsslError, match=r"the test part of .* is empty, it has 1 sample\(s\); use split: all"):
        open_dataset(tmp_path / "one", split="test")


def test_patterns(tmp_path):
    for shard in range(3):
        write(tmp_path / f"s-{shard:02d}.tar", pairs(shard, 1))
    for pattern, expected in {"s-{00..01}.tar": [0, 1], "s-{02,00}.tar": [2, 0], "s-0?.tar": [0, 1, 2]}.items():
        assert values(open_dataset(str(tmp_path / pattern), split="all", image_size=8)) == expected
    joined = [str(tmp_path / "s-02.tar"), str(tmp_path / "s-00.tar")]
    assert values(open_dataset(joined, split="all", image_size=8)) == [2, 0]
    with pytest.raises(MmsslError, match=r"2 of its 4 shards are missing, e.g. .*s-03.tar; give a pattern"):
        open_dataset(str(tmp_path / "s-{01..04}.tar"))
    with pytest.raises(MmsslError, match=r"t-\*.tar: no file fits"):
        open_dataset(str(tmp_path / "t-*.tar"))


def test_shards_join_with_other_sources(tmp_path):
    write(tmp_path / "d" / "0.tar", pairs(0, 2))
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "0.txt").write_text("text alone")
    sources = [tmp_path / "d", tmp_path / "t"]
    batch = open_dataset(sources, split="all", image_size=8, text=LINE).fetch(torch.arange(3))
    assert batch["present/image"].tolist() == [True, True, False] and "present/text" in batch
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 0] and batch["text_mask"].sum(1).tolist() == [9, 9, 10]


def test_braces():
    assert _braces("a{8..11}") == ["a8", "a9", "a10", "a11"]
    assert _braces("{x,y}-{098..100}.tar")[2:5] == ["x-100.tar", "y-098.tar", "y-099.tar"]
    assert _braces("plain.tar") == ["plain.tar"]


def test_classes(tmp_path, caplog):
    members = {}
    for k, label in enumerate([b"2", b"0\n", b"2"]):
        members |= {f"{k}.png": picture(k), f"{k}.cls": label}
    write(tmp_path / "d" / "0.tar", members)
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8)
    assert dataset.classes == ["0", "1", "2"] and dataset[0]["label"] == 2 and dataset.labels().tolist() == [2, 0, 2]
    for part, labels in {"train": [2, 0], "test": [2]}.items():
        cut = open_dataset(tmp_path / "d", split=part, test_every=3)
        assert cut.labels().tolist() == labels and cut.classes == ["0", "1", "2"]
    write(tmp_path / "e" / "0.tar", {**members, "1.cls": b"4", "2.cls": b"7"})
    assert open_dataset(tmp_path / "e", split="train", test_every=3).classes == [str(k) for k in range(8)]
    card = {"name": "c", "modality": "image", "kind": "webdataset", "layout": "l", "how_to_get": "h", "licence": "MIT"}
    for classes in (["ant", "bee", "cat"], ["ant", "bee"]):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({**card, "path": "d", "classes": classes}))
        if len(classes) == 3:
            assert open_dataset(tmp_path / "c.yaml", split="all").classes == classes
        else:
            with pytest.raises(MmsslError, match=r"lists 2 classes, but its shards have a .cls of 2"):
                open_dataset(tmp_path / "c.yaml", split="all")
    write(tmp_path / "d" / "0.tar", {**members, "1.cls": b"bee"})
    assert open_dataset(tmp_path / "d", split="all").task is None and "no .cls with a number" in caplog.text


def test_compressed_and_missing(tmp_path):
    path = write(tmp_path / "d" / "0.tar", pairs(0, 1))
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed)
    with pytest.raises(MmsslError, match=r"0.tar is compressed, so that its samples cannot be found; unpack it"):
        open_dataset(tmp_path / "d")
    path.unlink()
    (tmp_path / "d" / "0.tar.gz").write_bytes(packed)
    with pytest.raises(MmsslError, match=r"are compressed \(0.tar.gz\); unpack them to .tar"):
        open_dataset(tmp_path / "d")
    (tmp_path / "e").mkdir()
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({**dict.fromkeys(("name", "layout", "how_to_get", "licence"), "x"), "modality": "image"})
        + "kind: webdataset\npath: e\n"
    )
    with pytest.raises(MmsslError, match=r"there is no shard \(.tar\) in .*e; give a folder that has some"):
        open_dataset(tmp_path / "c.yaml")
