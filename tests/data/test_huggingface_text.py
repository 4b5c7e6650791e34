"""Hugging Face folders with captions: strings and lists, any part missing, texts alone, which column is meant."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl import open_dataset
from mmssl.data.huggingface_columns import filled
from mmssl.data.loader import Loader
from mmssl.data.text import TextEncoding
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError

datasets = pytest.importorskip("datasets")
LINE = TextEncoding(length=16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def cell(value: int) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), value, np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def table(pictures: list, **columns) -> "datasets.Dataset":
    features = {"image": datasets.Image()}
    for name, values in columns.items():
        several = any(isinstance(value, list) for value in values)
        features[name] = datasets.List(datasets.Value("string")) if several else datasets.Value("string")
    return datasets.Dataset.from_dict({"image": pictures, **columns}, features=datasets.Features(features))


def save(rows, folder):
    rows.save_to_disk(folder)
    return folder


def opened(folder, **options):
    return open_dataset(folder, **{"split": "all", "image_size": 8, "text": LINE, **options})


@pytest.mark.parametrize("stored", ["arrow", "parquet"])
def test_pairs_and_what_is_missing(tmp_path, stored):
    pictures = [cell(1), None, cell(3), None, cell(5), None]
    rows = table(pictures, caption=["one", "two", None, "  ", "", "six"])
    if stored == "arrow":
        save(rows, tmp_path / "d")
    else:
        (tmp_path / "d").mkdir()
        rows.to_parquet(tmp_path / "d" / "train.parquet")
    dataset = opened(tmp_path / "d")
    batch = dataset.fetch(torch.arange(5))  # the fourth row has nothing
    assert len(dataset) == 5 and dataset.bad.count == 0
    assert batch["present/image"].tolist() == [True, False, True, True, False]
    assert batch["present/text"].tolist() == [True, True, False, False, True]
    assert batch["image"][:, 0, 0, 0].tolist() == [1, 0, 3, 5, 0]
    assert dataset.text_encoder.decode(batch["text"]) == ["one", "two", "", "", "six"]
    assert batch["text_mask"].sum(1).tolist() == [3, 3, 0, 0, 3]
    assert [dataset.caption(k) for k in range(5)] == [["one"], ["two"], [], [], ["six"]]
    assert dataset.sample_name(3).endswith("row 4")


def test_several_captions_a_picture(tmp_path):
    save(table([cell(1), cell(2), cell(3)], caption=[["one", " uno "], [], ["three", None]]), tmp_path / "d")
    dataset = opened(tmp_path / "d", cache="memory")
    assert [dataset.caption(k) for k in range(3)] == [["one", "uno"], [], ["three"]]
    batch = dataset.fetch(torch.arange(3))
    assert "present/image" not in batch and batch["present/text"].tolist() == [True, False, True]
    assert batch["image"][:, 0, 0, 0].tolist() == [1, 2, 3]
    drawn = dataset.fetch(torch.zeros(64, dtype=torch.int64), torch.arange(64), Augmentation())["text"]
    assert set(dataset.text_encoder.decode(drawn)) == {"one", "uno"}


def test_texts_alone(tmp_path):
    folder = save(datasets.Dataset.from_dict({"line": ["In the", "beginning", ""]}), tmp_path / "d")
    dataset = opened(folder)
    batch = dataset.fetch(torch.tensor([1, 0]))
    assert set(batch) == {"text", "text_mask", "index"} and dataset.modality == "text" and dataset.task is None
    assert dataset.text_encoder.decode(batch["text"]) == ["beginning", "In the"]


def test_without_captions_pictures_are_what_is_there(tmp_path, caplog):
    folder = save(table([cell(1), None], file=["a.png", "b.png"]), tmp_path / "d")
    assert set(opened(folder)[0]) == {"image", "index"} and len(opened(folder)) == 1
    assert "has no captions" in caplog.text
    assert opened(folder, target="file").labels().tolist() == [0]


def test_without_text_nothing_changes(tmp_path):
    folder = save(table([cell(1), cell(2)], caption=["one", "two"]), tmp_path / "d")
    dataset = open_dataset(folder, split="all", image_size=8)
    assert set(dataset[0]) == {"image", "index", "label"} and dataset.targets == ("caption",)


def test_which_column_is_the_caption(tmp_path):
    rows = table([cell(1)], title=["a title"], Caption=["the caption"])
    dataset = opened(save(rows, tmp_path / "a"))
    assert dataset.caption(0) == ["the caption"] and dataset.targets == ("title",) and dataset.target is None
    rows = table([cell(1)], source=["web"], blip_caption=["a caption"])
    assert opened(save(rows, tmp_path / "b")).caption(0) == ["a caption"]
    two = datasets.Dataset.from_dict({"first": ["a"], "second": ["b"]})
    with pytest.raises(MmsslError, match=r"2 columns of strings \(its columns: first, second\); call the one of capt"):
        opened(save(two, tmp_path / "c"))
    with pytest.raises(MmsslError, match=r"neither an image column nor one of strings \(its columns: n\)"):
        opened(save(datasets.Dataset.from_dict({"n": [1]}), tmp_path / "e"))
    paths = datasets.Dataset.from_dict({"image": ["a.jpg"], "caption": ["b"]})
    with pytest.raises(MmsslError, match=r"paths of pictures, in the column image, .* give its .parquet or .csv file"):
        opened(save(paths, tmp_path / "f"))
    with pytest.raises(MmsslError, match=r"the all split of .* has no image and no text in any of its rows"):
        opened(save(table([None], caption=[""]), tmp_path / "g"))


def test_labels_splits_and_workers(tmp_path):
    pictures = [cell(k) if k % 3 else None for k in range(12)]
    rows = table(pictures, text=[f"text {k}" if k % 2 else "" for k in range(12)])
    rows = rows.add_column("label", list(range(12)))
    folder = save(rows, tmp_path / "d")
    test = opened(folder, split="test")
    assert test.classes == ["4", "9"] and test.labels().tolist() == [0, 1] and test.task == "single_label"
    assert [test.caption(k) for k in range(2)] == [[], ["text 9"]] and not test.has_picture(1)
    train = opened(folder, split="train")
    labels = [1, 2, 3, 5, 7, 8, 10, 11]  # 0 and 6 have nothing
    assert train.labels().tolist() == [train.classes.index(str(k)) for k in labels] and len(train) == 8
    pool = Loader(train, 4, workers=2)
    for left, right in zip(Loader(train, 4).epoch(1), pool.epoch(1), strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)
    pool.close()


def test_unreadable_pictures_are_skipped(tmp_path):
    save(table([cell(1), {"bytes": b"junk", "path": None}, cell(3)], text=["a", "b", "c"]), tmp_path / "d")
    dataset = opened(tmp_path / "d", max_bad=0.5)
    batch = dataset.fetch(torch.arange(3))
    assert batch["index"].tolist() == [0, 2, 2] and dataset.text_encoder.decode(batch["text"]) == ["a", "c", "c"]
    assert dataset.bad.count == 1


def test_which_rows_are_filled_is_known_without_reading_them(tmp_path):
    """Against a loop over the decoded rows, for chosen and joined tables."""
    rng = np.random.default_rng(0)
    for several in (False, True):
        words = [["", None, " ", "word"][k] for k in rng.integers(0, 4, 60)]
        cells = [cell(1) if k else None for k in rng.integers(0, 2, 30)]
        values = [words[k : k + 2] for k in range(30)] if several else words[:30]
        rows = table(cells, text=values)
        rows = datasets.concatenate_datasets([rows.select([7, 3, 11, 3]), rows, rows.select(range(5, 9))])
        plain = rows.cast_column("image", datasets.Image(decode=False))
        expected = [any(w and w.strip() for w in (row["text"] if several else [row["text"]])) for row in plain]
        assert filled(rows, "text").tolist() == expected
        assert filled(rows, "image").tolist() == [row["image"] is not None for row in plain]
