"""Pictures with captions, in folders and tables, where any sample may lack the one or the other."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl import open_dataset
from mmssl.data import text as text_data
from mmssl.data.caption_tables import lists_captions
from mmssl.data.image_text import Captions
from mmssl.data.loading import DataConfig, Loader
from mmssl.data.missing import fill_missing
from mmssl.data.text import TextEncoding, text_encoder
from mmssl.data.transforms import Augmentation, BatchAugment
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys

TEXT = TextEncoding(length=24)
STILL = Augmentation(crop_scale=None, hflip=0.0)


def write_picture(path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (value, 2, 3)).save(path)


@pytest.fixture
def pairs(tmp_path):
    """Two class folders of a pair, a pair with two captions, a picture alone, a caption alone and a picture whose
    captions are empty."""
    root = tmp_path / "pairs"
    for k, name in enumerate(("ant", "bee")):
        for stem in ("a", "b", "c", "e"):
            write_picture(root / name / f"{stem}.png", 10 * k + ord(stem))
        for stem, text in {"a": f"one {name}\n", "b": "first\n\n  second \n", "d": "a text alone", "e": " \n"}.items():
            (root / name / f"{stem}.txt").write_text(text)
    (root / "ant" / "README.txt").write_text("about this folder")
    (root / "notes.txt").write_text("about all")
    return root


def texts_of(dataset, batch) -> list[str]:
    return dataset.text_encoder.decode(batch["text"])


def test_a_folder_of_pairs_and_halves(pairs):
    dataset = open_dataset(pairs, image_size=8, split="all", text=TEXT)
    assert len(dataset) == 10 and dataset.classes == ["ant", "bee"] and dataset.lacks == ("image", "text")
    assert [dataset.caption(k) for k in range(5)] == [["one ant"], ["first", "second"], [], ["a text alone"], []]
    batch = dataset.fetch(torch.arange(10))
    assert batch["present/image"].tolist() == [True, True, True, False, True] * 2
    assert batch["present/text"].tolist() == [True, True, False, True, False] * 2
    assert texts_of(dataset, batch)[:5] == ["one ant", "first", "", "a text alone", ""]
    assert batch["label"].tolist() == [0] * 5 + [1] * 5 and batch["index"].tolist() == list(range(10))
    assert batch["image"].shape == (10, 3, 8, 8) and batch["image"].dtype == torch.uint8
    assert batch["image"][:, 0, 0, 0].tolist() == [97, 98, 99, 0, 101, 107, 108, 109, 0, 111]
    assert not batch["text_mask"][~batch["present/text"]].any() and not batch["text"][~batch["text_mask"]].any()
    expected = text_encoder(TEXT)(["one ant", "first", None, "a text alone", None])
    assert torch.equal(batch["text"][:5], expected[0]) and torch.equal(batch["text_mask"][:5], expected[1])
    assert dataset.subset([3, 1]).caption(0) == ["a text alone"]
    assert "present/image" in dataset.subset([0, 1]).fetch(torch.tensor([0]))  # what a batch holds never changes


def test_captions_are_recognised_and_kept_out_of_other_runs(pairs, tmp_path):
    """Nobody asked for text: the pictures are those of a plain folder, with their captions beside them."""
    dataset = open_dataset(pairs, image_size=8, split="all")
    assert len(dataset) == 8 and dataset.lacks == ("text",) and dataset.caption(1) == ["first", "second"]
    batch = dataset.fetch(torch.arange(8))
    for file in pairs.rglob("*.txt"):
        file.unlink()
    plain = open_dataset(pairs, image_size=8, split="all")
    assert type(plain).__name__ == "ImageFiles" and list(plain.files) == list(dataset.files)
    pictures = plain.fetch(torch.arange(8))
    assert set(pictures) == {"image", "index", "label"} and all(torch.equal(pictures[k], batch[k]) for k in pictures)


def test_pictures_alone_and_texts_alone(pairs, tmp_path, caplog):
    for file in pairs.rglob("*.txt"):
        file.unlink()
    pictures = open_dataset(pairs, image_size=8, split="all", text=TEXT)
    assert set(pictures[0]) == {"image", "index", "label"} and pictures.lacks == () and pictures.text_encoder is None
    assert "has no captions, its batches no text" in caplog.text
    (tmp_path / "words").mkdir()
    for k in range(10):
        (tmp_path / "words" / f"{k}.txt").write_text(f"text {k}")
    words = [open_dataset(tmp_path / "words", split=split, text=TEXT) for split in ("train", "test")]
    assert [len(part) for part in words] == [8, 2] and words[1].modality == "text"
    assert set(words[0][0]) == {"text", "text_mask", "present/text", "index"}


def test_training_draws_a_caption_by_its_key(pairs):
    dataset = open_dataset(pairs, image_size=8, split="all", text=TEXT)
    index = torch.ones(400, dtype=torch.int64)
    keys = sample_keys(0, 0, torch.arange(400), index)
    drawn = texts_of(dataset, dataset.fetch(index, keys, STILL))
    assert 150 < drawn.count("first") < 250 and drawn.count("first") + drawn.count("second") == 400
    assert texts_of(dataset, dataset.fetch(index[:50], keys[350:], STILL)) == drawn[350:]
    assert texts_of(dataset, dataset.fetch(index[:50], keys[350:])) == ["first"] * 50  # nothing is drawn in evaluation


def test_splits_are_those_of_pictures(pairs):
    parts = [open_dataset(pairs, image_size=8, split=split, text=TEXT) for split in ("train", "test", "all")]
    names = [[part.sample_name(k) for k in range(len(part))] for part in parts]
    assert sorted(names[0] + names[1]) == names[2] and [n[-9:] for n in names[1]] == ["ant/e.png", "bee/e.png"]
    for split in ("train", "val"):
        shutil.copytree(pairs, pairs.parent / "divided" / split)
    divided = open_dataset(pairs.parent / "divided", image_size=8, split="test", text=TEXT)
    assert len(divided) == 10 and divided.classes == ["ant", "bee"] and divided.caption(0) == ["one ant"]


def test_memory_gives_the_same(pairs):
    disk, memory = (open_dataset(pairs, image_size=8, text=TEXT, cache=cache) for cache in ("none", "memory"))
    for key, value in disk.fetch(torch.arange(8)).items():
        assert torch.equal(memory.fetch(torch.arange(8))[key], value)


def test_workers_count_what_they_cut(pairs, caplog, monkeypatch):
    monkeypatch.setattr(text_data, "_TOLD", set())
    dataset = open_dataset(pairs, image_size=8, split="all", text=TextEncoding(length=5))
    loader = Loader(dataset, 5, augmentation=STILL, workers=2)
    alone = Loader(open_dataset(pairs, image_size=8, split="all", text=TextEncoding(length=5)), 5, augmentation=STILL)
    with caplog.at_level(logging.WARNING):
        batches = [list(loader.epoch(epoch)) for epoch in range(2)]
    loader.close()
    assert sum("are cut there" in record.message for record in caplog.records) == 1
    for epoch, found in enumerate(batches):
        for one, other in zip(found, alone.epoch(epoch), strict=True):
            assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)
    assert dataset.text_encoder.cut == alone.dataset.text_encoder.cut > 8  # "first" has 5 bytes, the others more


def test_bad_files_are_counted(pairs):
    (pairs / "ant" / "a.txt").write_bytes(b"caf\xe9")
    (pairs / "bee" / "a.png").write_bytes(b"no picture")
    (pairs / "bee" / "d.txt").write_text("\n")
    dataset = open_dataset(pairs, image_size=8, split="all", text=TEXT, max_bad=0.3)
    batch = dataset.fetch(torch.arange(10))
    assert batch["index"].tolist() == [1, 1, 2, 3, 4, 6, 6, 7, 9, 9]
    assert [name[-9:] for name in dataset.bad.names] == ["ant/a.png", "bee/a.png", "bee/d.txt"]
    assert "neither a picture nor a caption" in dataset.bad.names[str(pairs / "bee" / "d.txt")]
    assert "its captions a.txt are not UTF-8 (byte 0xe9)" in dataset.bad.names[str(pairs / "ant" / "a.png")]
    with pytest.raises(MmsslError, match=r"1 of 10 samples cannot be read, more than max_bad=0\.01"):
        open_dataset(pairs, image_size=8, split="all", text=TEXT).fetch(torch.arange(10))


def test_size_of_what_is_not_there(pairs):
    dataset = open_dataset(pairs, split="all", text=TEXT)
    batch = dataset.fetch(torch.arange(5))
    assert batch["image"].shape == (5, 3, 16, 20) and not batch["image"][3].any()
    with pytest.raises(MmsslError, match=r"no sample of a batch has 'image', .*; give image_size\."):
        dataset[3]


def test_augmentation_leaves_what_is_not_there_zero(pairs):
    dataset = open_dataset(pairs, image_size=8, split="all", text=TEXT)
    strong = Augmentation(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, erase=1.0)
    keys = sample_keys(0, 0, 0, torch.arange(10))
    batch = BatchAugment(strong)(dataset.fetch(torch.arange(10), keys, strong), keys)
    there = batch["image"].flatten(1).any(1)
    assert torch.equal(there, batch["present/image"]) and batch["image"].dtype == torch.uint8


def test_planes_that_are_missing():
    image, depth = np.full((2, 3, 3), 7, np.uint8), np.full((2, 3), 0.5, np.float32)
    rows = [{"image": image}, {"image": image, "depth": depth}, {"depth": depth}]
    present = fill_missing(rows, ("image", "text", "depth", "segmentation"), (4, 5))
    assert {key: value.tolist() for key, value in present.items()} == {
        "present/image": [True, True, False],
        "present/depth": [False, True, True],
        "present/segmentation": [False] * 3,
    }
    assert [rows[2]["image"].shape, rows[0]["depth"].shape, rows[0]["segmentation"].shape] == [
        (2, 3, 3),
        (2, 3),
        (4, 5),
    ]
    assert not rows[2]["image"].any() and rows[0]["depth"].dtype == np.float32 and rows[1]["depth"] is depth
    assert rows[0]["segmentation"].dtype == np.int32


TABLE = """image,caption,label
pairs/ant/a.png,"a small, red ant",ant
pairs/bee/a.png,a bee,bee
pairs/ant/a.png,the same ant,ant
,a text alone,ant
pairs/bee/b.png,,bee
,,ant
"""


@pytest.fixture
def table(pairs):
    file = pairs.parent / "table.csv"
    file.write_text(TABLE)
    return file


def test_a_table(table, caplog):
    dataset = open_dataset(table, image_size=8, split="all", text=TEXT)
    captions = [["a small, red ant", "the same ant"], ["a bee"], ["a text alone"], []]
    assert [dataset.caption(k) for k in range(4)] == captions
    batch = dataset.fetch(torch.arange(4))
    assert batch["present/image"].tolist() == [True, True, False, True] and batch["label"].tolist() == [0, 1, 0, 1]
    assert batch["present/text"].tolist() == [True, True, True, False] and dataset.classes == ["ant", "bee"]
    assert batch["image"][:, 0, 0, 0].tolist() == [97, 107, 0, 108]
    assert "1 of the 6 rows" in caplog.text
    assert len(open_dataset(table, image_size=8, split="all")) == 3  # without `text`, captions alone are left out


def test_all_formats_are_one(table):
    from pyarrow import Table, parquet

    expected = open_dataset(table, image_size=8, split="all", text=TEXT)
    rows = [
        {"image": "pairs/ant/a.png", "text": ["a small, red ant", "the same ant"], "label": "ant"},
        {"image": "pairs/bee/a.png", "text": ["a bee"], "label": "bee"},
        {"image": None, "text": ["a text alone"], "label": "ant"},
        {"image": "pairs/bee/b.png", "text": None, "label": "bee"},
    ]
    parquet.write_table(Table.from_pylist(rows), table.with_suffix(".parquet"))
    lines = [json.dumps({key: value for key, value in row.items() if value}) for row in rows]
    table.with_suffix(".jsonl").write_text("\n".join(lines) + "\n\n")
    table.with_suffix(".tsv").write_text(TABLE.replace('"', "").replace("small, red", "small; red").replace(",", "\t"))
    for suffix in (".parquet", ".jsonl", ".tsv"):
        dataset = open_dataset(table.with_suffix(suffix), image_size=8, split="all", text=TEXT)
        assert [dataset.sample_name(k)[-9:] for k in (0, 1, 3)] == [expected.sample_name(k)[-9:] for k in (0, 1, 3)]
        for k in range(4):
            assert [c.replace(";", ",") for c in dataset.caption(k)] == expected.caption(k)
        assert torch.equal(dataset.labels(), expected.labels())


def test_splits_of_a_table(pairs):
    file = pairs.parent / "split.csv"
    lines = [f"pairs/{name}/{stem}.png,{stem}" for name in ("ant", "bee") for stem in "abce"]
    file.write_text("\n".join(["file_name,title", *lines]))
    train, test = (open_dataset(file, image_size=8, split=split) for split in ("train", "test"))
    assert len(train) == 7 and [test.sample_name(0)[-9:]] == ["bee/a.png"] and train.task is None
    lines = [f"{line},{'test' if line.endswith('e') else 'train'}" for line in lines]
    file.write_text("\n".join(["file_name,title,split", *lines]))
    assert [len(open_dataset(file, image_size=8, split=split)) for split in ("train", "test", "all")] == [6, 2, 8]
    with pytest.raises(MmsslError, match=r"split.csv has no split 'dev'; valid: train, test, all"):
        open_dataset(file, split="dev")


def test_a_card_of_tables(pairs, table):
    (pairs.parent / "test.csv").write_text("image,caption,label\npairs/ant/b.png,b,cat\n")
    card = pairs.parent / "card.yaml"
    fields = {"name": "x", "modality": "image", "kind": "image_text_table", "layout": "l", "how_to_get": "h"}
    fields |= {"licence": "none", "path": ".", "lists": {"train": "table.csv", "test": "test.csv"}}
    card.write_text(json.dumps(fields))
    train, test = (open_dataset(card, image_size=8, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (3, 1) and train.classes == test.classes == ["ant", "bee", "cat"]
    card.write_text(json.dumps(fields | {"lists": {"train": "none.csv"}}))
    with pytest.raises(MmsslError, match=r"card 'x': there is no table .*none.csv. How to get it: h"):
        open_dataset(card)


def test_pictures_that_are_not_there_are_bad(table):
    table.write_text("image,caption\npairs/ant/none.png,x\npairs/ant/a.png,y\n")
    dataset = open_dataset(table, image_size=8, split="all", max_bad=0.5)
    assert dataset.fetch(torch.arange(2))["index"].tolist() == [1, 1]
    assert "No such file" in dataset.bad.names[str(table.parent / "pairs/ant/none.png")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty; give it columns such as image,caption"),
        ("a.csv", "image,caption\n", "is empty; give it columns such as image,caption"),
        ("a.csv", "name,words\nx,y\n", r"neither a column of pictures \(image, .*only name, words"),
        ("a.csv", "img,caption\nx/y.JPG,z\n", "has no column of pictures .*, but 'img' holds what looks like"),
        ("a.csv", "image,caption\na.png,one, two\n", "row 2 of .* has 3 fields, and the header 2; put a caption that"),
        ("a.csv", "image,caption\n,\n", "no row of .* has a picture or a caption"),
        ("a.csv", b"image,caption\na.png,caf\xe9\n", "is not UTF-8 .it holds the byte 0xe9.; save it as UTF-8"),
        ("a.csv", "image,caption\na.png," + "x" * 200_000 + "\n", "line 2 of .* cannot be read as CSV: field larger"),
        ("a.csv", "image,caption\nhttps://a.b/c.jpg,x\n", "row 1 of .* names a picture on the web .https://a.b/c.jpg."),
        ("a.jsonl", '{"image": "a.png"\n', "line 1 of .* is no JSON"),
        ("a.jsonl", "[1]\n", 'line 1 of .* must be {"image": ..., "caption": ...}, got .1.'),
        ("a.jsonl", '{"image": {"bytes": 1}, "text": "x"}\n', "row 1 of .* holds a picture itself .dict. and not"),
        ("a.jsonl", '{"text": {"en": "x"}}\n', "the caption in row 1 of .* must be a text, or a list of texts"),
        ("a.parquet", "nothing", "cannot be read as Parquet"),
    ],
)
def test_wrong_tables(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MmsslError, match=message):
        open_dataset(file, split="all", text=TEXT)


def test_which_tables_are_of_captions(tmp_path):
    cases = {
        "path,label\na.mp4,0": False,
        "path,title\na.mp4,x": False,
        "path,caption\na.wav,x": False,
        "image,caption\na.jpg,x": True,
        '"image"\t"text"\na\tx': True,
        "a.mp4 0": False,
        "": False,
    }
    for k, (content, expected) in enumerate(cases.items()):
        (tmp_path / f"{k}.csv").write_text(content)
        assert lists_captions(tmp_path / f"{k}.csv") is expected
    assert not lists_captions(tmp_path / "nowhere.csv")
    assert lists_captions(tmp_path / "5.csv", asked=True) is False
    (tmp_path / "pictures.csv").write_text("path,label\na.jpg,x\n")
    assert lists_captions(tmp_path / "pictures.csv", asked=True) and not lists_captions(tmp_path / "pictures.csv")


def test_sources_of_all_kinds_in_one_run(pairs, table, pictures, tmp_path):
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"text": f"words {k}"}) + "\n" for k in range(3)))
    sources = [str(pairs), str(table), str(pictures), str(tmp_path / "words.jsonl"), "samples"]
    parts = [open_dataset(source, image_size=8, split="all", text=TEXT) for source in sources]
    joint = open_dataset(sources, image_size=8, split="all", text=TEXT)
    assert len(joint) == sum(map(len, parts)) == 10 + 4 + 20 + 3 + 8
    assert joint.lacks == ("image", "text") and joint.task is None and "label" not in joint[0]
    first = 0
    for part in parts:
        places = torch.arange(len(part))
        whole, alone = joint.fetch(places + first), part.fetch(places)
        for key in ("image", "text", "text_mask"):
            assert torch.equal(whole[key], alone[key]) if key in alone else not whole[key].any()
        for m in ("image", "text"):
            assert torch.equal(whole[f"present/{m}"], alone.get(f"present/{m}", torch.full((len(part),), m in alone)))
        for k in range(len(part)):
            assert joint.sample_name(first + k) == part.sample_name(k) and joint.caption(first + k) == part.caption(k)
        first += len(part)
    loader = Loader(joint, 9, augmentation=Augmentation())
    assert all(len(batch["present/image"]) == 9 for batch in loader.epoch(0))


def test_what_cannot_be_joined(pairs, table, pictures, record):
    with pytest.raises(MmsslError, match=r"different kinds .*give one kind; set text to join pictures and captions"):
        open_dataset([pairs, pictures], image_size=8)
    with pytest.raises(MmsslError, match=r"different kinds \(image_text_table, recorded\).*give one kind\.$"):
        open_dataset([table, record()], image_size=8, text=TEXT)
    joined = open_dataset([pairs, pictures], image_size=8, text=TEXT)  # both are read as folders of captions
    assert joined.classes == ["ant", "bee"] and joined.lacks == ("image", "text")


def test_captions_are_packed():
    several = [["a", "b\u00e9"], [], ["", "\U0001f41c"]]
    packed = Captions(several)
    assert list(packed) == several and len(packed) == 3 and packed[-1] == several[-1]
    with pytest.raises(IndexError):
        packed[3]


def test_samples_have_captions():
    dataset = open_dataset("samples", image_size=32, split="all", text=TextEncoding())
    assert len(dataset) == 8 and all(dataset.caption(k) for k in range(8)) and dataset.text_encoder.cut == 0
    assert dataset.classes == ["flower", "temple"] and np.all([dataset[k]["text_mask"].any() for k in range(8)])


def test_data_of_a_config_is_strict():
    from mmssl.config import from_dict

    assert from_dict(DataConfig, {"text": {"length": 8}}).text == TextEncoding(length=8)
    with pytest.raises(MmsslError, match=r"in text: text.length must be 1 tokens or more"):
        from_dict(DataConfig, {"text": {"length": 0}})
