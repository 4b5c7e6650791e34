"""Folders of aligned pictures, depth and segmentation: layouts, sizes, what samples lack, and the crop they share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl import open_dataset
from mmssl.data.loader import Loader
from mmssl.data.planes import read_depth
from mmssl.data.transforms import Augmentation, BatchAugment
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys

SIZE = (24, 32)
SHARED = {"extras": ("depth", "segmentation"), "split": "all", "crop_fraction": 1.0}


def planes(seed: int) -> dict[str, np.ndarray]:
    """A picture of 4 x 4 squares, whose red is ten times the class and whose green is depth in centimetres."""
    classes = np.random.default_rng(seed).integers(0, 20, (SIZE[0] // 4, SIZE[1] // 4)).repeat(4, 0).repeat(4, 1)
    depth = (np.arange(SIZE[1])[None] + 50 + 0 * classes).astype(np.uint16)
    rgb = np.stack([classes * 10, depth, np.full(SIZE, seed)], -1).astype(np.uint8)
    return {"rgb": rgb, "depth": depth * 10, "semseg": classes.astype(np.uint8)}


def write(root: Path, name: str, seed: int, only=("rgb", "depth", "semseg"), quarter: bool = False) -> None:
    """One sample; depth in millimetres, and maps at a quarter of the size where `quarter` says so."""
    for folder, plane in planes(seed).items():
        if folder in only:
            file = root / folder / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane[2::4, 2::4] if quarter and folder == "semseg" else plane).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for k in range(6):
        write(tmp_path / "data", f"{'ant' if k < 3 else 'bee'}/{k}", k)
    return tmp_path / "data"


def agree(batch: dict, tolerance: float = 0) -> None:
    """What the picture's red and green say is what the other planes hold."""
    red, green = batch["image"][:, 0].float(), batch["image"][:, 1].float()
    assert (red - 10 * batch["segmentation"]).abs().max() <= tolerance
    assert (green / 100 - batch["depth"][:, 0]).abs().max() <= 0.011 + 10 * tolerance


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_the_layout_of_multimae(root, cache):
    dataset = open_dataset(root, split="all", crop_fraction=1.0, cache=cache)
    assert len(dataset) == 6 and dataset.classes == ["ant", "bee"] and dataset.lacks == ()
    batch = dataset.fetch(torch.arange(6))
    assert set(batch) == {"image", "depth", "segmentation", "index", "label"}
    assert batch["image"].shape == (6, 3, *SIZE) and batch["image"].dtype == torch.uint8
    assert batch["depth"].shape == (6, 1, *SIZE) and batch["depth"].dtype == torch.float32
    assert batch["segmentation"].shape == (6, *SIZE) and batch["segmentation"].dtype == torch.int64
    assert batch["label"].tolist() == [0, 0, 0, 1, 1, 1] and batch["image"][:, 2, 0, 0].tolist() == list(range(6))
    agree(batch)
    assert torch.allclose(batch["depth"][0, 0, 0, :3], torch.tensor([0.5, 0.51, 0.52]))


@pytest.mark.parametrize("place", ["above", "below", "no classes"])
def test_splits_above_and_below_the_modalities(tmp_path, place):
    for split, seeds in {"train": (0, 1), "val": (2,)}.items():
        for k in seeds:
            folder = {"above": tmp_path / split, "below": tmp_path, "no classes": tmp_path / split}[place]
            write(folder, {"above": f"ant/{k}", "below": f"{split}/ant/{k}", "no classes": f"{k}"}[place], k)
    blue = {s: [x["image"][2, 0, 0].item() for x in open_dataset(tmp_path, split=s)] for s in ("train", "test", "all")}
    assert blue == {"train": [0, 1], "test": [2], "all": [0, 1, 2]}
    assert open_dataset(tmp_path).classes is None  # one class is none
    with pytest.raises(MmsslError, match=r"has no split 'dev'; valid: train, val, all"):
        open_dataset(tmp_path, split="dev")


def test_every_fifth_of_a_class_is_held_out_where_there_are_no_splits(root):
    parts = {s: [x["image"][2, 0, 0].item() for x in open_dataset(root, split=s)] for s in ("train", "test")}
    assert parts == {"train": [0, 1, 3, 4], "test": [2, 5]}


@pytest.mark.parametrize("image_size", [None, (16, 16)])
def test_maps_of_a_quarter_of_the_size_mean_the_same(root, tmp_path, image_size):
    for k in range(6):
        write(tmp_path / "small", f"{'ant' if k < 3 else 'bee'}/{k}", k, quarter=True)
    pair = [open_dataset(r, image_size=image_size, **SHARED) for r in (root, tmp_path / "small")]
    augmentation = None if image_size is None else Augmentation(crop_scale=(0.3, 0.9))
    keys = sample_keys(0, 0, 0, torch.arange(6))
    whole, quarter = (dataset.fetch(torch.arange(6), keys, augmentation) for dataset in pair)
    assert all(torch.equal(whole[key], quarter[key]) for key in whole)


def test_crop_and_flip_are_shared(root):
    dataset = open_dataset(root, image_size=(40, 40), **SHARED)
    keys = sample_keys(0, 0, 0, torch.arange(6))
    augmentation = Augmentation(crop_scale=(0.2, 0.5), hflip=0.5, interpolation="bilinear")
    cut = dataset.fetch(torch.arange(6), keys, augmentation)
    flipped = BatchAugment(augmentation)(cut, keys)
    turned = [not torch.equal(a, b) for a, b in zip(cut["image"], flipped["image"], strict=True)]
    assert 0 < sum(turned) < 6
    for batch in (cut, flipped):
        red = batch["image"][:, 0].float()
        inside = (red - 10 * batch["segmentation"]).abs() < 1  # bilinear pictures mix classes at edges
        assert inside.float().mean() > 0.5
        green = batch["image"][:, 1].float() / 100
        assert (green - batch["depth"][:, 0]).abs().max() < 0.011
    for k, turn in enumerate(turned):
        step = (flipped["depth"][k, 0, 0, -1] - flipped["depth"][k, 0, 0, 0]).item()
        assert (step < 0) == turn


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_samples_that_lack_a_modality(root, cache):
    write(root, "ant/9", 9, only=("rgb",))
    write(root, "bee/8", 8, only=("depth",))
    dataset = open_dataset(root, split="all", cache=cache)
    assert dataset.lacks == ("image", "depth", "segmentation") and len(dataset) == 8
    batch = dataset.fetch(torch.arange(8))
    assert batch["present/image"].tolist() == [True] * 7 + [False]
    assert batch["present/depth"].tolist() == [True, True, True, False, True, True, True, True]
    assert batch["present/segmentation"].tolist() == [True, True, True, False, True, True, True, False]
    assert batch["image"][7].max() == batch["depth"][3].max() == batch["segmentation"][3].max() == 0
    assert torch.allclose(batch["depth"][7, 0, 0, :2], torch.tensor([0.5, 0.51]))
    alone = dataset.fetch(torch.tensor([3]))  # the batch has the same keys whatever is in it
    assert alone.keys() == batch.keys() and alone["depth"].shape == (1, 1, *SIZE)
    loaded = [b for b in Loader(dataset, 4).epoch(0)]
    assert all(b.keys() >= batch.keys() for b in loaded)


def test_extras_choose_what_is_read(root):
    assert set(open_dataset(root, extras=("depth",))[0]) == {"image", "depth", "index", "label"}
    with pytest.raises(MmsslError, match=r"has no proprio, only image, depth, segmentation; leave it out of extras"):
        open_dataset(root, extras=("proprio",))


def test_depth_units_and_unknown_depth(root, tmp_path):
    assert torch.allclose(open_dataset(root, depth_scale=0.01)[0]["depth"], 10 * open_dataset(root)[0]["depth"])
    stored = np.array([[1.5, np.nan], [np.inf, 0.0]], np.float64)
    np.save(tmp_path / "float.npy", stored)
    np.savez(tmp_path / "float.npz", stored)
    np.save(tmp_path / "steps.npy", np.array([[1500, 0]], np.int32))
    Image.fromarray(stored.astype(np.float32)).save(tmp_path / "float.tif")
    for file in ("float.npy", "float.npz", "float.tif"):
        assert read_depth(str(tmp_path / file), 0.001).tolist() == [[1.5, 0.0], [0.0, 0.0]]
    assert read_depth(str(tmp_path / "steps.npy"), 0.5).tolist() == [[750.0, 0.0]]
    with pytest.raises(MmsslError, match=r"depth_scale must be above 0"):
        open_dataset(root, depth_scale=0.0)


def test_mask_valid_hides_depth_and_class(root):
    mask = np.zeros(SIZE, np.uint8)
    mask[:, 16:] = 255
    (root / "mask_valid/ant").mkdir(parents=True)
    Image.fromarray(mask).save(root / "mask_valid/ant/0.png")
    sample = open_dataset(root, **SHARED)[0]
    assert sample["depth"][0, :, :16].abs().max() == 0 and sample["depth"][0, :, 16:].min() > 0.6
    assert sample["segmentation"][:, :16].unique().tolist() == [-1] and sample["segmentation"][:, 16:].min() >= 0
    cut = open_dataset(root, image_size=(12, 12), **SHARED)[0]["depth"]
    assert not bool(((cut > 0) & (cut < 0.6)).any())  # unknown places are not averaged with known ones


def test_sizes_that_do_not_agree_are_counted_as_bad(root, caplog):
    Image.fromarray(np.ones((10, 32), np.uint16)).save(root / "depth/ant/1.png")
    Image.fromarray(np.ones((*SIZE, 3), np.uint8)).save(root / "semseg/bee/4.png")
    dataset = open_dataset(root, split="all", max_bad=0.5)
    batch = dataset.fetch(torch.arange(6))
    assert batch["index"].tolist() == [0, 2, 2, 3, 5, 5] and dataset.bad.places == {1, 4}
    assert "depth has 10x32 pixels, which is no whole part of 24x32" in caplog.text
    assert "one plane is needed" in caplog.text


def test_names_of_the_classes(root):
    assert open_dataset(root).segmentation_classes is None
    (root / "semseg_classes.txt").write_text("wall\nsky\n")
    assert open_dataset(root).segmentation_classes == ["wall", "sky"]
    assert open_dataset(root).subset([0]).segmentation_classes == ["wall", "sky"]


def test_two_files_of_one_sample(root):
    Image.new("RGB", (8, 8)).save(root / "rgb/ant/0.jpg")
    with pytest.raises(MmsslError, match=r"0\.jpg and .*0\.png are one sample by their name"):
        open_dataset(root)
    (root / "images").mkdir()
    with pytest.raises(MmsslError, match=r"several folders of image: images, rgb; keep one"):
        open_dataset(root)


def test_other_folders_are_not_taken_for_it(tmp_path):
    for name in ("depth", "semseg"):  # two classes of that name
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    assert open_dataset(tmp_path).classes == ["depth", "semseg"]
