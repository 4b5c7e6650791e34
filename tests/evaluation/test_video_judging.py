"""Video and image encoders judged on clips from disk: which clips are read, probes, embeddings, fine-tuning."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import mmssl
from mmssl.config import to_dict
from mmssl.data.clips import ClipSampling
from mmssl.data.loading import DataConfig
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError
from mmssl.evaluation.embed import embed
from mmssl.evaluation.finetune import FinetuneConfig, finetune
from mmssl.evaluation.finetune_model import HeadConfig, build_model
from mmssl.evaluation.fitting import linear_probe_head
from mmssl.evaluation.probe import probe
from mmssl.evaluation.sources import DataChoice, choose_clip, own_clip
from mmssl.methods.base import create_method
from mmssl.nn.heads import AttentiveHead
from mmssl.training.checkpoint import RunFolder
from mmssl.training.loop import LoopConfig
from mmssl.training.optim import OptimConfig, layer_scales, parameter_groups

TINY = {"size": "custom", "dim": 24, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8, "mask_ratio": 0.5}
TINY |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Class folders of 6 folders of 12 frames each: warm and cold noise."""
    root, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for name, channel in (("cold", 2), ("warm", 0)):
        for k in range(6):
            folder = root / name / f"{k}"
            folder.mkdir(parents=True)
            for t in range(12):
                pixels = rng.integers(0, 120, (18, 26, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / f"{t:02d}.png")
    return root


@pytest.fixture
def make_run(tmp_path, videos):
    """`make_run(method, clip, **settings)` -> a run folder as pretraining leaves it."""

    def make(name, clip, **settings):
        torch.manual_seed(0)
        method, run = create_method(name, **TINY, **settings).eval(), RunFolder(tmp_path / name)
        run.start()
        data = to_dict(DataConfig(source=(str(videos),), image_size=(16, 16), clip=clip, target="none"))
        run.config.write_text(yaml.safe_dump({"method": to_dict(method.config), "data": data}))
        run.save(1, method, {"step": 1}, keep=1)
        method.encoder.save_pretrained(run.export)
        return run.path

    return make


@pytest.fixture
def videomae(make_run):
    return make_run("videomae", ClipSampling(frames=4, stride=2), frames=4)


@pytest.fixture
def siammae(make_run):
    return make_run("siammae", ClipSampling(how="pair", frames=2, gap=(2, 6)))


def test_which_clips_judge_an_encoder(videomae, siammae):
    video, image = mmssl.load(videomae), mmssl.load(siammae)
    assert choose_clip(videomae, video) == ClipSampling(frames=4, stride=2) == own_clip(videomae)
    assert choose_clip(videomae / "export", video) == ClipSampling(frames=4, stride=4)  # it says nothing of clips
    assert choose_clip(videomae, video, ("how=segments", "test_clips=3")) == ClipSampling(
        "segments", frames=4, stride=2, test_clips=3
    )
    assert choose_clip(siammae, image) is None and own_clip(siammae).how == "pair"
    assert choose_clip(siammae, image, ("frames=3", "stride=1")) == ClipSampling(frames=3, stride=1)
    assert choose_clip(videomae, image) == own_clip(videomae)  # a run that used clips
    assert choose_clip(videomae, image, ("none",)) is None


@pytest.mark.parametrize(
    "options, words",
    [
        (("frames=8",), "clips of 4 frames and clip.frames is 8"),
        (("none",), "leaves it nothing to read"),
        (("frame=4",), "frames"),
        (("dense",), "SETTING=VALUE"),
        (("stride=fast",), "stride"),
        (("how=pair",), "a pair has 2 frames"),
    ],
)
def test_wrong_clips_are_said(videomae, options, words):
    with pytest.raises(MmsslError, match=words):
        choose_clip(videomae, mmssl.load(videomae), options)


def test_cameras_of_a_run_are_read_one_at_a_time_unless_the_encoder_reads_several(tmp_path, siammae):
    data = {"source": ["somewhere"], "cameras": ["front", "side"], "clip": {"how": "pair", "frames": 2}}
    (siammae / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    encoder = mmssl.load(siammae / "export")
    choice = DataChoice.for_encoder(encoder, siammae, (), target="task")
    config = choice._own()
    assert (config.camera, config.cameras, config.target) == ("front", (), "task")
    assert dataclasses.replace(choice, camera="side")._own().camera == "side"
    assert dataclasses.replace(choice, several=True)._own().cameras == ("front", "side")


def test_a_video_run_is_judged_on_clips_and_on_views(videomae, capsys):
    rows = probe(str(videomae), target="class", evaluators=("ridge", "knn:grid2"), options=("knn.k=[1]",), device="cpu")
    assert {r.evaluator for r in rows} == {"ridge", "knn grid2"}
    assert {r.encoder: r.value for r in rows if r.evaluator == "ridge"}["pixels"] == 1.0
    held = json.loads((videomae / "scores.json").read_text())
    assert held["reconstruction"]["model"] > 0 and "gaussian" in held["reconstruction"]
    shown = np.load(videomae / "figures" / "reconstruction.npz")
    assert shown["interpolated"].shape == (2, 4, 16, 16, 3)  # the two held-out videos
    features = np.load(videomae / "figures" / "features.npz")
    assert features["image"].shape == (4, 16, 16, 3) and features["tokens"].shape == (4, 2, 2, 24)
    views = ("test_clips=2", "test_crops=3")
    rows = probe(
        str(videomae), target="class", evaluators=("logistic",), clip=views, device="cpu", reconstruction=False
    )
    assert {r.evaluator for r in rows} == {"logistic, 6 views"} and "logistic, 6 views" in capsys.readouterr().out


def test_a_run_of_pairs_is_judged_frame_by_frame_on_videos_and_reconstructs_pairs(siammae):
    options = {"target": "class", "evaluators": ("ridge",), "device": "cpu", "quiet": True}
    rows = probe(str(siammae), clip=("frames=3", "stride=2"), **options)
    assert {r.encoder: r.value for r in rows}["pixels"] == 1.0
    held = json.loads((siammae / "scores.json").read_text())
    assert "copy_past" in held["reconstruction"]
    assert np.load(siammae / "figures" / "reconstruction.npz")["original"].shape == (2, 2, 16, 16, 3)
    assert np.load(siammae / "figures" / "features.npz")["tokens"].shape[1:] == (2, 2, 24)


def test_an_image_encoder_takes_single_pictures_of_the_same_folder(siammae, videos):
    """Without a clip sampling a folder of pictures holds images; only videos must be clips."""
    rows = probe(
        str(siammae), target="class", evaluators=("ridge",), device="cpu", quiet=True, reconstruction=False, limit=30
    )
    assert {r.encoder: r.value for r in rows}["pixels"] == 1.0


def test_embedding_clips(videomae, siammae, videos, tmp_path):
    out = embed(str(videomae), data=(str(videos),), out=tmp_path / "v.safetensors", device="cpu")
    assert load_file(out)["features"].shape == (12, 24)
    names = [row["name"] for row in json.loads(out.with_suffix(".json").read_text())["rows"]]
    assert names[0].endswith("cold/0") and len(names) == 12
    out = embed(
        str(siammae), data=(str(videos),), out=tmp_path / "s.safetensors", clip=("frames=3", "stride=2"), pooling="flat"
    )
    assert load_file(out)["features"].shape == (12, 3 * 4 * 24)


def recipe(videos, clip, **head) -> FinetuneConfig:
    data = DataConfig(
        source=(str(videos),), clip=clip, augmentation=Augmentation(crop_scale=(0.8, 1.0), rand_augment=7)
    )
    loop = LoopConfig(steps=3, batch_size=4, repeats=2, log_every=2, checkpoint_every=3, device="cpu")
    optim = OptimConfig(lr=1e-3, layer_decay=0.75)
    return FinetuneConfig(data, loop, optim, HeadConfig(**head))


def test_fine_tuning_on_clips_as_published(videomae, videos, tmp_path, capsys):
    clip = ClipSampling(frames=4, stride=2, test_clips=2, test_crops=3)
    head = {"train_positions": False, "dropout": 0.5, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}
    out = finetune(recipe(videos, clip, **head), run=tmp_path / "tuned", init=str(videomae))
    row = json.loads((out / "scores.json").read_text())["rows"][0]
    assert (row["evaluator"], row["target"], row["metric"]) == ("finetune, 6 views", "class", "accuracy")
    before, after = mmssl.load(videomae).state_dict(), mmssl.load(out).state_dict()
    assert torch.equal(before["tokenizers.video.pos_embed"], after["tokenizers.video.pos_embed"])
    assert not torch.equal(before["blocks.0.attn.qkv.weight"], after["blocks.0.attn.qkv.weight"])
    assert "clips/s" in capsys.readouterr().err


def test_clips_follow_the_encoder_or_the_encoder_the_recipe(videomae, videos, tmp_path, capsys):
    out = finetune(recipe(videos, None), run=tmp_path / "own", init=str(videomae))
    clip = yaml.safe_load((out / "config.yaml").read_text())["data"]["clip"]
    assert (clip["frames"], clip["stride"]) == (4, 4)
    out = finetune(recipe(videos, ClipSampling(frames=6, stride=1)), run=tmp_path / "longer", init=str(videomae))
    assert "clips of 4 frames; their positions are changed to the recipe's 6" in capsys.readouterr().err
    assert mmssl.load(out).grids == {"video": (3, 2, 2)}
    with pytest.raises(MmsslError, match="tubelet 2 does not divide the 5 frames"):
        finetune(recipe(videos, ClipSampling(frames=5)), run=tmp_path / "odd", init=str(videomae))


def test_an_image_encoder_is_tuned_on_clips_and_keeps_its_shape(siammae, videos, tmp_path):
    out = finetune(recipe(videos, ClipSampling(frames=3, stride=2)), run=tmp_path / "tuned", init=str(siammae))
    assert mmssl.load(out).modalities == ("image",)
    assert choose_clip(out, mmssl.load(out)) == ClipSampling(frames=3, stride=2)
    rows = probe(str(out), evaluators=("ridge",), device="cpu", quiet=True)
    assert len(rows) == 3


@pytest.mark.parametrize("pooling", ["mean", "attentive"])
def test_frozen_it_is_a_linear_or_attentive_probe_of_clips(videomae, videos, tmp_path, pooling):
    config = dataclasses.replace(recipe(videos, None, freeze=True, pooling=pooling), optim=OptimConfig(lr=1e-2))
    out = finetune(config, run=tmp_path / pooling, init=str(videomae))
    before, after = mmssl.load(videomae).state_dict(), mmssl.load(out).state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    head = load_file(out / "export" / "head.safetensors")
    expected = AttentiveHead(24, 2, heads=2) if pooling == "attentive" else linear_probe_head(24, 2, "single_label")
    assert {k.removeprefix("head.") for k in head if k.startswith("head.")} == set(expected.state_dict())


@pytest.mark.parametrize("positions, tables", [("sinusoid", 1), ("separable", 2), ("sincos", 1)])
def test_layers_and_decay_of_video_encoders(positions, tables, tiny_video_encoder, clip_classification):
    config = dataclasses.replace(tiny_video_encoder.config, positions=positions, cls_token=True)
    encoder = type(tiny_video_encoder)(config)
    model = build_model(encoder, clip_classification[0], HeadConfig(), seed=0)
    scales = layer_scales(model, 0.5)
    named = [n for n in scales if "pos_embed" in n]
    assert len(named) == tables and all(scales[n] == 0.125 for n in [*named, "encoder.tokenizers.video.proj.weight"])
    assert scales["encoder.blocks.0.norm1.weight"] == 0.25 and scales["head.fc.weight"] == 1.0
    groups = parameter_groups(model, OptimConfig(weight_decay=0.1))
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert {decay[n] for n in [*named, "encoder.cls_token"]} == {0.0} and decay["encoder.tokenizers.video.proj.weight"]
    fixed = build_model(encoder, clip_classification[0], HeadConfig(train_positions=False), seed=0)
    assert not any(p.requires_grad for n, p in fixed.named_parameters() if "pos_embed" in n)


def test_dropout_stands_before_the_last_layer_alone(tiny_video_encoder, clip_classification):
    train = clip_classification[0]
    model = build_model(tiny_video_encoder, train, HeadConfig(dropout=0.5, drop_path=0.0, std=1.0), seed=0)
    batch = {"video": train.clips[:4]}
    pooled = model.head.norm(model.encoder(batch).pooled("mean"))
    torch.testing.assert_close(model.eval().output(batch), model.head.fc(pooled))
    torch.manual_seed(3)
    kept = torch.nn.functional.dropout(pooled, 0.5)
    torch.manual_seed(3)
    torch.testing.assert_close(model.train().output(batch), model.head.fc(kept))
    with pytest.raises(MmsslError, match="dropout must lie in"):
        HeadConfig(dropout=1.0)


def test_class_folders_of_pictures_are_videos_without_classes_to_a_video_encoder(videomae, picture_folder):
    with pytest.raises(MmsslError, match="has no labels, so nothing can be probed"):
        probe(str(videomae), data=(str(picture_folder),), evaluators=("ridge",), quiet=True, device="cpu")
