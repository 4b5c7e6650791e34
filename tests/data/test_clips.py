"""Which frames make a clip, and how all of them are cropped alike."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from mmssl.data.clip_crops import ClipGeometry, Cut, scaled_box
from mmssl.data.clips import ClipSampling, TooShort, clip_draws, frame_indices
from mmssl.data.crops import drawn_box, multi_scale_crop
from mmssl.data.transforms import Augmentation, BatchAugment
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys, uniform

PLAIN = {"crop_scale": None, "hflip": 0.0}
MANY = 10**7  # frames that nobody can hold at once, whatever their size
clips = st.one_of(
    st.builds(ClipSampling, frames=st.integers(1, 20), stride=st.integers(1, 9)),
    st.builds(ClipSampling, how=st.just("segments"), frames=st.integers(1, 20)),
    st.builds(
        lambda low, width: ClipSampling(how="pair", frames=2, gap=(low, low + width)),
        st.integers(1, 30),
        st.integers(1, 40),
    ),
)
draw = st.floats(0, 1 - 2**-24)


@settings(max_examples=100, deadline=None)
@given(clip=clips, n=st.integers(1, 200), parts=st.integers(1, 5), data=st.data())
def test_frames_are_inside_rise_and_have_their_distances(clip, n, parts, data):
    part = data.draw(st.integers(0, parts - 1))
    for draws in (None, data.draw(st.lists(draw, min_size=clip.draws, max_size=clip.draws))):
        frames = frame_indices(clip, n, draws, part, parts)
        assert len(frames) == clip.frames and frames == sorted(frames)
        assert frames[0] >= 0 and frames[-1] < n
        gaps = [b - a for a, b in pairwise(frames)]
        if n >= clip.needed and clip.how == "dense":
            assert all(gap == clip.stride for gap in gaps)
        if n >= clip.needed and clip.how == "pair":
            assert clip.gap[0] <= gaps[0] < clip.gap[1]
        if n >= clip.needed and clip.how == "segments" and draws is not None:
            assert all(k * n // clip.frames <= f < (k + 1) * n // clip.frames for k, f in enumerate(frames))


def test_dense_starts_are_uniform_over_all_that_fit():
    clip = ClipSampling(frames=4, stride=3)  # needs 10 frames
    starts = [frame_indices(clip, 14, [(k + 0.5) / 50])[0] for k in range(50)]
    assert [starts.count(s) for s in range(5)] == [10] * 5
    second = [frame_indices(clip, 14, [(k + 0.5) / 50], part=1, parts=2)[0] for k in range(50)]
    assert set(second) == {2, 3, 4}  # a start in its own half


def test_dense_clips_of_test_time_are_videomaes():
    """`SlidingWindow` of their Kinetics evaluation: starts int(chunk * (frames - length) / (chunks - 1))."""
    clip = ClipSampling(frames=16, stride=4)
    for n in (61, 62, 100, 300):
        starts = [frame_indices(clip, n, None, k, 5)[0] for k in range(5)]
        assert starts == [int(k * (n - 61) / 4) for k in range(5)]
    assert frame_indices(clip, 100)[0] == 19  # a lone clip lies in the middle


def test_short_dense_clip_repeats_the_last_frame():
    assert frame_indices(ClipSampling(frames=4, stride=2), 5, [0.9]) == [0, 2, 4, 4]


def test_segments_of_test_time_are_those_of_tsn_and_of_videomae():
    clip = ClipSampling(how="segments", frames=8)
    for n in (8, 37, 50, 101):
        tick = n / 8
        middle, start = [int(tick / 2 + tick * k) for k in range(8)], [int(tick * k) for k in range(8)]
        assert frame_indices(clip, n) == middle
        both = sorted(middle + start)  # VideoMAE's SSVideoClsDataset, two clips of Something-Something
        assert [frame_indices(clip, n, None, k, 2) for k in range(2)] == [both[0::2], both[1::2]]
    assert frame_indices(clip, 24, None, 1, 3) == [3 * k + 1 for k in range(8)]


def test_segments_of_a_short_video_repeat_frames_evenly():
    clip = ClipSampling(how="segments", frames=8)
    assert frame_indices(clip, 4) == frame_indices(clip, 4, [0.99] * 8) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_pairs_draw_gap_and_place_evenly_from_what_fits():
    clip = ClipSampling(how="pair", frames=2, gap=(4, 48))
    rows = uniform(torch.arange(4000), 2).tolist()
    pairs = np.array([frame_indices(clip, 300, row) for row in rows])
    gaps, shares = np.unique(pairs[:, 1] - pairs[:, 0], return_counts=True)
    assert gaps.tolist() == list(range(4, 48)) and shares.std() / shares.mean() < 0.2
    place = pairs[:, 0] / (300 - (pairs[:, 1] - pairs[:, 0]))
    assert abs(place.mean() - 0.5) < 0.02 and place.min() < 0.01 and place.max() > 0.98
    short = np.array([frame_indices(clip, 10, row) for row in rows])
    assert np.unique(short[:, 1] - short[:, 0]).tolist() == [4, 5, 6, 7, 8, 9]  # larger gaps do not fit
    assert frame_indices(clip, 100) == [37, 62]  # the middle gap, in the middle
    assert frame_indices(clip, 4, [0.5, 0.5]) == [0, 3] and frame_indices(clip, 1) == [0, 0]


@pytest.mark.parametrize(
    ("clip", "sentence"),
    [
        (ClipSampling(short="skip"), r"it has 20 frame\(s\), but a clip of 16 frames with stride 4 needs 61; lower"),
        (ClipSampling(how="segments", frames=32, short="skip"), r"one frame of each of 32 segments needs 32"),
        (ClipSampling(how="pair", frames=2, gap=(30, 40), short="skip"), r"a pair with a gap of 30 or more needs 31"),
    ],
)
def test_too_short_is_said_where_it_is_to_be_skipped(clip, sentence):
    with pytest.raises(TooShort, match=sentence):
        frame_indices(clip, 20)
    assert frame_indices(clip, clip.needed)[-1] < clip.needed


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"frames": 0}, r"clip.frames must be 1 or more, got 0"),
        ({"how": "pair"}, r"a pair has 2 frames, got clip.frames 16; set clip.frames to 2"),
        ({"gap": (8, 8)}, r"clip.gap must be two increasing numbers"),
    ],
)
def test_impossible_settings(settings, sentence):
    with pytest.raises(MmsslError, match=sentence):
        ClipSampling(**settings)


def test_frames_and_crop_have_draws_of_their_own():
    keys = sample_keys(0, 0, 0, torch.arange(5))
    geometry = ClipGeometry((8, 8))
    frames, crops = clip_draws(ClipSampling(), keys), geometry.draws(keys, Augmentation())
    assert frames == clip_draws(ClipSampling(), keys)
    assert all(f[0] not in c for f, c in zip(frames, crops, strict=True))


# --- crops ---


def tsn_boxes(height: int, width: int, size: int, scales: tuple[float, ...]) -> list[tuple[int, int, int, int]]:
    """Every box of GroupMultiScaleCrop(size, scales, max_distort=1, fix_crop, more_fix_crop) of TSN's code."""
    sides = [int(min(width, height) * s) for s in scales]
    sides = [size if abs(s - size) < 3 else s for s in sides]
    boxes = []
    for i, h in enumerate(sides):
        for j, w in enumerate(sides):
            if abs(i - j) > 1:
                continue
            w_step, h_step = (width - w) // 4, (height - h) // 4
            offsets = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0)]
            offsets += [(1, 1), (3, 1), (1, 3), (3, 3)]
            boxes += [(a * w_step, b * h_step, a * w_step + w, b * h_step + h) for a, b in offsets]
    return boxes


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 180), (258, 258)])
def test_multi_scale_crops_are_those_of_tsn(height, width):
    scales = (1.0, 0.875, 0.75, 0.66)
    expected = tsn_boxes(height, width, 224, scales)
    assert len(expected) == 130
    grid = [((i + 0.5) / 10, (j + 0.5) / 13) for i in range(10) for j in range(13)]
    found = [multi_scale_crop(height, width, (224, 224), row, scales) for row in grid]
    assert sorted(found) == sorted(expected)  # each as often as there


def test_one_way_to_crop_at_a_time():
    with pytest.raises(MmsslError, match=r"crop_scale \(0.2, 1.0\) and crop_scales .* set crop_scale to null"):
        Augmentation(crop_scales=(1.0, 0.875))
    for wrong in ((0.5, 0.7), (), (1.2, 1.0)):
        with pytest.raises(MmsslError, match="crop_scales must be falling numbers"):
            Augmentation(crop_scale=None, crop_scales=wrong)
    augmentation = Augmentation(crop_scale=None, crop_scales=(0.5,))
    assert drawn_box((100, 80), None, [0.0] * 2, augmentation) == (0, 0, 40, 40)


def noise(t: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (t, height, width, 3), dtype=np.uint8)


def training_cut(augmentation: Augmentation, key: int = 7) -> Cut:
    return Cut(ClipGeometry((24, 20)).draws(torch.tensor([key]), augmentation)[0], augmentation)


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(**PLAIN, rand_augment=9.0, rand_augment_ops=4)])
def test_all_frames_of_a_clip_are_cut_alike(augmentation):
    """Equal frames come out equal, and each frame as if it were alone."""
    geometry, frames = ClipGeometry((24, 20)), noise(3, 60, 50)
    frames[2] = frames[0]
    for key in range(8):
        cut = training_cut(augmentation, key)
        out = geometry.cut({"video": frames}, (60, 50), cut)["video"]
        assert out.shape == (3, 3, 24, 20) and out.dtype == torch.uint8
        assert torch.equal(out[0], out[2]) and not torch.equal(out[0], out[1])
        alone = [geometry.cut({"video": f[None]}, (60, 50), cut)["video"][0] for f in frames]
        assert torch.equal(out, torch.stack(alone))


def test_a_crop_is_pillows_antialiased_one():
    geometry, frames = ClipGeometry((24, 20)), noise(2, 60, 50)
    for method in ("bicubic", "bilinear"):
        cut = training_cut(Augmentation(interpolation=method))
        box = drawn_box((60, 50), (24, 20), cut.draws, cut.augmentation)
        out = geometry.cut({"video": frames}, (60, 50), cut)["video"].permute(0, 2, 3, 1).numpy()
        for frame, ours in zip(frames, out, strict=True):
            theirs = Image.fromarray(frame).crop(box).resize((20, 24), getattr(Image.Resampling, method.upper()))
            assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(90, 120), (120, 90), (64, 64)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(height, width):
    frames, geometry = noise(2, height, width), ClipGeometry((56, 56), 0.875)
    x = torch.from_numpy(frames).permute(0, 3, 1, 2)
    theirs = v2.Compose([v2.Resize(64, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(56)])(x)
    out = geometry.cut({"video": frames}, (height, width), Cut())["video"]
    assert (out.int() - theirs.int()).abs().max() <= 1


def test_three_crops_lie_at_both_ends_and_in_the_middle_of_the_longer_side():
    geometry = ClipGeometry((32, 32), 1.0)
    for frames, side in ((noise(2, 32, 80), -1), (noise(2, 80, 32), -2)):
        whole = torch.from_numpy(frames).permute(0, 3, 1, 2)
        seen = frames.shape[1:3]
        for k, start in enumerate((0, 24, 48)):
            out = geometry.cut({"video": frames}, seen, Cut(crop=k, crops=3))["video"]
            assert torch.equal(out, whole.narrow(side, start, 32))


def test_depth_and_ids_follow_their_pictures():
    red = noise(2, 60, 50)
    planes = {"depth": red[..., 0].astype(np.float16) / 2, "segmentation/front": red[..., 0].astype(np.int16) - 1}
    whole = ClipGeometry(None).cut({"video": red, **planes}, (60, 50), Cut())
    assert whole["depth"].shape == (2, 1, 60, 50) and whole["depth"].dtype == torch.float32
    assert whole["segmentation/front"].shape == (2, 60, 50) and whole["segmentation/front"].dtype == torch.int64
    assert torch.equal(whole["segmentation/front"], whole["video"][:, 0].long() - 1)
    cut = training_cut(Augmentation(crop_scale=(0.3, 0.3)))
    left, top, right, bottom = drawn_box((60, 50), (24, 20), cut.draws, cut.augmentation)
    out = ClipGeometry((bottom - top, right - left)).cut({"video": red, **planes}, (60, 50), cut)
    assert torch.equal(out["segmentation/front"], out["video"][:, 0].long() - 1)  # no resizing: pixel for pixel
    assert torch.equal(out["depth"][:, 0], out["video"][:, 0] / 2)
    small = ClipGeometry((24, 20)).cut({"video": red, **planes}, (60, 50), cut)["segmentation/front"]
    assert set(small.unique().tolist()) <= set((red[..., 0].astype(int) - 1).ravel().tolist())  # never averaged


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 1500), width=st.integers(8, 1500), out=st.tuples(st.integers(4, 300), st.integers(4, 300)),
    low=st.floats(0.05, 1.0), keys=st.lists(st.integers(0, 10**6), min_size=1, max_size=3),
)  # fmt: skip
def test_decoder_never_gives_fewer_pixels_than_a_crop_needs(height, width, out, low, keys):
    geometry, augmentation = ClipGeometry(out), Augmentation(crop_scale=(low, 1.0))
    cuts = [Cut(row, augmentation) for row in geometry.draws(torch.tensor(keys), augmentation)]
    size = geometry.decode_size((height, width), cuts, MANY)
    boxes = [drawn_box((height, width), out, cut.draws, augmentation) for cut in cuts]
    needs = max(max(out[0] / (b - t), out[1] / (r - l)) for l, t, r, b in boxes)  # noqa: E741
    assert (size is None) == (needs > 0.75)
    for box in boxes if size else ():
        left, top, right, bottom = scaled_box(box, (height, width), size)
        assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]
        assert right - left >= out[1] - 1 and bottom - top >= out[0] - 1  # whole pixels
        assert size[0] * size[1] <= (height * needs + 1) * (width * needs + 1)


def test_frames_are_decoded_whole_where_they_can_be_held():
    geometry = ClipGeometry((224, 224), 1.0)
    assert geometry.decode_size((720, 1280), [Cut()], 16) is None
    assert geometry.decode_size((2160, 3840), [Cut()], 16) == (224, 398)


def test_decoded_at_the_right_size_an_evaluation_is_not_resized_again():
    geometry = ClipGeometry((56, 56), 0.9)
    assert geometry.decode_size((60, 80), [Cut()], MANY) is None
    size = geometry.decode_size((361, 641), [Cut()], MANY)
    frames = noise(1, *size)
    out = geometry.cut({"video": frames}, (361, 641), Cut())["video"][0].permute(1, 2, 0).numpy()
    top, left = round((size[0] - 56) / 2), round((size[1] - 56) / 2)
    assert np.array_equal(out, frames[0, top : top + 56, left : left + 56])


def test_smaller_decoding_shows_the_same_crop():
    smooth = np.array(Image.fromarray(noise(1, 3, 4)[0]).resize((640, 480), Image.Resampling.BICUBIC))
    geometry, cut = ClipGeometry((24, 20)), training_cut(Augmentation(crop_scale=(0.4, 0.9)))
    height, width = geometry.decode_size((480, 640), [cut], MANY)
    small = np.array(Image.fromarray(smooth).resize((width, height), Image.Resampling.BILINEAR))
    one, other = (geometry.cut({"video": x[None]}, (480, 640), cut)["video"].int() for x in (smooth, small))
    assert (one - other).abs().float().mean() < 4  # the corners are whole pixels of the smaller one
    assert (one - one.roll(2, -1)).abs().float().mean() > 8


# --- on the device ---


def test_one_flip_for_all_frames_cameras_and_planes():
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (8, 3, 3, 6, 5), dtype=torch.uint8, generator=generator)
    batch = {
        "video": video,
        "video/side": 255 - video,
        "depth": video[:, :, :1].float(),
        "segmentation/side": video[:, :, 0].long(),
    }
    out = BatchAugment(Augmentation(crop_scale=None, hflip=0.5))(batch, sample_keys(0, 0, 0, torch.arange(8)))
    flipped = [not torch.equal(a, b) for a, b in zip(out["video"], video, strict=True)]
    assert 0 < sum(flipped) < 8
    for row, turned in enumerate(flipped):
        for key, x in batch.items():
            assert torch.equal(out[key][row], x[row].flip(-1) if turned else x[row])


@pytest.mark.parametrize("erase", [0.0, 1.0])
def test_colour_and_erasing_are_one_for_a_clip_and_its_cameras(erase):
    frame = torch.randint(0, 256, (6, 1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = {"video": frame.expand(-1, 4, -1, -1, -1), "video/side": frame.expand(-1, 4, -1, -1, -1)}
    augmentation = Augmentation(**PLAIN, brightness=0.5, hue=0.2, saturation=0.5, erase=erase)
    out = BatchAugment(augmentation)(batch, sample_keys(0, 0, 0, torch.arange(6)))
    assert torch.equal(out["video"], out["video/side"])
    assert all(torch.equal(out["video"][:, 0], out["video"][:, t]) for t in range(4))
    assert not torch.equal(out["video"], batch["video"])


def test_cuts_do_not_depend_on_global_randomness():
    frames, cut, geometry = noise(2, 40, 40), training_cut(Augmentation(rand_augment=9.0)), ClipGeometry((16, 16))
    first = geometry.cut({"video": frames}, (40, 40), cut)["video"]
    random.random(), torch.rand(1), np.random.random()
    assert torch.equal(first, geometry.cut({"video": frames}, (40, 40), cut)["video"])
