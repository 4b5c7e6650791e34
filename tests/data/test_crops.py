"""Crops against torchvision and against the obvious version."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from mmssl.data.crops import Geometry, centre, crop_resize, random_crop
from mmssl.data.decode import open_picture
from mmssl.data.transforms import Augmentation
from mmssl.keys import sample_keys, uniform

BICUBIC = Image.Resampling.BICUBIC


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def draws(n: int, attempts: int = 10) -> list[list[float]]:
    return uniform(sample_keys(0, 0, 0, torch.arange(n)), 4 * attempts).tolist()


@pytest.mark.parametrize(("height", "width"), [(300, 400), (500, 333), (224, 224), (100, 90)])
def test_centre_is_torchvisions_resize_and_centre_crop(height, width):
    theirs = v2.Compose([v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    expected = theirs(noise(height, width))
    assert np.array_equal(centre(noise(height, width), (224, 224), 0.875, BICUBIC), expected)


def test_whole_frame_is_resized_at_fraction_one():
    picture = noise(64, 64)
    assert np.array_equal(centre(picture, (32, 32), 1.0, BICUBIC), picture.resize((32, 32), BICUBIC))
    assert np.array_equal(centre(picture, (64, 64), 1.0, BICUBIC), picture)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 3000), width=st.integers(1, 3000), seed=st.integers(0, 1000),
    attempts=st.sampled_from([1, 10]), low=st.floats(0.01, 1.0),
)  # fmt: skip
def test_crop_lies_inside(height, width, seed, attempts, low):
    values = uniform(torch.tensor([seed]), 4 * attempts)[0].tolist()
    augmentation = Augmentation(crop_scale=(low, 1.0), crop_attempts=attempts)
    left, top, right, bottom = random_crop(height, width, values, augmentation)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_crop_areas_and_ratios_are_torchvisions():
    augmentation = Augmentation(crop_scale=(0.2, 1.0))
    boxes = [random_crop(480, 640, row, augmentation) for row in draws(4000)]
    rrc = v2.RandomResizedCrop(224, scale=(0.2, 1.0))
    torch.manual_seed(0)
    theirs = [rrc.make_params([torch.empty(3, 480, 640)]) for _ in range(4000)]
    ours = np.array([((r - l) * (b - t), (r - l) / (b - t), t, l) for l, t, r, b in boxes])  # noqa: E741
    other = np.array([(p["height"] * p["width"], p["width"] / p["height"], p["top"], p["left"]) for p in theirs])
    for column in range(4):
        for q in (0.1, 0.5, 0.9):
            a, b = np.quantile(ours[:, column], q), np.quantile(other[:, column], q)
            assert abs(a - b) <= 0.1 * max(abs(b), 30 if column > 1 else 0.1)


def test_single_draw_is_clamped_to_the_picture():
    augmentation = Augmentation(crop_scale=(1.0, 1.0), crop_attempts=1)
    for row in draws(50, 1):
        left, top, right, bottom = random_crop(100, 200, row, augmentation)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * row[1])
        assert right - left == min(200, round(math.sqrt(20000 * ratio)))
        assert bottom - top == min(100, round(math.sqrt(20000 / ratio))) == 100


def test_last_resort_is_the_central_crop_of_an_allowed_ratio():
    augmentation = Augmentation(crop_scale=(1.0, 1.0))
    assert random_crop(100, 1000, draws(1)[0], augmentation) == (433, 0, 566, 100)
    assert random_crop(1000, 100, draws(1)[0], augmentation) == (0, 433, 100, 566)


def test_jpeg_decoded_small_shows_the_same_crop():
    smooth = noise(20, 30).resize((1200, 800), BICUBIC)
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", quality=95)
    box = (100, 50, 1100, 650)
    small = crop_resize(open_picture(buffer.getvalue()), (800, 1200), box, (60, 100), BICUBIC)
    whole = smooth.crop(box).resize((100, 60), BICUBIC)
    assert small.size == (100, 60)
    assert np.abs(np.asarray(small, int) - np.asarray(whole, int)).mean() < 2


def test_turned_jpeg_is_cropped_upright():
    smooth = noise(20, 30).resize((600, 400), BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the file holds the picture a quarter turn counter-clockwise
    buffer = io.BytesIO()
    smooth.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=95, exif=exif)
    geometry, augmentation = Geometry((50, 50)), Augmentation()
    row = draws(1)[0]
    turned = geometry.apply({"image": open_picture(buffer.getvalue())}, row, augmentation)["image"]
    straight = geometry.apply({"image": smooth}, row, augmentation)["image"]
    assert np.abs(turned.astype(int) - straight).mean() < 3


def test_evaluation_geometry_draws_nothing():
    geometry = Geometry((32, 32))
    keys = torch.arange(3)
    assert geometry.draws(keys, None) is None
    assert geometry.draws(keys, Augmentation(crop_scale=None)) is None
    assert geometry.draws(None, Augmentation()) is None
    assert len(geometry.draws(keys, Augmentation())) == 3
