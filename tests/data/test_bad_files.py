"""Unreadable files: counted, named, replaced by the next good one, and the end of the run when there are too many."""

import logging

import pytest
import torch

from mmssl import open_dataset
from mmssl.data.loader import Loader
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError


def spoil(folder, name: str, how: str) -> str:
    file = folder / name
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"not a picture"}[how])
    return str(file)


@pytest.mark.parametrize("how", ["cut", "empty", "text"])
@pytest.mark.parametrize("augmentation", [None, Augmentation()])
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_one_bad_file_is_named_and_replaced(pictures, caplog, how, augmentation, cache):
    name = spoil(pictures, "ant/03.jpg", how)
    dataset = open_dataset(pictures, image_size=16, split="all", max_bad=0.1, cache=cache)
    loader = Loader(dataset, 20, shuffle=False, augmentation=augmentation)
    with caplog.at_level(logging.WARNING, logger="mmssl.data"):
        (batch,) = loader.epoch(0)
    assert batch["index"].tolist() == [0, 1, 2, 4, 4, *range(5, 20)]
    assert dataset.bad.count == 1 and list(dataset.bad.names) == [name]
    assert name in caplog.text and caplog.text.count("unreadable") == 1
    list(loader.epoch(1))
    assert dataset.bad.count == 1  # counted once


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_files_stop_with_their_names(pictures, workers):
    names = [spoil(pictures, f"bee/{k:02d}.jpg", "text") for k in range(3)]
    dataset = open_dataset(pictures, image_size=16, split="all", max_bad=0.1)
    loader = Loader(dataset, 4, workers=workers, drop_last=False)
    with pytest.raises(MmsslError, match=r"more than max_bad=0.1 allows") as caught:
        list(loader.epoch(0))
    assert all(name in str(caught.value) for name in names[:1]) and "\n" not in str(caught.value)
    loader.close()


def test_workers_report_bad_files_and_replace_alike(pictures):
    spoil(pictures, "ant/05.jpg", "cut")
    spoil(pictures, "ant/06.jpg", "cut")
    alone, pooled = (open_dataset(pictures, image_size=16, split="all", max_bad=0.2) for _ in range(2))
    loader = Loader(pooled, 4, seed=2, augmentation=Augmentation(), workers=2)
    for left, right in zip(
        Loader(alone, 4, seed=2, augmentation=Augmentation()).epoch(0), loader.epoch(0), strict=True
    ):
        assert all(torch.equal(left[key], right[key]) for key in left)
    loader.close()
    assert alone.bad.names == pooled.bad.names and pooled.bad.count == 2


def test_subset_replaces_inside_itself(pictures):
    spoil(pictures, "ant/03.jpg", "cut")
    part = open_dataset(pictures, image_size=16, split="all", max_bad=0.1).subset([2, 3, 9])
    batch = part.fetch(torch.tensor([0, 1, 2]))
    assert batch["index"].tolist() == [0, 2, 2]
    assert torch.equal(batch["image"][1], batch["image"][2])


def test_default_limit_is_one_percent(pictures):
    name = spoil(pictures, "ant/00.jpg", "text")
    with pytest.raises(MmsslError, match=r"1 of 20 samples cannot be read") as caught:
        open_dataset(pictures, image_size=16, split="all").fetch(torch.arange(3))
    assert name in str(caught.value)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_damaged_frame_of_a_recording_is_skipped(record, cache):
    import h5py

    folder = record()
    file = folder / "data" / "main_data.hdf5"
    with h5py.File(file) as opened:
        chunk = opened["episode_2/observations/rgb/front"].id.get_chunk_info(3)
    content = bytearray(file.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 20] = b"\xff" * 20
    file.write_bytes(content)
    dataset = open_dataset(folder, camera="front", split="all", cache=cache, max_bad=0.1)
    batch = dataset.fetch(torch.arange(14, 21))
    assert batch["index"].tolist() == [14, 15, 16, 18, 18, 19, 20] and dataset.bad.count == 1
    assert "episode 2 frame 3" in next(iter(dataset.bad.names))
    assert torch.equal(batch["image"][3], batch["image"][4])
