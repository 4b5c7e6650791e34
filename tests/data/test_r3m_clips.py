"""R3M's five frames, their shared crop, and the texts of clips: of a manifest, and of recordings."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl import open_dataset
from mmssl.data.clips import ClipSampling, TooShort, frame_indices
from mmssl.data.loader import Loader
from mmssl.data.text import TextEncoding, text_encoder
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys

R3M = ClipSampling(how="r3m", frames=5)
STILL = Augmentation(crop_scale=None, hflip=0.0)
TEXT = TextEncoding(length=24)


def possible(n: int, alpha: float = 0.2) -> set[tuple[int, ...]]:
    """Every five frames that the released code can draw of a video of `n`, whose numbers there begin at 1."""
    return {
        (start - 1, end - 1, s0 - 1, s1 - 1, s2 - 1)
        for start in range(1, 2 + int(alpha * n))
        for end in range(int((1 - alpha) * n) - 1, n)
        for s1 in range(2, n)
        for s0 in range(1, s1)
        for s2 in range(s1, n + 1)
    }


@pytest.mark.parametrize(("n", "alpha"), [(3, 0.2), (4, 0.2), (7, 0.2), (6, 0.0), (7, 0.4)])
def test_the_five_frames_are_those_of_the_released_code(n, alpha):
    clip, grid = ClipSampling(how="r3m", frames=5, alpha=alpha), [(k + 0.5) / 60 for k in range(60)]
    drawn = set()
    for a in np.random.default_rng(0).choice(grid, (6000, 5)).tolist():
        drawn.add(tuple(frame_indices(clip, n, a)))
    wanted = {tuple(max(0, frame) for frame in five) for five in possible(n, alpha)}
    assert drawn <= wanted and len(drawn) > 0.9 * len(wanted)
    assert {five[1] for five in drawn} == {five[1] for five in wanted}


def test_at_test_time_they_lie_evenly():
    assert frame_indices(R3M, 9) == [0, 8, 2, 4, 6]
    assert frame_indices(R3M, 3) == [0, 2, 0, 1, 1] and frame_indices(R3M, 1, [0.5] * 5) == [0] * 5
    with pytest.raises(TooShort, match="three frames one after the other need 3"):
        frame_indices(ClipSampling(how="r3m", frames=5, short="skip"), 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frames": 16}, "have 5 frames of the whole video, got clip.frames 16 and clip.test_clips 1"),
        ({"frames": 5, "test_clips": 2}, "got clip.frames 5 and clip.test_clips 2; set them to 5 and 1"),
        ({"frames": 5, "alpha": 0.5}, r"clip.alpha is a share of the video in \[0, 0.5\), got 0.5"),
    ],
)
def test_impossible_settings_are_one_sentence(settings, words):
    with pytest.raises(MmsslError, match=words):
        ClipSampling(how="r3m", **settings)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_recordings_give_whole_episodes_with_their_instructions(record, cache):
    folders = [record("metaworld/reach", length=9), record("metaworld/push", length=12, first=100)]
    dataset = open_dataset(folders, split="all", camera="front", clip=R3M, cache=cache, text=TEXT)
    assert len(dataset) == 12 and dataset.views == 1
    index = torch.tensor([0, 11, 5])
    for keys, augmentation in ((None, None), (sample_keys(0, 0, 0, index), STILL)):
        batch = dataset.fetch(index, keys, augmentation)
        assert batch["video"].shape == (3, 5, 3, 16, 16) and batch["text"].shape == (3, 24)
        assert batch["video"][:, :, 0, 0, 0].tolist() == [[0] * 5, [105] * 5, [5] * 5]  # the episode of each frame
        said = dataset.text_encoder.decode(batch["text"])
        assert said == ["do metaworld/reach", "do metaworld/push", "do metaworld/reach"]
        assert batch["text_mask"].sum(1).tolist() == [18, 17, 18]
    times = batch["video"][:, :, 1, 0, 0]
    assert (times[:, 2] < times[:, 3]).all() and (times[:, 3] <= times[:, 4]).all()
    again = dataset.subset([11, 0]).fetch(torch.tensor([0]))
    assert dataset.text_encoder.decode(again["text"]) == ["do metaworld/push"]
    plain = open_dataset(folders, split="all", camera="front", clip=R3M, cache=cache)
    assert "text" not in plain.fetch(index) and plain.caption(0) == ["do metaworld/reach"]


def test_recordings_of_episodes_too_short_are_refused(record):
    with pytest.raises(MmsslError, match="longest has 2 frames, but three frames one after the other need 3"):
        open_dataset(record(length=2), camera="front", clip=R3M)


def write_manifest(root, texts, length: int = 6):
    """Folders of numbered JPEGs, each frame of one grey, and R3M's manifest of them."""
    lines = [",path,len,txt"]
    for k, text in enumerate(texts):
        folder = root / f"clip_{k}"
        folder.mkdir(parents=True)
        for time in range(length):
            Image.new("RGB", (40, 30), (20 * k, 40 * time, 0)).save(folder / f"{time + 1:06}.jpg", quality=100)
        lines.append(f"{k},{folder.name},{length},{text}")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root / "manifest.csv"


def test_r3ms_manifest_is_read_with_its_annotations(tmp_path):
    manifest = write_manifest(tmp_path, ["C opens the door", '"C washes, then dries"', "C ", "Cuts an onion", ""])
    dataset = open_dataset(manifest, split="all", image_size=24, clip=R3M, text=TEXT, target="none")
    assert [dataset.caption(k) for k in range(5)] == [
        ["opens the door"], ["washes, then dries"], [], ["Cuts an onion"], [],
    ]  # fmt: skip
    loader = Loader(dataset, 5, shuffle=False, augmentation=Augmentation(hflip=0.0), workers=1)
    batch = next(loader.epoch(0))
    loader.close()
    assert batch["video"].shape == (5, 5, 3, 24, 24) and batch["text_mask"].any(1).tolist() == [1, 1, 0, 1, 0]
    ids, mask = text_encoder(TEXT)(["opens the door"])
    assert torch.equal(batch["text"][:1], ids) and torch.equal(batch["text_mask"][:1], mask)
    times = (batch["video"][:, :, 1].float().mean((2, 3)) / 40).round()
    assert (times[:, 0] <= 1).all() and (times[:, 1] >= 2).all() and (times[:, 2] < times[:, 3]).all()
    assert "text" not in open_dataset(manifest, split="all", image_size=24, clip=R3M).fetch(torch.tensor([0]))


def test_two_annotations_of_one_video_are_refused(tmp_path):
    manifest = write_manifest(tmp_path, ["C sits", "C stands"])
    manifest.write_text(manifest.read_text() + "2,clip_0,6,C runs\n")
    with pytest.raises(MmsslError, match=r"gives .*clip_0 two annotations; a video has one"):
        open_dataset(manifest, split="all", image_size=24, clip=R3M, text=TEXT)


def test_the_five_frames_share_their_crop(tmp_path):
    folder = tmp_path / "videos" / "one"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for time in range(5):
        Image.fromarray(pixels).save(folder / f"{time}.png")
    dataset = open_dataset(tmp_path / "videos", split="all", image_size=16, clip=R3M)
    crops = []
    for epoch in range(4):
        index = torch.tensor([0])
        video = dataset.fetch(index, sample_keys(0, epoch, 0, index), Augmentation(hflip=0.0))["video"][0]
        assert (video == video[:1]).all()
        crops.append(video[0])
    assert not any(torch.equal(crops[0], crop) for crop in crops[1:])
