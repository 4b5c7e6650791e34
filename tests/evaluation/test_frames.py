"""Image encoders on clips, pooling and pixels of clips."""

import dataclasses

import pytest
import torch

from mmssl.errors import MmsslError
from mmssl.evaluation.baselines import PixelEncoder, random_like
from mmssl.evaluation.features import Splits, encoded, extract, pool
from mmssl.evaluation.finetune import FinetuneProbeConfig, finetune_probe
from mmssl.evaluation.finetune_model import HeadConfig, build_model
from mmssl.evaluation.frames import FrameEncoder, check_frames, fit_to, frames_of
from mmssl.evaluation.linear import LinearConfig, linear


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 5, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("at_once", [1, 4, 256])
def test_every_frame_is_encoded_by_itself(tiny_encoder, clips, at_once):
    found = FrameEncoder(tiny_encoder, at_once)({"video": clips})
    for b in range(3):
        alone = [tiny_encoder({"image": clips[b, t][None]}) for t in range(5)]
        for t in range(5):
            torch.testing.assert_close(found.map()[b, t], alone[t].map()[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.cls[b], torch.stack([f.cls[0] for f in alone]).mean(0), atol=1e-5, rtol=1e-5)
    assert found.grid == {"video": (5, 4, 4)} and found.tokens.shape == (3, 80, 32) and bool(found.valid.all())
    torch.testing.assert_close(found.pooled("mean"), found.map().mean((1, 2, 3)), atol=1e-5, rtol=1e-5)


def test_one_camera_and_wrong_batches(tiny_encoder, tiny_video_encoder, clips):
    frames = FrameEncoder(tiny_encoder)
    assert frames.modalities == ("video",) and frames.embed_dim == 32
    with pytest.raises(MmsslError, match=r"the batch has image \(1, 3, 16, 16\)"):
        frames({"image": clips[0, :1]})
    with pytest.raises(MmsslError, match="no masks"):
        frames({"video": clips}, {"video": torch.zeros(3, 80, dtype=torch.bool)})
    with pytest.raises(MmsslError, match="reads video"):
        FrameEncoder(tiny_video_encoder)
    with pytest.raises(MmsslError, match="floats must lie in"):
        frames.check({"video": clips.float()})
    config = tiny_encoder.config
    top = type(tiny_encoder)(dataclasses.replace(config, tokenizers={"image/top": config.tokenizers["image"]}))
    assert FrameEncoder(top)({"video/top": clips}).grid == {"video/top": (5, 4, 4)}


def test_an_encoder_meets_what_the_data_give(tiny_encoder, tiny_video_encoder, clip_classification, classification):
    train = clip_classification[0]
    assert isinstance(fit_to(tiny_encoder, train), FrameEncoder)
    assert fit_to(tiny_encoder, classification[0]) is tiny_encoder
    assert fit_to(tiny_video_encoder, train) is tiny_video_encoder and frames_of(tiny_video_encoder) == 4
    assert frames_of(tiny_encoder) is None and frames_of(fit_to(tiny_encoder, train)) is None
    with pytest.raises(MmsslError, match=r"reads clips \(video\).*gives single images"):
        fit_to(tiny_video_encoder, classification[0])
    with pytest.raises(MmsslError, match=r"clips of 16 frames and clip.frames is 4"):
        check_frames(16, train.clip.frames)


def test_random_frames_are_of_random_encoders(tiny_encoder):
    one, other = FrameEncoder(tiny_encoder, 7), random_like(FrameEncoder(tiny_encoder, 7), 1)
    assert isinstance(other, FrameEncoder) and other.at_once == 7
    assert torch.equal(other.encoder.norm.weight, random_like(tiny_encoder, 1).norm.weight)
    qkv = lambda e: e.encoder.blocks[0].attn.qkv.weight  # noqa: E731
    assert torch.equal(qkv(other), random_like(tiny_encoder, 1).blocks[0].attn.qkv.weight)
    assert not torch.equal(qkv(one), qkv(other))


@pytest.mark.parametrize("pooling, width", [("mean", 32), ("max", 32), ("grid2", 128), ("grid4", 512), ("flat", 1024)])
def test_poolings_of_clips(tiny_video_encoder, clips, pooling, width):
    features = tiny_video_encoder({"video": clips[:, :4]})
    found, maps = pool(features, pooling), features.map()  # (3, 2, 4, 4, 32)
    assert found.shape == (3, width)
    expected = {
        "mean": lambda: maps.mean((1, 2, 3)),
        "max": lambda: maps.amax((1, 2, 3)),
        "flat": lambda: maps.flatten(1),
        "grid4": lambda: maps.mean(1).flatten(1),
        "grid2": lambda: torch.stack(
            [maps[:, :, r : r + 2, c : c + 2].mean((1, 2, 3)) for r in (0, 2) for c in (0, 2)], 1
        ).flatten(1),
    }[pooling]()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_batch_size_counts_frames(tiny_video_encoder, clip_classification):
    train = clip_classification[0]
    sizes = [len(batch["index"]) for _, batch in encoded(tiny_video_encoder, train, 40)]
    assert sizes == [10] * 6
    small, large = (extract(tiny_video_encoder, train, batch_size=b).features for b in (3, 999))
    torch.testing.assert_close(small, large, atol=1e-5, rtol=1e-5)


def test_pixels_of_clips_keep_every_frame(clip_classification):
    clips = clip_classification[0].clips
    found = PixelEncoder("video", patch_size=8)({"video": clips})
    assert found.grid == {"video": (2, 2, 2)} and found.tokens.shape == (60, 8, 2 * 3 * 64)
    torch.testing.assert_close(found.tokens.flatten(1).sort(1).values, (clips.float() / 255).flatten(1).sort(1).values)
    first = found.tokens[:, 0].unflatten(1, (2, 3, 8, 8))  # two frames' corner
    torch.testing.assert_close(first, clips[:, :2, :, :8, :8].float() / 255)
    large = PixelEncoder("video", max_side=32)({"video": torch.zeros(1, 3, 3, 128, 64, dtype=torch.uint8)})
    assert large.grid == {"video": (3, 2, 1)} and large.tokens.shape == (1, 6, 192)  # an odd number of frames: one each


def test_pixels_and_clips_are_probed(tiny_video_encoder, clip_classification):
    """The classes differ in how a colour changes, which is in the pixels for a linear probe to find."""
    found = linear(PixelEncoder("video"), Splits(*clip_classification), LinearConfig(steps=200, train_batch=60))
    assert found["accuracy"] > 0.9


def test_fine_tuning_by_frame(tiny_encoder, clip_classification):
    train = clip_classification[0]
    before = {k: v.clone() for k, v in tiny_encoder.state_dict().items()}
    model = build_model(FrameEncoder(tiny_encoder), train, HeadConfig(std=0.5), seed=0).eval()
    assert model.encoder.config.tokenizers == tiny_encoder.config.tokenizers
    model.check({"video": train.clips[:1]})
    batch = {"video": train.clips[:2], "label": train.values[:2]}
    frames = [model.encoder({"image": train.clips[:2, t]}).tokens.mean(1) for t in range(4)]
    torch.testing.assert_close(model.output(batch), model.head(torch.stack(frames).mean(0)), atol=1e-5, rtol=1e-5)
    model(batch)["loss"][0].backward()
    assert model.encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    short = FinetuneProbeConfig(steps=2, train_batch=4)
    assert 0 <= finetune_probe(FrameEncoder(tiny_encoder), Splits(*clip_classification), short)["accuracy"] <= 1
    assert all(torch.equal(v, before[k]) for k, v in tiny_encoder.state_dict().items())
