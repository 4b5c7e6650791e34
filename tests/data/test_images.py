"""Folders of images: layouts, splits, labels and what is wrong with a folder."""

import shutil

import pytest
import torch
from PIL import Image

from mmssl import open_dataset
from mmssl.errors import MmsslError


def test_class_folders(pictures):
    dataset = open_dataset(pictures, image_size=(24, 32), split="all")
    assert len(dataset) == 20 and dataset.classes == ["ant", "bee"] and dataset.task == "single_label"
    assert dataset.labels().tolist() == [0] * 10 + [1] * 10
    sample = dataset[12]
    assert sample["image"].shape == (3, 24, 32) and sample["image"].dtype == torch.uint8
    assert sample["label"].item() == 1 and sample["index"].item() == 12


def test_every_fifth_of_each_class_is_held_out(pictures):
    train, test = (open_dataset(pictures, image_size=8, split=split) for split in ("train", "test"))
    assert [f[-6:-4] for f in test.files] == ["04", "09"] * 2
    assert not set(train.files) & set(test.files) and len(train) == 16
    assert test.labels().tolist() == [0, 0, 1, 1]


def test_flat_folder_has_no_labels(pictures):
    dataset = open_dataset(pictures / "ant", image_size=8, split="all")
    assert len(dataset) == 10 and dataset.task is None and "label" not in dataset[0]
    with pytest.raises(MmsslError, match=r"has no labels"):
        dataset.labels()


def test_folders_that_are_split_already(pictures, tmp_path):
    root = tmp_path / "split"
    shutil.copytree(pictures, root / "train")
    shutil.copytree(pictures / "bee", root / "val" / "bee")  # a class missing from one split keeps its number
    assert len(open_dataset(root, image_size=8)) == 20
    for split in ("test", "val"):
        part = open_dataset(root, image_size=8, split=split)
        assert len(part) == 10 and set(part.labels().tolist()) == {1} and part.classes == ["ant", "bee"]
    with pytest.raises(MmsslError, match=r"no split 'dev'; valid: train, val, all"):
        open_dataset(root, split="dev")


def test_own_size_when_none_is_asked(pictures):
    dataset = open_dataset(pictures, split="all")
    assert dataset[3]["image"].shape == (3, 43, 56) and dataset.image_size is None
    with pytest.raises(MmsslError, match=r"differ in size.*give image_size"):
        dataset.fetch(torch.arange(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is empty"),
        (lambda root: (root / "notes.txt").write_text("x"), "no image in"),
        (lambda root: (root / "ant").mkdir(), "no image in"),
    ],
)
def test_folder_without_images(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(MmsslError, match=message):
        open_dataset(tmp_path)


def test_images_beside_class_folders(pictures):
    shutil.copy(pictures / "ant" / "00.jpg", pictures / "loose.jpg")
    with pytest.raises(MmsslError, match=r"both images and folders"):
        open_dataset(pictures)


def test_wrong_names(pictures, tmp_path):
    with pytest.raises(MmsslError, match=r"no split 'tset'; valid: train, test"):
        open_dataset(pictures, split="tset")
    with pytest.raises(MmsslError, match=r"unknown target.*'state'"):
        open_dataset(pictures, target="state")
    with pytest.raises(MmsslError, match=r"no folder and no dataset card"):
        open_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(MmsslError, match=r"is a file"):
        open_dataset(pictures / "ant" / "00.jpg")
    with pytest.raises(MmsslError, match=r"unknown option of open_dataset 'spilt': did you mean 'split'"):
        open_dataset(pictures, spilt="all")


def test_target_none_leaves_labels_out(pictures):
    dataset = open_dataset(pictures, image_size=8, target="none")
    assert dataset.task is None and "label" not in dataset[0] and dataset.labels("class").shape == (16,)


def test_memory_gives_the_same(pictures):
    disk, memory = (open_dataset(pictures, image_size=16, cache=cache) for cache in ("none", "memory"))
    shutil.rmtree(pictures)
    assert memory.fetch(torch.arange(16))["image"].float().std() > 0
    with pytest.raises(MmsslError):
        disk.fetch(torch.arange(16))


def test_joined_folders(pictures, tmp_path):
    other = tmp_path / "more" / "cat"
    other.mkdir(parents=True)
    Image.new("RGB", (30, 30)).save(other / "x.png")
    dataset = open_dataset([pictures, other.parent], image_size=8, split="all")
    assert dataset.classes == ["ant", "bee", "cat"] and dataset.labels()[-1] == 2


def test_samples_card():
    train, test = (open_dataset("samples", image_size=64, split=split) for split in ("train", "test"))
    assert train.classes == ["flower", "temple"] and len(train) == 6 and len(test) == 2
    assert train[0]["image"].shape == (3, 64, 64)


def test_subset_keeps_labels(pictures):
    part = open_dataset(pictures, image_size=8, split="all").subset([15, 3])
    assert part.labels().tolist() == [1, 0] and len(part) == 2
    batch = part.fetch(torch.tensor([1, 0]))
    assert batch["index"].tolist() == [1, 0] and batch["label"].tolist() == [0, 1]
    with pytest.raises(MmsslError, match=r"outside"):
        part.subset([2])
