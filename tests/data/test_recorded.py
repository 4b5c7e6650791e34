"""Frames of recordings: places, labels, held-out episodes, cameras, depth and ids, memory."""

import pickle
import time

import numpy as np
import pytest
import torch

from mmssl import open_dataset
from mmssl.data.episodes import split_episodes
from mmssl.data.loader import Loader
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError


def stamps(batch: dict) -> list[tuple[int, int]]:
    """(episode, time) that the fixture wrote into the first pixel."""
    return [(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in batch["image"]]


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_frames_come_out_as_they_were_recorded(record, cache):
    dataset = open_dataset(record(), split="all", camera="front", cache=cache)
    assert len(dataset) == 42 and dataset.image_size == (16, 16)
    batch = dataset.fetch(torch.tensor([0, 8, 41]))
    assert batch["image"].shape == (3, 3, 16, 16) and batch["image"].dtype == torch.uint8
    assert batch["image"].is_contiguous()
    assert stamps(batch) == [(0, 0), (1, 1), (5, 6)]
    expected = np.random.default_rng(1).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)[1, 1:]
    assert np.array_equal(batch["image"][1].permute(1, 2, 0).numpy()[1:], expected)


def test_memory_and_disk_agree_under_augmentation(record):
    folder, augmentation = record(), Augmentation()
    pair = [open_dataset(folder, camera="front", cache=cache, image_size=12) for cache in ("none", "memory")]
    for disk, memory in zip(*(Loader(d, 5, augmentation=augmentation).epoch(3) for d in pair), strict=True):
        assert all(torch.equal(disk[key], memory[key]) for key in disk)


def test_workers_read_what_one_process_reads(record):
    dataset = open_dataset(record(), split="all")
    list(Loader(dataset, 6).epoch(0))  # leaves handles open in this process
    pool = Loader(dataset, 6, workers=2)
    for left, right in zip(Loader(dataset, 6).epoch(1), pool.epoch(1), strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)
    pool.close()
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]["image"], dataset[3]["image"])  # what spawned workers get


def test_episodes_are_held_out_whole(record):
    folder = record(episodes=11)
    train, test, every = (open_dataset(folder, split=split) for split in ("train", "test", "all"))
    assert sorted(set(test.groups.tolist())) == [4, 9]
    assert not set(train.groups.tolist()) & set(test.groups.tolist())
    assert len(train) + len(test) == len(every) == 77
    assert test.labels("state")[:, 0].unique().tolist() == [4.0, 9.0]


@pytest.mark.parametrize(("n", "test"), [(2, [1]), (3, [2]), (5, [4]), (6, [4]), (10, [4, 9])])
def test_split_episodes(n, test):
    assert split_episodes(n, "test", 5, "t") == test
    assert split_episodes(n, "train", 5, "t") == [e for e in range(n) if e not in test]


def test_one_episode_cannot_be_split(record):
    with pytest.raises(MmsslError, match=r"has 1 episode, too few"):
        open_dataset(record(episodes=1), split="test")


def test_joined_recordings_number_tasks_and_episodes_through(record):
    folders = [record("metaworld/reach", episodes=3), record("metaworld/push", episodes=2, first=100)]
    dataset = open_dataset(folders, split="all", target="task", camera="front")
    assert dataset.classes == ["metaworld/reach", "metaworld/push"] and dataset.task == "single_label"
    assert dataset.labels().tolist() == [0] * 21 + [1] * 14
    assert dataset.groups.tolist() == sorted(list(range(5)) * 7)
    batch = dataset.fetch(torch.tensor([20, 21]))
    assert batch["label"].tolist() == [0, 1] and stamps(batch) == [(2, 6), (100, 0)]
    instructions = open_dataset(folders, target="instruction")
    assert instructions.classes == ["do metaworld/reach", "do metaworld/push"]


def test_state_is_a_regression_target_without_its_constants(record):
    dataset = open_dataset(record(), target="state", split="test")
    assert dataset.task == "regression" and dataset.targets == (
        "task", "instruction", "success", "state", "proprio", "reward",
    )  # fmt: skip
    assert dataset.labels().shape == (
        7,
        2,
    )  # of four numbers two change; the episode number is one, though not in this split
    assert dataset[3]["label"].tolist() == [4.0, 3.0]
    whole = open_dataset(dataset.files[0].path.parent.parent, target="state", drop_constant=False)
    assert whole.labels().shape == (35, 4)


def test_success_and_reward_belong_to_the_frame_they_led_to(record):
    dataset = open_dataset(record(), split="all", target="success")
    assert dataset.labels().view(6, 7).tolist() == [[0, 0, 0, 0, 0, 0, 1]] * 6
    assert dataset.labels("reward").view(6, 7)[2].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_cameras(record):
    folder = record()
    assert open_dataset(folder).camera == "side"  # the first in the order of recording
    side, front = (open_dataset(folder, camera=name)[4]["image"] for name in ("side", "front"))
    assert torch.equal(side, 255 - front)
    with pytest.raises(MmsslError, match=r"unknown camera 'frant': did you mean 'front'\? Valid: front, side"):
        open_dataset(folder, camera="frant")


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_depth_and_ids_take_the_same_crop(record, cache):
    extras = {"extras": ("depth", "segmentation"), "segmentation": "ids"}
    dataset = open_dataset(record(), camera="front", cache=cache, split="all", **extras)
    batch = dataset.fetch(torch.arange(4))
    assert batch["depth"].shape == (4, 1, 16, 16) and batch["depth"].dtype == torch.float32
    assert batch["segmentation"].shape == (4, 16, 16) and batch["segmentation"].dtype == torch.int64
    assert torch.equal(batch["segmentation"], batch["image"][:, 0].long() - 1)
    assert torch.allclose(batch["depth"][:, 0], batch["image"][:, 0] / 100, atol=2e-3)
    cropped = dataset.fetch(torch.arange(4), torch.arange(4) + 5, Augmentation(crop_scale=(0.3, 0.3)))
    assert cropped["segmentation"].shape == (4, 16, 16)
    assert set(cropped["segmentation"][0].unique().tolist()) <= set(batch["segmentation"][0].unique().tolist())
    assert not torch.equal(cropped["segmentation"], batch["segmentation"])


def test_frames_of_different_sizes_need_image_size(record):
    folders = [record("metaworld/reach"), record("metaworld/push", size=20)]
    with pytest.raises(MmsslError, match=r"different sizes.*give image_size"):
        open_dataset(folders)
    assert open_dataset(folders, image_size=18, split="all")[50]["image"].shape == (3, 18, 18)


def test_missing_extra_says_how_to_record_it(record):
    with pytest.raises(MmsslError, match=r"record it with --depth"):
        open_dataset(record(), camera="side", extras=("depth",))


def test_by_id_by_short_name_and_by_folder(record, tmp_path):
    record("metaworld/reach")
    for source in ("mmssl/metaworld/reach-v0", "metaworld/reach", tmp_path / "datasets", tmp_path / "datasets/mmssl"):
        assert len(open_dataset(source, split="all")) == 42
    with pytest.raises(
        MmsslError, match=r"no recording of 'metaworld/push'.*there: mmssl/metaworld/reach-v0.*mmssl record"
    ):
        open_dataset("metaworld/push")


def test_damaged_recording(record):
    folder = record()
    file = folder / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(MmsslError, match=r"cannot be opened"):
        open_dataset(folder)
    (folder / "data" / "metadata.json").unlink()
    with pytest.raises(MmsslError, match=r"metadata\.json cannot be read"):
        open_dataset(folder)


def test_unknown_target_and_split(record):
    folder = record()
    with pytest.raises(MmsslError, match=r"unknown target.*'sate': did you mean 'state'"):
        open_dataset(folder, target="sate")
    with pytest.raises(MmsslError, match=r"unknown split 'val'.*all, test, train"):
        open_dataset(folder, split="val")
    with pytest.raises(MmsslError, match=r"opened without a target"):
        open_dataset(folder).labels()
    assert "label" not in open_dataset(folder)[0]


def test_frames_in_memory_come_fast(record):
    dataset = open_dataset(record(episodes=10, length=200, size=64), split="all", cache="memory")
    loader = Loader(dataset, 64)
    list(loader.epoch(0))
    begun = time.process_time()  # of this process alone, so that a busy machine does not matter
    images = sum(len(batch["index"]) for epoch in range(3) for batch in loader.epoch(epoch))
    assert images / (time.process_time() - begun) > 10_000
