"""Videos on disk as clips: layouts, lists, folders of frames, one decoding pass, views, bad files, wrong input."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from video_toys import audio_only, damaged, empty, frame_number, not_a_video, write_video

from mmssl import open_dataset
from mmssl.data import video_files
from mmssl.data.clips import ClipSampling
from mmssl.data.loader import Loader
from mmssl.data.transforms import Augmentation
from mmssl.data.video_list import read_list
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys

CLIP = ClipSampling(frames=4, stride=2)  # spans 7 frames
STILL = Augmentation(crop_scale=None, hflip=0.0)  # frames are drawn and nothing else


def numbers(clip: torch.Tensor) -> list[int]:
    """The number that each frame of uint8 (T, 3, H, W) spells."""
    return [frame_number(frame) for frame in clip.permute(0, 2, 3, 1).numpy()]


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> Path:
    """root/<run, swim>/<0, 1, ...>.mp4 of 20 frames."""
    root = tmp_path_factory.mktemp("toys")
    for name, count in (("run", 3), ("swim", 2)):
        (root / name).mkdir()
        for k in range(count):
            write_video(root / name / f"{k}.mp4", n=20)
    return root


def linked(toys: Path, root: Path, *names: str) -> Path:
    """A copy of some of the toys, by links."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(toys / Path(name).parts[-2] / Path(name).name)
    return root


@pytest.fixture
def frames(tmp_path) -> Path:
    """root/<run, swim>/<a, b>/frame_<0 .. 11>.png: noise of 40 x 48 whose first pixel spells the number."""
    root = tmp_path / "frames"
    for name in ("run/a", "run/b", "swim/a"):
        (root / name).mkdir(parents=True)
        for k in range(12):
            pixels = np.random.default_rng(k).integers(0, 256, (40, 48, 3), dtype=np.uint8)
            pixels[0, 0] = k
            Image.fromarray(pixels).save(root / name / f"frame_{k}.png")
    return root


def test_class_folders_are_recognised_by_their_files(toys):
    dataset = open_dataset(toys, split="all")
    assert dataset.modality == "video" and dataset.clip == ClipSampling() and dataset.views == 1
    assert len(dataset) == 5 and dataset.classes == ["run", "swim"] and dataset.task == "single_label"
    assert dataset.labels().tolist() == [0, 0, 0, 1, 1] and dataset.groups.tolist() == [0, 1, 2, 3, 4]
    assert dataset.sample_name(4) == str(toys / "swim" / "1.mp4")
    sample = dataset[3]
    assert sample["video"].shape == (16, 3, 48, 64) and sample["video"].dtype == torch.uint8 and sample["label"] == 1
    assert numbers(sample["video"]) == [0, 4, 8, 12, 16, *[19] * 11]  # too short for the default: padded


def test_clips_of_training_and_of_test_time(toys):
    dataset = open_dataset(toys, split="all", clip=CLIP, image_size=(32, 40))
    batch = dataset.fetch(torch.arange(5))
    assert batch["video"].shape == (5, 4, 3, 32, 40) and batch["video"].is_contiguous()
    assert [numbers(clip) for clip in batch["video"]] == [[6, 8, 10, 12]] * 5  # the middle
    index, starts = torch.arange(5), set()
    assert torch.equal(dataset.fetch(index, sample_keys(0, 0, 0, index))["video"], batch["video"])  # nothing is drawn
    for epoch in range(6):
        for clip in dataset.fetch(index, sample_keys(0, epoch, 0, index), STILL)["video"]:
            first = numbers(clip)[0]
            assert numbers(clip) == [first, first + 2, first + 4, first + 6]
            starts.add(first)
    assert len(starts) > 7 and max(starts) <= 13


def test_flat_folder_split_folder_and_held_out_part(toys, tmp_path):
    flat = open_dataset(toys / "run", split="all", clip=CLIP)
    assert len(flat) == 3 and flat.task is None and "label" not in flat[0]
    test = open_dataset(toys, split="test", clip=CLIP)
    assert [Path(f).relative_to(toys).as_posix() for f in test.files] == ["run/2.mp4", "swim/1.mp4"]
    root = linked(toys, tmp_path / "split", "train/run/0.mp4", "train/swim/0.mp4", "val/swim/1.mp4")
    val = open_dataset(root, split="test", clip=CLIP)
    assert val.classes == ["run", "swim"] and val.labels().tolist() == [1]
    with pytest.raises(MmsslError, match=r"no split 'dev'; valid: train, val, all"):
        open_dataset(root, split="dev")


def test_other_containers(tmp_path):
    for name in ("a.avi", "b.webm", "c.mkv"):
        write_video(tmp_path / name, n=12)
    dataset = open_dataset(tmp_path, split="all", clip=CLIP)
    assert [numbers(dataset[k]["video"]) for k in range(3)] == [[2, 4, 6, 8]] * 3


# --- lists ---


@pytest.mark.parametrize(
    ("name", "text", "labels", "classes"),
    [
        ("train.txt", "run/0.mp4 1\nswim/1.mp4 0\n", [1, 0], ["0", "1"]),
        ("train.csv", "run/0.mp4,1\nswim/1.mp4,0", [1, 0], ["0", "1"]),
        ("train.csv", "run/0.mp4 20 2\nswim/1.mp4 20 0\n", [2, 0], ["0", "1", "2"]),  # VideoMAE's three columns
        ("train.csv", "run/0.mp4, 0, -1\nswim/1.mp4, 0, -1\n", None, None),
        ("train.lst", "# path\n\nrun/0.mp4\nswim/1.mp4\n", None, None),
        ("train.txt", "run/0.mp4 pole vault\nswim/1.mp4 abseiling", [1, 0], ["abseiling", "pole vault"]),
        ("train.csv", "split,Label,path\nval,swim,run/0.mp4\nval,run,swim/1.mp4\n", [1, 0], ["run", "swim"]),
        ("train.tsv", "path\tlabel\nrun/0.mp4\t3\nswim/1.mp4\t0\n", [3, 0], ["0", "1", "2", "3"]),
        ("train.csv", '\ufeffpath\n"run/0.mp4"\nswim/1.mp4\n', None, None),
    ],
)
def test_lists(toys, tmp_path, name, text, labels, classes):
    linked(toys, tmp_path, "run/0.mp4", "swim/1.mp4")
    (tmp_path / name).write_text(text)
    dataset = open_dataset(tmp_path / name, split="all", clip=CLIP)
    assert list(dataset.files) == [str(tmp_path / "run/0.mp4"), str(tmp_path / "swim/1.mp4")]
    assert dataset.classes == classes and numbers(dataset[1]["video"]) == [6, 8, 10, 12]
    if labels is None:
        assert dataset.task is None and not dataset.targets
    else:
        assert dataset.labels().tolist() == labels and dataset[0]["label"] == labels[0]


def test_paths_of_lists(toys, frames, tmp_path):
    spaced = linked(toys, tmp_path / "my videos", "swim/0.mp4")
    (tmp_path / "list.txt").write_text(
        f"{toys}/run/0.mp4 0\nmy videos/swim/0.mp4 1\n{frames}/run/a 12 1\n{frames}/run/b 0"
    )
    found = read_list(tmp_path / "list.txt")
    assert [path for path, _ in found] == [
        f"{toys}/run/0.mp4", f"{spaced}/swim/0.mp4", f"{frames}/run/a", f"{frames}/run/b",
    ]  # fmt: skip
    assert [label for _, label in found] == ["0", "1", "1", "0"]
    dataset = open_dataset(tmp_path / "list.txt", split="all", clip=CLIP)  # files and folders of frames together
    assert numbers(dataset[1]["video"]) == [6, 8, 10, 12] and dataset[2]["video"][:, 0, 0, 0].tolist() == [2, 4, 6, 8]
    assert open_dataset(tmp_path / "list.txt", split="test", clip=CLIP).labels().tolist() == [0, 1]  # of each class


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"list of videos .*train.txt is empty; write one `path label` a line"),
        ("a.mp4 0\nb.mp4\n", r"1 of the 2 lines of .* have no label; give all a label, or none"),
        ("some folder here 3 4 x\n", r"line 1 of .*train.txt has 6 fields"),
        ("path,label\n,3\n", r"line 2 of .* has no path"),
        ("a.mp4 0\nb.mp4 1\n", r"the videos of 'train' are not there, e.g. .*a.mp4; mend the paths"),
    ],
)
def test_wrong_lists(tmp_path, text, sentence):
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(MmsslError, match=sentence):
        open_dataset(tmp_path / "train.txt", split="all")


def write_card(folder: Path, **fields) -> Path:
    card = {"name": "toy", "modality": "video", "layout": "x", "how_to_get": "Run make_toys.", "licence": "none"}
    (folder / "toy.yaml").write_text(yaml.safe_dump({**card, "kind": "video_list", "path": ".", **fields}))
    return folder / "toy.yaml"


def test_card_of_lists(toys, tmp_path):
    linked(toys, tmp_path / "videos", "run/0.mp4", "run/1.mp4", "swim/0.mp4")
    (tmp_path / "train.csv").write_text("run/0.mp4 0\nrun/1.mp4 1\n")
    (tmp_path / "val.csv").write_text("swim/0.mp4 2\n")
    lists = {"train": "train.csv", "val": "val.csv"}
    card = write_card(tmp_path, lists=lists, root="videos", classes=["fly", "run", "swim"])
    train, test, every = (open_dataset(card, split=split, clip=CLIP) for split in ("train", "test", "all"))
    assert train.name == "toy" and train.labels().tolist() == [0, 1] and train.classes == ["fly", "run", "swim"]
    assert test.labels().tolist() == [2] and len(every) == 3 and numbers(test[0]["video"]) == [6, 8, 10, 12]
    with pytest.raises(MmsslError, match=r"card 'toy' has no split 'dev'; valid: train, val, all"):
        open_dataset(card, split="dev")
    with pytest.raises(MmsslError, match=r"lists 2 classes, but a label of its lists is 2"):
        open_dataset(write_card(tmp_path, lists=lists, root="videos", classes=["fly", "run"]))
    with pytest.raises(MmsslError, match=r"there is no list .*test.csv. How to get it: Run make_toys"):
        open_dataset(write_card(tmp_path, lists={"test": "test.csv"}))
    with pytest.raises(MmsslError, match=r"video_list without lists"):
        open_dataset(write_card(tmp_path))


# --- folders of frames ---


def test_folders_of_frames(frames):
    dataset = open_dataset(frames, split="all", clip=CLIP)
    assert len(dataset) == 3 and dataset.classes == ["run", "swim"] and dataset.labels().tolist() == [0, 0, 1]
    clip = dataset[2]["video"]
    assert clip.shape == (4, 3, 40, 48) and clip[:, 0, 0, 0].tolist() == [2, 4, 6, 8]  # frame_2 before frame_10
    assert np.array_equal(clip[1].permute(1, 2, 0).numpy(), np.asarray(Image.open(frames / "swim/a/frame_4.png")))
    flat = open_dataset(frames / "run", split="all", clip=CLIP)
    assert len(flat) == 2 and flat.task is None
    images = open_dataset(frames, split="all")  # without clip the same tree holds images
    assert images.modality == "image" and len(images) == 36


def test_wrong_folders_of_frames(frames, tmp_path):
    with pytest.raises(MmsslError, match=r"no folder of frames in .*; give root/<video>/<picture>"):
        open_dataset(frames / "run" / "a", clip=CLIP)
    Image.new("RGB", (10, 10)).save(frames / "run/a/frame_5.png")
    dataset = open_dataset(frames, split="all", clip=ClipSampling(frames=4, stride=1), max_bad=0.5)
    assert dataset.fetch(torch.arange(3))["index"].tolist() == [1, 1, 2]
    assert "frame_5.png has (10, 10) pixels, the first frame (40, 48)" in next(iter(dataset.bad.names.values()))


def test_one_crop_for_all_frames_and_for_both_of_a_pair(frames):
    still = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    for file in frames.glob("*/*/*.png"):
        Image.fromarray(still).save(file)
    index = torch.arange(3).repeat(4)
    keys = sample_keys(0, 0, torch.arange(12), index)
    pair = ClipSampling(how="pair", frames=2, gap=(3, 9))
    for clip in (CLIP, pair, ClipSampling(how="segments", frames=3)):
        for augmentation in (
            Augmentation(crop_scale=(0.3, 1.0)),
            Augmentation(crop_scale=None, crop_scales=(1.0, 0.75, 0.5), rand_augment=9.0),
        ):
            dataset = open_dataset(frames, split="all", clip=clip, image_size=(16, 20))
            video = dataset.fetch(index, keys, augmentation)["video"]
            assert video.shape == (12, clip.frames, 3, 16, 20)
            assert all(torch.equal(video[:, 0], video[:, t]) for t in range(clip.frames))
            assert len({tuple(x.flatten().tolist()) for x in video[:, 0]}) > 6  # each sample has a crop of its own


# --- one pass, views ---


def test_clips_of_one_video_are_decoded_in_one_pass(toys, monkeypatch):
    calls, read = [], video_files.decoder.read_clips

    def counting(path, choose, size=None):
        clips, facts = read(path, choose, size)
        calls.append((path, len(clips)))
        return clips, facts

    monkeypatch.setattr(video_files.decoder, "read_clips", counting)
    dataset = open_dataset(toys, split="all", clip=CLIP, image_size=(24, 32))
    calls.clear()
    (batch,) = Loader(dataset, 15, repeats=3, augmentation=Augmentation()).epoch(0)
    assert sorted(calls) == [(dataset.files[k], 3) for k in range(5)]
    assert batch["video"].shape == (15, 4, 3, 24, 32)
    for row in range(15):  # each clip is what it is alone
        alone = dataset.fetch(batch["index"][row : row + 1], batch["keys"][row : row + 1], Augmentation())
        assert torch.equal(alone["video"][0], batch["video"][row])
    same = batch["index"][0] == batch["index"]
    assert len({tuple(x.flatten().tolist()) for x in batch["video"][same]}) == 3  # frames and crops differ


def test_views(toys):
    clip = ClipSampling(frames=4, stride=2, test_clips=3, test_crops=2)
    dataset = open_dataset(toys, split="all", clip=clip, image_size=(48, 48), views=True)
    assert dataset.views == 6 and len(dataset) == 30
    assert dataset.groups.tolist() == [k for k in range(5) for _ in range(6)]
    assert dataset.labels().tolist() == [0] * 18 + [1] * 12
    assert dataset.sample_name(13) == dataset.files[2]
    whole = open_dataset(toys, split="all", clip=ClipSampling(frames=20, stride=1))[1]["video"]
    batch = dataset.fetch(torch.arange(6, 12))
    for view, (first, left) in enumerate([(0, 0), (0, 16), (6, 0), (6, 16), (13, 0), (13, 16)]):
        expected = whole[first : first + 7 : 2, :, :, left : left + 48]
        assert torch.equal(batch["video"][view], expected)
    assert open_dataset(toys, split="all", clip=clip).views == 1
    part = dataset.subset(torch.arange(6, 18))
    assert part.views == 6 and part.groups.tolist() == [1] * 6 + [2] * 6


@pytest.mark.parametrize("augmentation", [None, Augmentation(rand_augment=9.0)])
def test_workers_give_the_same_bits(toys, frames, augmentation):
    for source in (toys, frames):
        dataset = open_dataset(source, split="all", clip=CLIP, image_size=(16, 16))
        alone, pool = (Loader(dataset, 2, repeats=2, augmentation=augmentation, workers=w) for w in (0, 2))
        for left, right in zip(alone.epoch(2), pool.epoch(2), strict=True):
            assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
        pool.close()


# --- bad files ---


def test_bad_files_are_named_and_replaced(toys, tmp_path):
    root = linked(toys, tmp_path / "mixed", "run/0.mp4", "run/1.mp4")
    makers = {"a.mp4": audio_only, "b.mp4": empty, "c.mp4": not_a_video}
    for name, make in makers.items():
        make(root / "run" / name)
    dataset = open_dataset(root, split="all", clip=CLIP, max_bad=0.8)
    batch = dataset.fetch(torch.arange(5))
    assert batch["index"].tolist() == [0, 1, 0, 0, 0] and torch.equal(batch["video"][0], batch["video"][4])
    assert sorted(dataset.bad.names) == [str(root / "run" / name) for name in makers]
    reasons = list(dataset.bad.names.values())
    assert "no video stream" in reasons[0] and "empty" in reasons[1]
    assert not any("VideoUnreadable" in reason for reason in reasons)
    views = open_dataset(root, split="all", clip=ClipSampling(frames=2, test_clips=2), max_bad=0.8, views=True)
    assert views.fetch(torch.arange(3, 7))["index"].tolist() == [3, 0, 1, 0]
    assert views.bad.count == 3 and views.readable_places(torch.arange(10)).tolist() == [0, 1, 2, 3, *[0] * 6]
    with pytest.raises(MmsslError, match=r"1 of 5 samples cannot be read"):  # videos are counted, not their views
        open_dataset(root, split="all", clip=ClipSampling(test_clips=9), views=True, max_bad=0.1).fetch(
            torch.tensor([18])
        )


def test_too_short_videos_are_skipped_or_padded(toys, tmp_path):
    root = linked(toys, tmp_path / "mixed", "run/0.mp4")
    write_video(root / "run" / "short.mp4", n=5)
    skip = ClipSampling(frames=4, stride=2, short="skip")
    dataset = open_dataset(root, split="all", clip=skip, max_bad=0.5)
    assert dataset.fetch(torch.arange(2))["index"].tolist() == [0, 0]
    assert list(dataset.bad.names.values()) == [
        "too short: it has 5 frame(s), but a clip of 4 frames with stride 2 needs 7; lower clip.stride or clip.frames, "
        "or set clip.short: pad"
    ]
    assert numbers(open_dataset(root, split="all", clip=CLIP)[1]["video"]) == [0, 2, 4, 4]
    pair = open_dataset(root, split="all", clip=ClipSampling(how="pair", frames=2, gap=(8, 12)))
    assert numbers(pair[1]["video"]) == [0, 4]


@pytest.mark.parametrize(
    ("clip", "sentence"),
    [
        ({"how": "pair", "frames": 2, "gap": (30, 40)}, "a pair with a gap of 30 or more needs 31; lower clip.gap."),
        ({"short": "skip"}, "a clip of 16 frames with stride 4 needs 61; lower clip.stride or clip.frames, or set"),
        ({"how": "segments", "frames": 32, "short": "skip"}, "one frame of each of 32 segments needs 32"),
    ],
)
def test_clips_longer_than_every_video(toys, clip, sentence):
    with pytest.raises(
        MmsslError, match="all 5 videos .* looked at are too short, the longest has 20 frames, but " + sentence
    ):
        open_dataset(toys, split="all", clip=ClipSampling(**clip))


def test_whole_videos_are_decoded(toys, frames, tmp_path):
    dataset = open_dataset(toys, split="all", clip=CLIP)
    assert dataset.decode_whole(3) == 20
    assert open_dataset(frames, split="all", clip=CLIP).decode_whole(0) == 12
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    damaged(tmp_path / "a.mp4", frames=noise, index_first=True)
    with pytest.raises(ValueError):
        open_dataset(tmp_path, split="all", clip=CLIP).decode_whole(0)


# --- wrong input ---


def test_wrong_input(toys, frames, tmp_path):
    with pytest.raises(MmsslError, match=r"files of videos are decoded: use cache: none"):
        open_dataset(toys, cache="memory")
    with pytest.raises(MmsslError, match=r"cameras and extras are of recordings"):
        open_dataset(toys, extras=("depth",))
    with pytest.raises(MmsslError, match=r"is a file; give a folder, .* a list of videos"):
        open_dataset(toys / "run" / "0.mp4")
    with pytest.raises(MmsslError, match=r"dataset 'samples' holds images, of which no clip can be made"):
        open_dataset("samples", clip=CLIP)
    with pytest.raises(MmsslError, match=r"different kinds \(frame_folder, video_folder\)"):
        open_dataset([toys, frames], clip=CLIP)
    (tmp_path / "sizes").mkdir()
    for k, size in enumerate(((48, 64), (32, 32))):
        write_video(tmp_path / "sizes" / f"{k}.mp4", n=10, size=size)
    with pytest.raises(MmsslError, match=r"videos of dataset 'sizes' differ in size.*give image_size"):
        open_dataset(tmp_path / "sizes", split="all", clip=CLIP).fetch(torch.arange(2))
