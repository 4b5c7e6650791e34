"""Episodes of recordings as clips: frames, stretches, cameras, planes, labels, views, memory, workers."""

import numpy as np
import pytest
import torch

from mmssl import open_dataset
from mmssl.data.clips import ClipSampling
from mmssl.data.loader import Loader
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys

CLIP = ClipSampling(frames=4, stride=2)  # spans 7 frames
STILL = Augmentation(crop_scale=None, hflip=0.0)  # frames are drawn and nothing else


def stamps(clip: torch.Tensor) -> list[tuple[int, int]]:
    """(episode, time) that the fixture wrote into the first pixel of each frame of uint8 (T, 3, H, W)."""
    return [(int(frame[0, 0, 0]), int(frame[1, 0, 0])) for frame in clip]


def times(clip: torch.Tensor) -> list[int]:
    return [time for _, time in stamps(clip)]


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_clips_of_test_time_are_spread_over_their_episode(record, cache):
    dataset = open_dataset(record(length=22), split="all", camera="front", clip=CLIP, cache=cache)
    assert len(dataset) == 18 and dataset.modality == "video" and dataset.views == 1 and dataset.clip == CLIP
    assert dataset.groups.tolist() == [e for e in range(6) for _ in range(3)]
    batch = dataset.fetch(torch.tensor([0, 1, 2, 17]))
    assert batch["video"].shape == (4, 4, 3, 16, 16) and batch["video"].dtype == torch.uint8
    assert batch["video"].is_contiguous() and batch["index"].tolist() == [0, 1, 2, 17] and "label" not in batch
    last = [15, 17, 19, 21]
    assert [times(clip) for clip in batch["video"]] == [[0, 2, 4, 6], [7, 9, 11, 13], last, last]
    assert stamps(batch["video"][3])[0][0] == 5
    expected = np.random.default_rng(5).integers(0, 256, (22, 16, 16, 3), dtype=np.uint8)[15:22:2, 1:]
    assert np.array_equal(batch["video"][3].permute(0, 2, 3, 1).numpy()[:, 1:], expected)
    assert torch.equal(dataset[17]["video"], batch["video"][3])


def test_training_clips_start_anywhere_in_their_stretch(record):
    dataset = open_dataset(record(episodes=1, length=22), split="all", camera="front", clip=CLIP, cache="memory")
    starts = {k: set() for k in range(3)}
    for epoch in range(60):
        index = torch.arange(3)
        batch = dataset.fetch(index, sample_keys(0, epoch, 0, index), STILL)
        for k, clip in enumerate(batch["video"]):
            first = times(clip)[0]
            assert times(clip) == [first, first + 2, first + 4, first + 6]
            starts[k].add(first)
    assert starts[0] | starts[1] | starts[2] == set(range(16))
    assert max(starts[0]) <= 5 and min(starts[1]) >= 5 and max(starts[1]) <= 10 and min(starts[2]) >= 10


def test_pairs_share_crop_and_keep_their_gap(record):
    clip = ClipSampling(how="pair", frames=2, gap=(3, 9))
    dataset = open_dataset(record(length=30), split="all", camera="front", clip=clip, cache="memory")
    assert len(dataset) == 6 * 3
    index = torch.arange(len(dataset))
    pairs = dataset.fetch(index, sample_keys(0, 0, 0, index), STILL)["video"]
    gaps = {b - a for a, b in map(times, pairs)}
    assert gaps <= set(range(3, 9)) and len(gaps) > 2
    augmentation = Augmentation(crop_scale=(0.3, 0.5), hflip=0.0)
    still = open_dataset(record("a/still", length=30), split="all", camera="front", clip=clip)
    still.episodes.read = lambda number, plane, t: np.repeat(
        np.arange(768, dtype=np.uint8).reshape(1, 16, 16, 3), len(t), 0
    )
    first, second = still.fetch(index, sample_keys(0, 0, 0, index), augmentation)["video"].unbind(1)
    assert torch.equal(first, second)  # of a world that stands still
    assert len({tuple(x.flatten().tolist()) for x in first}) > 10  # and each sample has a crop of its own


def test_segments_take_the_whole_episode(record):
    clip = ClipSampling(how="segments", frames=4)
    dataset = open_dataset(record(length=20), split="all", camera="front", clip=clip)
    assert len(dataset) == 6 and times(dataset[2]["video"]) == [2, 7, 12, 17]


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("augmentation", [None, STILL, Augmentation(), Augmentation(crop_scale=None, rand_augment=9.0)])
def test_memory_and_workers_give_what_the_disk_gives(record, cache, augmentation):
    settings = {
        "camera": "front",
        "clip": CLIP,
        "extras": ("depth", "segmentation"),
        "segmentation": "ids",
        "split": "all",
        "target": "state",
    }
    folder = record(length=15)
    disk = open_dataset(folder, **settings)
    other = open_dataset(folder, **settings, cache=cache)
    loader = Loader(other, 5, augmentation=augmentation, workers=2 if cache == "none" else 0, repeats=1)
    expected = Loader(disk, 5, augmentation=augmentation).epoch(1)
    for left, right in zip(expected, loader.epoch(1), strict=True):
        assert left.keys() == right.keys() == {"video", "depth", "segmentation", "label", "index", "keys"}
        assert all(torch.equal(left[key], right[key]) for key in left)
    loader.close()


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_depth_and_ids_of_every_frame(record, cache):
    dataset = open_dataset(
        record(),
        split="all",
        camera="front",
        clip=CLIP,
        extras=("depth", "segmentation"),
        segmentation="ids",
        cache=cache,
    )
    batch = dataset.fetch(torch.arange(3))
    assert batch["depth"].shape == (3, 4, 1, 16, 16) and batch["depth"].dtype == torch.float32
    assert batch["segmentation"].shape == (3, 4, 16, 16) and batch["segmentation"].dtype == torch.int64
    assert torch.equal(batch["segmentation"], batch["video"][:, :, 0].long() - 1)
    assert torch.allclose(batch["depth"][:, :, 0], batch["video"][:, :, 0] / 100, atol=2e-3)


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("augmentation", [None, Augmentation(crop_scale=(0.3, 0.6))])
def test_several_cameras_are_cropped_alike(record, cache, augmentation):
    dataset = open_dataset(record(), split="all", cameras=("front", "side"), clip=CLIP, cache=cache)
    assert dataset.modality == "video/front" and dataset.camera is None
    batch = dataset.fetch(torch.arange(6), sample_keys(0, 0, 0, torch.arange(6)), augmentation)
    assert batch.keys() == {"video/front", "video/side", "index"} and batch["video/side"].shape == (6, 4, 3, 16, 16)
    left, right = batch["video/front"].int(), 255 - batch["video/side"].int()
    assert (left - right).abs().max() <= (0 if augmentation is None else 1)  # resizing rounds


def test_extras_of_several_cameras(record):
    with pytest.raises(MmsslError, match=r"record it with --depth"):
        open_dataset(record(), cameras=("front", "side"), clip=CLIP, extras=("depth",))
    one = open_dataset(record("a/b"), cameras=("front",), clip=CLIP, extras=("depth",), split="all")
    assert set(one[0]) == {"video/front", "depth/front", "index"}


def test_labels(record):
    folders = [
        record("metaworld/reach", episodes=3, length=15),
        record("metaworld/push", episodes=2, length=8, first=100),
    ]
    dataset = open_dataset(folders, split="all", target="task", camera="front", clip=CLIP)
    assert dataset.classes == ["metaworld/reach", "metaworld/push"] and dataset.task == "single_label"
    assert dataset.labels().tolist() == [0] * 6 + [1] * 2 and dataset.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 4]
    assert stamps(dataset[7]["video"])[0] == (101, 0) and dataset[7]["label"] == 1
    assert dataset.labels("success").tolist() == [1] * 8  # reached at some time of the episode
    assert open_dataset(folders[0], split="all", clip=CLIP).labels("reward")[:, 0].tolist() == [6.0, 14.0] * 3


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_state_is_that_of_the_clips_last_frame(record, cache):
    dataset = open_dataset(
        record(length=30), split="all", target="state", camera="front", clip=CLIP, image_size=(16, 16), cache=cache
    )
    index = torch.arange(len(dataset))
    for augmentation in (None, STILL):
        batch = dataset.fetch(index, sample_keys(0, 0, 0, index), augmentation)
        seen = torch.tensor([stamps(clip)[-1] for clip in batch["video"]]).float()
        assert torch.equal(batch["label"], seen)  # (episode, time) are its two numbers that change
        assert torch.equal(batch["label"], dataset.labels()) == (augmentation is None)


def test_views_are_clips_times_crops_of_an_episode(record):
    clip = ClipSampling(frames=4, stride=2, test_clips=2, test_crops=3)
    folder = record(length=22)
    plain = open_dataset(folder, split="test", camera="front", clip=clip, target="task")
    views = open_dataset(
        folder, split="test", camera="front", clip=clip, target="task", image_size=(16, 12), views=True
    )
    assert plain.views == 1 and len(plain) == 3 and views.views == 6 and len(views) == 6
    assert views.groups.tolist() == [4] * 6 and views.labels().tolist() == [0] * 6
    batch = views.fetch(torch.arange(6))
    wide = open_dataset(folder, split="test", camera="front", clip=clip).files[0]
    for view in range(6):
        first, left = (0, 15)[view // 3], (0, 2, 4)[view % 3]
        frames = np.stack([wide.frame(4, "rgb/front", first + 2 * k) for k in range(4)])
        assert np.array_equal(batch["video"][view].permute(0, 2, 3, 1).numpy(), frames[:, :, left : left + 12])
    part = views.subset([3, 4, 5])
    assert part.views == 6 and part.clip == clip and part.groups.tolist() == [4] * 3


def test_whole_episodes_are_decoded_a_stretch_a_sample(record):
    dataset = open_dataset(record(length=22), split="all", camera="front", clip=CLIP, extras=("depth",))
    assert [dataset.decode_whole(place) for place in range(3)] == [7, 7, 8]


def test_crop_and_resize_on_the_way(record):
    dataset = open_dataset(record(), split="all", camera="front", clip=CLIP, image_size=8, cache="memory")
    assert dataset[0]["video"].shape == (4, 3, 8, 8) and dataset.image_size == (8, 8)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_damaged_episode_is_named_and_replaced(record, cache):
    import h5py

    folder = record(length=7)
    file = folder / "data" / "main_data.hdf5"
    with h5py.File(file) as opened:
        chunk = opened["episode_2/observations/rgb/front"].id.get_chunk_info(4)
    content = bytearray(file.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 20] = b"\xff" * 20
    file.write_bytes(content)
    dataset = open_dataset(folder, camera="front", split="all", clip=CLIP, cache=cache, max_bad=0.2)
    batch = dataset.fetch(torch.arange(6))
    assert batch["index"].tolist() == [0, 1, 3, 3, 4, 5] and dataset.bad.count == 1
    assert "episode 2" in next(iter(dataset.bad.names))
    assert torch.equal(batch["video"][2], batch["video"][3])


@pytest.mark.parametrize(
    ("clip", "sentence"),
    [
        (ClipSampling(how="pair", frames=2, gap=(20, 40)), r"but a pair with a gap of 20 or more needs 21; lower"),
        (ClipSampling(short="skip"), r"but a clip of 16 frames with stride 4 needs 61; lower clip.stride"),
    ],
)  # fmt: skip
def test_clips_longer_than_every_episode(record, clip, sentence):
    with pytest.raises(MmsslError, match="the longest has 7 frames, " + sentence):
        open_dataset(record(), clip=clip)


def test_short_episodes_are_padded(record):
    dataset = open_dataset(record(), split="all", camera="front", clip=ClipSampling(frames=6, stride=2))
    assert times(dataset[0]["video"]) == [0, 2, 4, 6, 6, 6]


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_short_episodes_are_skipped_and_counted(record, cache):
    folders = [record("a/long", episodes=2, length=12), record("a/short", episodes=2, length=5, first=50)]
    clip = ClipSampling(frames=4, stride=2, short="skip")
    dataset = open_dataset(folders, split="all", camera="front", clip=clip, cache=cache, max_bad=0.6)
    assert len(dataset) == 4
    assert dataset.fetch(torch.arange(4))["index"].tolist() == [0, 1, 0, 0]
    assert dataset.bad.count == 2 and all(
        "too short: it has 5 frame" in reason for reason in dataset.bad.names.values()
    )


def test_wrong_cameras(record):
    folder = record()
    with pytest.raises(MmsslError, match=r"unknown camera 'frant': did you mean 'front'"):
        open_dataset(folder, cameras=("frant",), clip=CLIP)
    with pytest.raises(MmsslError, match=r"give camera \(front\) or cameras \(side\), not both"):
        open_dataset(folder, camera="front", cameras=("side",), clip=CLIP)
