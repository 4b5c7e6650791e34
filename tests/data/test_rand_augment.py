"""RandAugment: the operations, against timm's where timm has the same one, and its draws."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as theirs

from mmssl.data import rand_augment as ours
from mmssl.data.transforms import Augmentation
from mmssl.keys import uniform

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)).resize((48, 40))
FILL = {"resample": Image.Resampling.BICUBIC, "fillcolor": ours._FILL}
PAIRS = [
    ("_auto_contrast", lambda p, m, s: theirs.auto_contrast(p)),
    ("_equalize", lambda p, m, s: theirs.equalize(p)),
    ("_invert", lambda p, m, s: theirs.invert(p)),
    ("_rotate", lambda p, m, s: theirs.rotate(p, s * 30 * m, **FILL)),
    ("_posterize", lambda p, m, s: theirs.posterize(p, 4 - int(m * 4))),
    ("_solarize", lambda p, m, s: theirs.solarize(p, 256 - min(256, int(m * 256)))),
    ("_solarize_add", lambda p, m, s: theirs.solarize_add(p, min(128, int(m * 110)))),
    ("_shear_x", lambda p, m, s: theirs.shear_x(p, s * 0.3 * m, **FILL)),
    ("_shear_y", lambda p, m, s: theirs.shear_y(p, s * 0.3 * m, **FILL)),
    ("_translate_x", lambda p, m, s: theirs.translate_x_rel(p, s * 0.45 * m, **FILL)),
    ("_translate_y", lambda p, m, s: theirs.translate_y_rel(p, s * 0.45 * m, **FILL)),
]


@pytest.mark.parametrize(("name", "expected"), PAIRS, ids=[name for name, _ in PAIRS])
@pytest.mark.parametrize("level", [0.0, 0.45, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_operation_is_timms(name, expected, level, sign):
    assert np.array_equal(getattr(ours, name)(PICTURE, level, sign), expected(PICTURE, level, sign))


@pytest.mark.parametrize("place", range(7, 11))
def test_enhancers_grow_with_the_level(place):
    operation = ours.OPERATIONS[place]
    change = [
        np.abs(np.asarray(operation(PICTURE, m, 1), int) - np.asarray(PICTURE, int)).mean() for m in (0.0, 0.3, 0.9)
    ]
    assert change[0] == 0 < change[1] < change[2]


def drawn(seed: int, augmentation: Augmentation) -> np.ndarray:
    draws = uniform(torch.tensor([seed]), ours.N_DRAWS * augmentation.rand_augment_ops)[0].tolist()
    return np.asarray(ours.rand_augment(PICTURE, draws, augmentation))


def test_draws_differ_between_keys_and_repeat_for_one():
    augmentation = Augmentation(rand_augment=9.0)
    results = [drawn(seed, augmentation) for seed in range(200)]
    assert all(np.array_equal(results[seed], drawn(seed, augmentation)) for seed in (0, 77))
    untouched = sum(np.array_equal(result, PICTURE) for result in results)
    assert 25 < untouched < 80  # two operations of probability 1/2 each leave a quarter alone
    assert len({result.tobytes() for result in results}) > 100


def test_top_level_posterize_is_black():
    assert np.asarray(ours._posterize(PICTURE, 1.0, 1)).max() == 0
