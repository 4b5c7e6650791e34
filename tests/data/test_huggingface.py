"""Hugging Face folders on disk: arrow and parquet, labels of every kind, splits, damaged cells."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl import open_dataset
from mmssl.data.loader import Loader
from mmssl.errors import MmsslError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def table(n: int = 10, offset: int = 0, **columns) -> "datasets.Dataset":
    pictures = [{"bytes": png(offset + k), "path": None} for k in range(n)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [k % 2 for k in range(n)]}, features=features)
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def png(value: int, size: int = 12) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size + 4, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def values(dataset) -> list[int]:
    return dataset.fetch(torch.arange(len(dataset)))["image"][:, 0, 0, 0].tolist()


def test_arrow_with_splits(tmp_path):
    datasets.DatasetDict({"train": table(), "validation": table(4, offset=50)}).save_to_disk(tmp_path / "d")
    train, test = (open_dataset(tmp_path / "d", image_size=8, split=split) for split in ("train", "test"))
    assert values(train) == list(range(10)) and values(test) == [50, 51, 52, 53]
    assert train.classes == ["ant", "bee"] and train.task == "single_label" and train.targets == ("label",)
    assert train.labels().tolist() == [0, 1] * 5 and train[3]["label"].item() == 1
    assert len(open_dataset(tmp_path / "d", split="all")) == 14
    assert open_dataset(tmp_path / "d", image_size=8, split="validation", cache="memory")[1]["image"].max() == 51
    with pytest.raises(MmsslError, match=r"unknown split of .*'dev'.*train, validation"):
        open_dataset(tmp_path / "d", split="dev")


def test_arrow_without_splits_holds_every_fifth_out(tmp_path):
    table().save_to_disk(tmp_path / "d")
    assert values(open_dataset(tmp_path / "d", image_size=8, split="test")) == [4, 9]
    assert values(open_dataset(tmp_path / "d", image_size=8)) == [0, 1, 2, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("below", ["", "data/"])
def test_parquet_shards(tmp_path, below):
    folder = tmp_path / "d" / below
    folder.mkdir(parents=True)
    for shard in range(2):
        table(5, offset=5 * shard).to_parquet(folder / f"train-0000{shard}-of-00002.parquet")
    table(3, offset=90).to_parquet(folder / "test-00000-of-00001.parquet")
    assert values(open_dataset(tmp_path / "d", image_size=8)) == list(range(10))
    assert values(open_dataset(tmp_path / "d", image_size=8, split="test")) == [90, 91, 92]


def test_targets_of_every_kind(tmp_path):
    rows = table(4, word=["x", "y", "x", "z"], number=[0.5, 1.0, 1.5, 2.0], vector=[[1.0, 2.0]] * 4)
    rows.save_to_disk(tmp_path / "d")
    words = open_dataset(tmp_path / "d", target="word", split="all")
    assert words.classes == ["x", "y", "z"] and words.labels().tolist() == [0, 1, 0, 2]
    vector = open_dataset(tmp_path / "d", target="vector", split="all")
    assert vector.task == "regression" and vector.labels().shape == (4, 2) and vector.classes is None
    assert vector.labels("number").tolist() == [[0.5], [1.0], [1.5], [2.0]]
    with pytest.raises(MmsslError, match=r"unknown target.*'wrod': did you mean 'word'"):
        open_dataset(tmp_path / "d", target="wrod")


def test_several_labels_a_picture(tmp_path):
    feature = datasets.Sequence(datasets.ClassLabel(names=["ant", "bee", "cat"]))
    features = datasets.Features({"image": datasets.Image(), "tags": feature})
    content = {"image": [{"bytes": png(k), "path": None} for k in range(3)], "tags": [[0, 2], [], [1]]}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "d")
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8)
    assert dataset.task == "multi_label" and dataset.classes == ["ant", "bee", "cat"]
    assert dataset.labels().tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_broken_and_missing_cells_are_skipped(tmp_path):
    cells = [{"bytes": png(k), "path": None} for k in range(6)]
    cells[1], cells[3] = {"bytes": b"junk", "path": None}, None
    rows = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))
    rows.save_to_disk(tmp_path / "d")
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8, max_bad=0.5)
    assert dataset.task is None and values(dataset) == [0, 2, 2, 4, 4, 5]
    assert dataset.bad.count == 2 and "row 1" in next(iter(dataset.bad.names))


def test_workers_agree(tmp_path):
    table(12).save_to_disk(tmp_path / "d")
    dataset = open_dataset(tmp_path / "d", split="all", image_size=8)
    pool = Loader(dataset, 4, workers=2)
    for left, right in zip(Loader(dataset, 4).epoch(1), pool.epoch(1), strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)
    pool.close()


def test_wrong_folders(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(tmp_path / "no_image")
    with pytest.raises(MmsslError, match=r"no image column, only text, label"):
        open_dataset(tmp_path / "no_image", split="all")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(MmsslError, match=r"cannot be read as a Hugging Face dataset"):
        open_dataset(tmp_path / "damaged")


def test_missing_package_is_named(tmp_path, monkeypatch):
    table(3).save_to_disk(tmp_path / "d")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MmsslError, match=r'pip install "mmssl\[hub\]"'):
        open_dataset(tmp_path / "d")
