"""Frames and features in windows of recorded trajectories."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmssl import open_dataset
from mmssl.data.loading import DataConfig
from mmssl.data.trajectory_sampling import TrajectorySampling
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys

sys.path.append(str(Path(__file__).parent))  # tests are imported from their files, not as a package

from trajectory_toys import write_toys


def opened(folders, *modalities, length=4, **fields):
    return open_dataset(folders, trajectory=TrajectorySampling(length, modalities), **{"split": "all", **fields})


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_frames_are_those_of_their_steps(record, cache):
    """Of a recording of 7 frames, which is 6 steps; the first pixel spells episode and time."""
    data = opened(record(), "state", "video", length=4, camera="front", cache=cache)
    assert len(data) == 6 * 3 and data.image_size == (16, 16) and data.control_hz is None
    batch = data.fetch(torch.tensor([0, 5]))
    assert batch["video"].shape == (2, 4, 3, 16, 16) and batch["video"].dtype == torch.uint8
    assert batch["video"][:, :, 0, 0, 0].tolist() == [[0] * 4, [1] * 4]
    assert batch["video"][:, :, 1, 0, 0].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert batch["state"][:, :, 1].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    padded = opened(record("metaworld/push"), "video", length=8, cache=cache).fetch(torch.tensor([0]))
    assert padded["valid"].tolist() == [[True] * 6 + [False] * 2] and not padded["video"][0, 6:].any()
    assert padded["video"][0, :6].flatten(1).any(1).all()


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_all_frames_of_a_window_are_cropped_alike(record, cache):
    data = opened(record(), "video", length=3, camera="side", image_size=8, cache=cache)
    index = torch.tensor([0, 0, 7])
    keys = sample_keys(0, 0, torch.arange(3), index)
    one, other = (data.fetch(index, keys, Augmentation())["video"] for _ in range(2))
    assert one.shape == (3, 3, 3, 8, 8) and torch.equal(one, other) and not torch.equal(one[0], one[1])
    disk = opened(record("metaworld/push"), "video", length=3, camera="side", image_size=8)
    assert torch.equal(one, disk.fetch(index, keys, Augmentation())["video"])


def test_cameras_that_some_recordings_lack(record):
    folders = [record("metaworld/reach"), record("metaworld/push", first=100)]
    with h5py.File(folders[1] / "data/main_data.hdf5", "a") as file:
        for e in range(6):
            del file[f"episode_{e}/observations/rgb/side"]
    data = opened(folders, "action", "video/front", "video/side", length=2)
    batch = data.fetch(torch.tensor([0, len(data) - 1]))
    assert batch["present/video/side"].tolist() == [True, False] and "present/video/front" not in batch
    assert torch.equal(batch["video/side"][0], 255 - batch["video/front"][0]) and not batch["video/side"][1].any()
    assert opened(folders, "video").fetch(torch.tensor([0]))["video"].shape[1] == 4  # the one that both have
    with pytest.raises(MmsslError, match="unknown camera 'sode': did you mean 'side'"):
        opened(folders, "video/sode")


def test_recordings_without_pictures_have_no_frames(tmp_path):
    with pytest.raises(MmsslError, match="own/toy has no camera at all; leave video out"):
        opened(write_toys(tmp_path, (4,)), "state", "video")


def test_a_damaged_frame_costs_its_windows(record):
    folder = record()
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        offset = file["episode_0/observations/rgb/front"].id.get_chunk_info(2)
    with open(folder / "data/main_data.hdf5", "r+b") as raw:
        raw.seek(offset.byte_offset)
        raw.write(b"\xff" * offset.size)
    for cache in ("none", "memory"):
        data = opened(folder, "video", length=3, camera="front", cache=cache, max_bad=0.5)
        batch = data.fetch(torch.tensor([1, 3]))
        assert data.bad.count and batch["index"].tolist() == ([3, 3] if cache == "none" else [4, 4])


def embedded(path: Path, counts, width=5, rows=None, folder="x"):
    groups = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    time = torch.cat([torch.arange(n) for n in counts])
    features = torch.stack([groups, time, *[time * 0] * (width - 2)], 1).float()
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))
    save_file({"features": features[order], "index": torch.arange(len(groups))[order], "groups": groups[order]}, path)
    names = [
        f"/elsewhere/{folder}/data/main_data.hdf5 episode {g} frame {t}" for g, t in zip(groups, time, strict=True)
    ]
    rows = [{"index": i, "name": n, "group": int(g)} for i, (n, g) in enumerate(zip(names, groups, strict=True))]
    path.with_suffix(".json").write_text(json.dumps({"rows": rows}))
    return path


def test_features_of_an_encoder(tmp_path):
    folder = write_toys(tmp_path, (4, 2, 3))
    path = embedded(tmp_path / "f.safetensors", [5, 3, 4], folder="toy-v0")  # a frame more than steps
    sampling = TrajectorySampling(4, ("state", "features"), features=path)
    for split, first in (("all", 0), ("test", 2)):
        data = open_dataset(folder, split=split, trajectory=sampling)
        assert data.widths == {"state": 3, "features": 5}
        batch = data.fetch(torch.tensor([0]))
        steps = int(batch["valid"].sum())
        assert batch["features"][0, :steps, :2].tolist() == [[first, t] for t in range(steps)]
        np.testing.assert_array_equal(batch["state"][0, :, :2], batch["features"][0, :, :2])


def test_features_of_other_recordings_are_refused(tmp_path):
    folder = write_toys(tmp_path, (4, 2, 3))

    def read(path):
        sampling = TrajectorySampling(4, ("features",), features=path)
        return DataConfig(source=(str(folder),), split="all", trajectory=sampling).open()

    with pytest.raises(MmsslError, match=r"are not those of .* episode 1, which has 2 steps: the file holds 7 frames"):
        read(embedded(tmp_path / "a.safetensors", [5, 7, 4], folder="toy-v0"))
    with pytest.raises(
        MmsslError, match=r"are not those of .* has /elsewhere/other-v0.* in its place; embed the frames"
    ):
        read(embedded(tmp_path / "b.safetensors", [5, 3, 4], folder="other-v0"))
    save_file({"features": torch.zeros(3, 2, 2), "index": torch.arange(3)}, tmp_path / "c.safetensors")
    with pytest.raises(MmsslError, match="must hold one vector of every recorded frame"):
        read(tmp_path / "c.safetensors")
    with pytest.raises(MmsslError, match="cannot be read"):
        read(tmp_path / "none.safetensors")
