"""Recordings of several modalities: classes of a segmentation, several cameras, what some recordings lack, vectors."""

import json

import h5py
import numpy as np
import pytest
import torch

from mmssl import open_dataset
from mmssl.data.clips import ClipSampling
from mmssl.data.loader import Loader
from mmssl.data.segmentation_classes import COARSE, ClassMaps, class_name, class_names
from mmssl.data.transforms import Augmentation, BatchAugment
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys

CLIP = ClipSampling(frames=3, stride=1)
SAWYER = ["floor", "right_arm_base_link#0", "right_l1_2#0", "head#0", "right_hand#1", "leftpad_geom", "tablelink#3"]
DRAWER = [*SAWYER, "RetainingWall#0", "drawer_link#0", "drawer_link#1", "drawercase_link#2", "#5", "mocap#0"]
WINDOW = [*SAWYER, "windowb_a#0", "windowb_b", "objGeom", "faucet_link2#1"]
PADDED = [*DRAWER, *[f"part{k}#0" for k in range(len(DRAWER), 255)]]  # the toy recording has ids up to 254


def name_geoms(folder, geoms=PADDED):
    file = folder / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["mmssl"]["geoms"] = list(geoms)
    file.write_text(json.dumps(metadata))
    return folder


def without(folder, *paths):
    """The recording without some of its planes."""
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for episode in file:
            for path in paths:
                del file[episode]["observations"][path]
    return folder


@pytest.mark.parametrize(
    ("geom", "expected"),
    [
        *(("floor", "background"), ("RetainingWall#0", "background"), ("mocap#0", "background")),
        *(("tablelink#3", "table"), ("right_l1_2#0", "robot arm"), ("head#0", "robot arm")),
        *(("right_hand#1", "gripper"), ("leftpad_geom", "gripper"), ("#5", "other")),
        *(("drawer_link#1", "drawer"), ("drawercase_link#2", "drawercase"), ("windowb_a#0", "windowb")),
        *(("objGeom", "obj"), ("faucet_link2#1", "faucet"), ("puck", "puck")),
    ],
)
def test_class_of_a_geom(geom, expected):
    assert class_name(geom, [*DRAWER, geom]) == expected


def test_parts_of_another_body_are_objects_where_there_is_no_robot():
    walker = ["floor", "torso", "right_leg", "head", "left_foot"]
    assert [class_name(geom, walker) for geom in walker] == ["background", "torso", "right_leg", "head", "left_foot"]
    fetch = ["floor0", "table0", "object0", "robot0:head_pan_link#0", "robot0:l_gripper_finger_link#0"]
    assert [class_name(g, fetch) for g in fetch] == ["background", "table", "object", "robot arm", "gripper"]
    panda = ["panda0_link0#0", "panda0_leftfinger#1", "kettleroot#2", "counters#0"]
    assert [class_name(g, panda) for g in panda] == ["robot arm", "gripper", "kettle", "table"]


def test_names_are_the_same_whatever_the_order():
    names = class_names([DRAWER, WINDOW])
    common = ["background", "table", "robot arm", "gripper", "other"]
    assert names == [*common, "drawer", "drawercase", "faucet", "obj", "windowb"] == class_names([WINDOW, DRAWER])
    maps = ClassMaps([DRAWER, WINDOW], "classes")
    for number, geoms in enumerate((DRAWER, WINDOW)):
        expected = [-1] + [names.index(class_name(geom, geoms)) for geom in geoms]
        assert maps(number, np.arange(-1, len(geoms))).tolist() == expected
    coarse = ClassMaps([DRAWER], "coarse")
    assert coarse.names == list(COARSE)
    assert coarse(0, np.arange(-1, 13)).tolist() == [-1, 0, 2, 2, 2, 3, 3, 1, 0, 4, 4, 4, 4, 0]
    with pytest.raises(ValueError, match="geom 13 has no name among the 13"):
        coarse(0, np.array([13]))


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("clip", [None, CLIP])
def test_ids_become_classes(record, cache, clip):
    folder = name_geoms(record())
    settings = {"camera": "front", "extras": ("segmentation",), "cache": cache, "clip": clip, "target": "none"}
    parts = [open_dataset(folder, split=split, **settings) for split in ("train", "test")]
    assert parts[0].segmentation_classes == parts[1].segmentation_classes == parts[0].subset([0]).segmentation_classes
    names = parts[0].segmentation_classes
    assert names[:7] == ["background", "table", "robot arm", "gripper", "other", "drawer", "drawercase"]
    raw = open_dataset(folder, split="train", segmentation="ids", **settings)
    assert raw.segmentation_classes is None
    ids, classes = (d.fetch(torch.arange(3))["segmentation"] for d in (raw, parts[0]))
    table = torch.tensor([-1] + [names.index(class_name(geom, PADDED)) for geom in PADDED])
    assert torch.equal(classes, table[ids + 1]) and classes.dtype == torch.int64 and classes.min() == -1
    coarse = open_dataset(folder, split="train", segmentation="coarse", **settings)
    assert coarse.segmentation_classes == list(COARSE) and coarse[0]["segmentation"].max() == 4


def test_a_recording_that_names_no_geoms(record):
    with pytest.raises(MmsslError, match=r"metaworld/reach does not name its geoms.*set segmentation to ids"):
        open_dataset(record(), camera="front", extras=("segmentation",))
    named, blind = name_geoms(record("a/b")), without(record("a/c"), "segmentation/front")
    joined = open_dataset([named, blind], camera="front", extras=("segmentation",))
    assert joined.lacks == ("segmentation",)


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("augmentation", [None, Augmentation(crop_scale=(0.3, 0.6), hflip=0.5)])
def test_frames_of_several_cameras(record, cache, augmentation):
    dataset = open_dataset(record(), split="all", cameras=("front", "side"), cache=cache)
    assert dataset.modality == "image/front" and dataset.camera is None and dataset.lacks == ()
    keys = sample_keys(0, 0, 0, torch.arange(12))
    batch = dataset.fetch(torch.arange(12), keys, augmentation)
    assert batch.keys() == {"image/front", "image/side", "index"} and batch["image/side"].shape == (12, 3, 16, 16)
    flipped = batch if augmentation is None else BatchAugment(augmentation)(batch, keys)
    for pair in (batch, flipped):
        left, right = pair["image/front"].int(), 255 - pair["image/side"].int()
        assert (left - right).abs().max() <= (0 if augmentation is None else 1)  # resizing rounds
    assert augmentation is None or not torch.equal(batch["image/front"], flipped["image/front"])


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_rows_of_frames_lack_what_their_recording_lacks(record, cache):
    folders = [record(f"b/{k}", episodes=2, first=50 * k) for k in range(3)]
    without(folders[1], "rgb/side")
    without(folders[2], "depth/front")
    settings = {"split": "all", "extras": ("depth",), "cache": cache}
    with pytest.raises(MmsslError, match=r"unknown camera 'nose'"):
        open_dataset(folders, cameras=("front", "nose"), **settings)
    with pytest.raises(MmsslError, match=r"b/0, b/1, b/2 has no depth of side; record it with --depth"):
        open_dataset(folders, cameras=("front", "side"), **settings)
    one = open_dataset(folders, camera="front", **settings)
    assert one.lacks == ("depth",)
    index = torch.tensor([0, 14, 28])
    for augmentation in (None, Augmentation(crop_scale=(0.5, 0.5))):
        batch = one.fetch(index, sample_keys(0, 0, 0, index), augmentation)
        assert batch["present/depth"].tolist() == [True, True, False]
        assert batch["depth"].shape == (3, 1, 16, 16) and batch["depth"][2].abs().max() == 0
        assert batch["depth"][0].max() > 0 and batch["image"].amax((1, 2, 3)).min() > 0
    both = open_dataset(folders, cameras=("front", "side"), split="all", cache=cache)
    assert both.lacks == ("image/side",)
    batch = both.fetch(index)
    assert batch["present/image/side"].tolist() == [True, False, True] and batch["image/side"][1].max() == 0
    alone = both.fetch(torch.tensor([15]))  # the same keys whatever is in a batch
    assert alone.keys() == batch.keys() and alone["image/side"].shape == (1, 3, 16, 16)
    assert all(b.keys() >= batch.keys() for b in Loader(both, 8).epoch(0))


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("augmentation", [None, Augmentation(crop_scale=(0.5, 0.5))])
def test_rows_of_clips_lack_what_their_recording_lacks(record, cache, augmentation):
    folders = [name_geoms(record(f"b/{k}", episodes=2, first=50 * k)) for k in range(3)]
    without(folders[0], "segmentation/front")
    without(folders[1], "rgb/side")
    without(folders[2], "depth/front")
    settings = {"split": "all", "clip": CLIP, "cache": cache, "target": "none"}
    one = open_dataset(folders, camera="front", extras=("depth", "segmentation"), **settings)
    assert one.lacks == ("depth", "segmentation")
    index = torch.tensor([0, 4, 8])
    keys = sample_keys(0, 0, 0, index)
    batch = one.fetch(index, keys, augmentation)
    assert batch["present/depth"].tolist() == [True, True, False]
    assert batch["present/segmentation"].tolist() == [False, True, True]
    assert batch["depth"].shape == (3, 3, 1, 16, 16) and batch["depth"][2].abs().max() == 0
    assert batch["segmentation"].shape == (3, 3, 16, 16) and batch["segmentation"][0].abs().max() == 0
    both = open_dataset(folders, cameras=("side", "front"), **settings).fetch(index, keys, augmentation)
    assert both["present/video/side"].tolist() == [True, False, True] and both["video/side"][1].max() == 0
    assert both["video/side"].shape == (3, 3, 3, 16, 16) and "present/video/front" not in both
    torch.testing.assert_close(both["video/front"], batch["video"], atol=0, rtol=0)


def test_a_recording_without_any_of_the_cameras(record):
    folders = [record("a/b"), without(record("a/c"), "rgb/side")]
    with pytest.raises(MmsslError, match=r"a/c has none of the cameras side, its own are front; leave it out"):
        open_dataset(folders, cameras=("side",))


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("augmentation", [None, Augmentation(crop_scale=(0.5, 0.5))])
def test_vectors_come_beside_the_pictures(record, cache, augmentation):
    folder, index = record(), torch.tensor([3, 9])
    keys, settings = sample_keys(0, 0, 0, index), {"split": "all", "cache": cache, "extras": ("proprio", "state")}
    frames = open_dataset(folder, **settings).fetch(index, keys, augmentation)
    assert frames["proprio"].tolist() == [[[0, 3]], [[1, 2]]] and frames["proprio"].dtype == torch.float32
    assert frames["state"].tolist() == [[[0, 3, 0, 7]], [[1, 2, 0, 7]]]
    clips = open_dataset(folder, clip=CLIP, target="none", **settings).fetch(torch.tensor([2, 3]), None, augmentation)
    assert clips["proprio"].shape == (2, 3, 2) and clips["proprio"][:, :, 0].tolist() == [[1.0] * 3] * 2
    assert clips["proprio"][:, :, 1].diff(dim=1).unique().tolist() == [1.0]


def test_vectors_of_different_lengths(record):
    folders = [record("a/b"), without(record("a/c"), "proprio")]
    with pytest.raises(MmsslError, match=r"extra 'proprio' must have one length.*'a/b': 2, 'a/c': None"):
        open_dataset(folders, extras=("proprio",))
