"""Mixup and CutMix of clips: all frames of a sample alike, against one frame at a time. Images: test_transforms.py."""

import pytest
import torch

from mmssl.data.mixing import Mix
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys

KEYS = sample_keys(0, 0, 0, torch.arange(12))


def clips(n: int = 12) -> dict:
    generator = torch.Generator().manual_seed(0)
    shape = (n, 4, 3, 8, 10)
    x = {key: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for key in ("video", "video/top")}
    return {**x, "label": torch.arange(n) % 3}


@pytest.mark.parametrize("options", [{}, {"mixup": 0.0}, {"cutmix": 0.0}, {"prob": 0.5}])
def test_every_frame_and_camera_is_mixed_as_a_single_picture_is(options):
    batch, mix = clips(), Mix(3, **options)
    out = mix(batch, KEYS)
    for key in ("video", "video/top"):
        assert out[key].dtype == torch.uint8 and not torch.equal(out[key], batch[key])
        for t in range(4):
            alone = mix({"image": batch[key][:, t], "label": batch["label"]}, KEYS)
            assert torch.equal(out[key][:, t], alone["image"]) and torch.equal(out["label"], alone["label"])


def test_depth_and_other_entries_stay():
    batch = {**clips(), "depth": torch.rand(12, 4, 1, 8, 10), "index": torch.arange(12)}
    out = Mix(3)(batch, KEYS)
    assert out["depth"] is batch["depth"] and out["index"] is batch["index"]


def test_wrong_input():
    with pytest.raises(MmsslError, match="images or clips of one size"):
        Mix(3)({**clips(), "image": torch.zeros(12, 3, 4, 4, dtype=torch.uint8)}, KEYS)
    with pytest.raises(MmsslError, match="only audio, label"):
        Mix(3)({"audio": torch.zeros(12, 1, 9), "label": torch.arange(12)}, KEYS)
