"""An encoder of several modalities shown some of them: what the data give, probes, embeddings, fine-tuning."""

import dataclasses
import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

import mmssl
from mmssl.data.clips import ClipSampling
from mmssl.data.loading import DataConfig, open_dataset
from mmssl.data.text import TextEncoding
from mmssl.data.transforms import Augmentation
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.evaluation.attentive import AttentiveConfig, TokenProbe
from mmssl.evaluation.baselines import PixelEncoder, SeveralPixels, random_like, raw_inputs
from mmssl.evaluation.embed import embed
from mmssl.evaluation.features import extract
from mmssl.evaluation.finetune import FinetuneConfig, finetune
from mmssl.evaluation.finetune_model import HeadConfig, build_model
from mmssl.evaluation.frames import FrameEncoder, fit_to
from mmssl.evaluation.modalities import ChosenEncoder, choose, fields_for, given, in_order_of, only, shared
from mmssl.evaluation.probe import probe
from mmssl.evaluation.sources import DataChoice
from mmssl.evaluation.views import views_at_test
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.text import TextTokenizerConfig
from mmssl.training.loop import LoopConfig
from mmssl.training.optim import OptimConfig


def encoder_of(**settings) -> Encoder:
    torch.manual_seed(0)
    tokenizers = {"image": ImageTokenizerConfig(image_size=16, patch_size=4)}
    if settings.pop("text", False):
        tokenizers["text"] = TextTokenizerConfig(length=8)
    return Encoder(EncoderConfig(tokenizers=tokenizers, dim=32, depth=1, heads=2, **settings)).eval()


@pytest.fixture
def captioned(tmp_path):
    """Six pictures with captions beside them."""
    from PIL import Image

    for k in range(6):
        Image.new("RGB", (16, 16), (40 * k, 0, 90)).save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text("so red" if k > 2 else "blue")
    return tmp_path


def opener(source, **fixed):
    return lambda **fields: open_dataset(source, image_size=16, **{**fixed, **fields})


def test_by_default_an_encoder_is_shown_what_the_data_have_too(scenes, picture_folder, captioned, joint_run):
    encoder = mmssl.load(joint_run)
    assert shared(encoder, opener(scenes)) == ("image", "depth", "segmentation")
    assert shared(encoder, opener(picture_folder)) == ("image",)
    texts = encoder_of(text=True)
    assert shared(texts, opener(captioned)) == ("image", "text") and shared(texts, opener(scenes)) == ("image",)
    views = encoder_of(views=("front", "side", "top"), type_embedding=True)
    assert shared(views, opener(scenes)) == ("image/front", "image/side")
    assert shared(views, opener(scenes, camera="side")) == ("image",) == shared(views, opener(picture_folder))


def test_the_data_are_opened_as_the_modalities_need(scenes, captioned, joint_run):
    encoder = mmssl.load(joint_run)
    assert choose(encoder, opener(scenes), ("depth", "image")) == (
        ("image", "depth"), {"extras": ("depth",), "text": None},
    )  # fmt: skip
    assert choose(encoder, opener(scenes), ("image",), also=("depth",)).fields["extras"] == ("depth",)
    assert fields_for(encoder_of(text=True), ["text"])["text"] == TextEncoding(length=8)
    views = encoder_of(views=("front", "side"))
    names, fields = choose(views, opener(scenes), ("image/side",))
    assert fields["cameras"] == ("side",) and given(opener(scenes)(**fields)) == names == ("image/side",)


@pytest.mark.parametrize(
    "wanted, words",
    [
        (
            ("dept",),
            "unknown modality of this encoder 'dept': did you mean 'depth'[?] Valid: depth, image, segmentation",
        ),
        (("image", "text"), "unknown modality of this encoder 'text'"),
    ],
)
def test_modalities_that_the_encoder_lacks(joint_run, scenes, wanted, words):
    with pytest.raises(MmsslError, match=words):
        choose(mmssl.load(joint_run), opener(scenes), wanted)


def test_modalities_that_the_data_lack(joint_run, scenes, picture_folder):
    encoder = mmssl.load(joint_run)
    with pytest.raises(MmsslError, match=r"unknown modality of the data 'pictures0?' 'depth': Valid: image"):
        choose(encoder, opener(picture_folder), ("image", "depth"))
    with pytest.raises(MmsslError, match="unknown camera 'top'"):
        choose(encoder_of(views=("top",)), opener(scenes), ("image/top",))
    with pytest.raises(MmsslError, match="not both"):
        in_order_of(encoder_of(views=("front",)), ("image", "image/front"))
    only_text = Encoder(EncoderConfig(tokenizers={"text": TextTokenizerConfig(length=8)}, dim=32, depth=1, heads=2))
    with pytest.raises(MmsslError, match=r"reads text and the data .* give image: nothing of it"):
        shared(only_text, opener(picture_folder))


def test_a_chosen_encoder_sees_nothing_else(scenes, joint_run):
    encoder = mmssl.load(joint_run)
    batch = opener(scenes, extras=("depth", "segmentation"))().fetch(torch.arange(3))
    batch["present/depth"] = torch.tensor([True, False, True])
    chosen = ChosenEncoder(encoder, ("image", "depth"))
    assert set(only(batch, chosen.modalities)) == {"image", "depth", "present/depth"}
    other = {**batch, "segmentation": batch["segmentation"] * 0}
    assert torch.equal(chosen(batch).tokens, chosen(other).tokens)
    assert not torch.allclose(encoder(batch).pooled(), encoder(other).pooled())
    assert torch.equal(chosen(batch).tokens, encoder({k: batch[k] for k in ("image", "depth", "present/depth")}).tokens)
    pooled = chosen(batch).pooled()
    assert torch.allclose(pooled[1], chosen(batch).of("image")[0][1].mean(0), atol=1e-6)  # it has no depth
    assert chosen.grids == {"image": (4, 4), "depth": (4, 4)} and chosen.embed_dim == 32


def test_the_random_encoder_is_shown_the_same(joint_run):
    chosen = ChosenEncoder(mmssl.load(joint_run), ("depth",), asked=False)
    other = random_like(chosen, 3)
    assert other.modalities == ("depth",) and other.asked is False
    own, fresh, again = (
        e.blocks[0].attn.qkv.weight for e in (chosen.encoder, other.encoder, random_like(chosen.encoder, 3))
    )
    assert torch.equal(fresh, again) and not torch.equal(fresh, own)


def test_pixels_of_the_pictures_among_them(joint_run, scenes):
    encoder = mmssl.load(joint_run)
    assert isinstance(raw_inputs(ChosenEncoder(encoder, ("image",)), "image")["pixels"], PixelEncoder)
    assert raw_inputs(ChosenEncoder(encoder_of(text=True), ("text",)), "image") == {}
    pixels = raw_inputs(ChosenEncoder(encoder, ("image", "depth", "segmentation")), "image")["pixels"]
    assert isinstance(pixels, SeveralPixels)
    batch = opener(scenes, extras=("depth", "segmentation"))().fetch(torch.arange(3))
    found = pixels(batch)
    assert found.grid == {"image": (2, 2), "depth": (2, 2), "segmentation": (2, 2)}
    depth = found.of("depth")[0]  # (3, 4, width): 8 x 8 values, then zeros
    assert torch.equal(depth[1, 2, :64], batch["depth"][1, 0, 8:, :8].flatten()) and not depth[..., 64:].any()
    classes = found.of("segmentation")[0][..., :24].unflatten(-1, (6, 4)).mean((1, 3))  # (3, 6)
    assert torch.allclose(classes[:, 5], (batch["segmentation"] == 5).float().mean((1, 2)))
    with pytest.raises(MmsslError, match="none of image, depth, segmentation"):
        pixels({"text": batch["index"]})


def test_a_run_is_probed_on_some_modalities_and_tables_name_them(joint_run, capsys):
    settings = {"target": "state", "evaluators": ("ridge:flat",), "reconstruction": False, "device": "cpu"}
    by = {}
    for names in (("depth",), ("image", "depth"), ()):
        for row in probe(str(joint_run), modalities=names, **settings):
            by[row.evaluator, row.encoder] = row.value
    labels = {label for label, _ in by}
    every = "ridge flat, image+depth+segmentation"
    assert labels == {"ridge flat, depth", "ridge flat, image+depth", every}
    assert by["ridge flat, image+depth", "pixels"] > 0.5 and len(set(by.values())) > 7
    assert every in capsys.readouterr().out
    held = json.loads((joint_run / "scores.json").read_text())
    assert labels == {row["evaluator"] for row in held["rows"]}
    with pytest.raises(MmsslError, match="unknown modality of this encoder 'txt'"):
        probe(str(joint_run), modalities=("txt",), **settings)


def test_attention_over_the_tokens_of_several_modalities(joint_run):
    options = ("attentive.steps=2", "knn.k=[1]")
    settings = {"target": "state", "evaluators": ("attentive", "knn:cls"), "options": options, "reconstruction": False}
    rows = probe(str(joint_run), modalities=("image", "segmentation"), quiet=True, limit=20, **settings)
    assert {row.evaluator for row in rows} == {"attentive, image+segmentation", "knn cls, image+segmentation"}


def test_embedding_some_modalities(joint_run, scenes, tmp_path):
    wanted = {"data": (str(scenes),), "split": "test", "device": "cpu"}
    out = embed(str(joint_run), modalities=("depth",), out=tmp_path / "d.safetensors", **wanted)
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["modalities"] == ["depth"]
    dataset = open_dataset(scenes, split="test", extras=("depth",))
    expected = mmssl.load(joint_run)({"depth": dataset.fetch(torch.arange(len(dataset)))["depth"]}).pooled()
    torch.testing.assert_close(load_file(out)["features"], expected.detach(), atol=1e-5, rtol=1e-5)
    every = embed(str(joint_run), out=tmp_path / "e.safetensors", **wanted)
    assert json.loads(every.with_suffix(".json").read_text())["modalities"] == ["image", "depth", "segmentation"]


def test_texts_are_encoded_as_the_encoder_reads_them(captioned):
    encoder = encoder_of(text=True)
    encoder.save_pretrained(captioned / "weights")
    choice = DataChoice.for_encoder(encoder, captioned / "weights", (str(captioned),))
    assert choice.modalities == ("image", "text") and choice.part("all")[0]["text"].shape == (8,)
    features = extract(choice.reader(encoder), choice.part("all"))
    assert torch.allclose(features.features[0], _by_hand(encoder, choice.part("all")), atol=1e-5)


def test_padding_is_not_attended_to(captioned):
    encoder, dataset = encoder_of(text=True), open_dataset(captioned, split="all", text=TextEncoding(length=8))
    tokens = extract(encoder, dataset, "tokens").features  # (6, 16 + 8, 32); the texts have 4 and 6 tokens
    assert not tokens[:3, 20:].any() and tokens[:3, :20].all(-1).all() and tokens[3:, :22].any(-1).all()
    torch.manual_seed(0)
    probe_of = TokenProbe(24, 32, 3, AttentiveConfig(), positions=False)
    torch.testing.assert_close(probe_of(tokens)[:3], probe_of(tokens[:3, :20]), atol=1e-5, rtol=1e-5)
    assert probe_of(torch.zeros(2, 24, 32)).isfinite().all()


def _by_hand(encoder: Encoder, dataset) -> torch.Tensor:
    """Mean over the tokens of the first sample that are real, alone in their batch and without padding."""
    batch = dataset.fetch(torch.tensor([0]))
    n = int(batch["text_mask"].sum())
    short = {"image": batch["image"], "text": batch["text"][:, :n], "text_mask": batch["text_mask"][:, :n]}
    return encoder(short).tokens[0].mean(0).detach()


def test_of_clips_the_frames_are_read_by_one_modality(joint_run, scenes):
    encoder = mmssl.load(joint_run)
    assert shared(encoder, opener(scenes, clip=ClipSampling(frames=2, stride=1))) == ("image",)
    choice = DataChoice.for_encoder(encoder, joint_run, (str(scenes),), ("frames=2", "stride=1"), target="state")
    reader = fit_to(choice.reader(encoder), choice.part("train"))
    assert isinstance(reader, FrameEncoder) and reader.modalities == ("video",)
    model = build_model(reader, choice.part("train"), HeadConfig(), seed=0)
    batch = choice.part("train").fetch(torch.arange(2))
    model.check(batch)
    frames = [model.encoder({"image": batch["video"][:, t]}).pooled() for t in (0, 1)]
    expected = model.head(torch.stack(frames).mean(0))
    torch.testing.assert_close(model.eval().output(batch), expected, atol=1e-5, rtol=1e-5)


def recipe(scenes, **settings) -> FinetuneConfig:
    data = DataConfig(source=(str(scenes),), target="state", augmentation=Augmentation(crop_scale=None, hflip=0.0))
    loop = LoopConfig(steps=2, batch_size=8, device="cpu")
    return FinetuneConfig(data, loop, OptimConfig(lr=1e-3), **settings)


@pytest.mark.parametrize("names", [("depth", "image"), ()])
def test_fine_tuning_on_some_modalities(joint_run, scenes, tmp_path, names):
    out = finetune(recipe(scenes, modalities=names), run=tmp_path / "tuned", init=str(joint_run))
    config = yaml.safe_load((out / "config.yaml").read_text())
    shown = ["image", "depth"] if names else ["image", "depth", "segmentation"]
    assert config["modalities"] == shown and config["data"]["extras"] == shown[1:]
    row = json.loads((out / "scores.json").read_text())["rows"][0]
    assert row["evaluator"] == f"finetune, {'+'.join(shown)}"
    before, after = mmssl.load(joint_run).state_dict(), mmssl.load(out).state_dict()
    changed = {name for name in after if "proj" in name and not torch.equal(before[name], after[name])}
    assert {f"tokenizers.{name}.proj.weight" for name in shown} <= changed
    assert ("tokenizers.segmentation.proj.weight" in changed) == ("segmentation" in shown)


def test_what_cannot_be_fine_tuned(joint_run, scenes, tmp_path):
    with pytest.raises(MmsslError, match="unknown modality of this encoder 'rgb'"):
        finetune(recipe(scenes, modalities=("rgb",)), run=tmp_path / "tuned", init=str(joint_run))
    encoder, data = ChosenEncoder(mmssl.load(joint_run), ("image", "depth")), open_dataset(scenes, target="task")
    with pytest.raises(MmsslError, match="mixup and cutmix mix pictures alone, and depth would not fit"):
        build_model(encoder, data, HeadConfig(mixup=0.8), seed=0)
    assert build_model(ChosenEncoder(encoder.encoder, ("image",)), data, HeadConfig(mixup=0.8), seed=0)


def test_views_of_a_video_or_a_sound_are_counted_in_one_place():
    from mmssl.data.audio_sampling import AudioSampling

    assert views_at_test(None, None) == 1
    assert views_at_test(ClipSampling(frames=2, test_clips=2, test_crops=3), None) == 6
    assert views_at_test(None, AudioSampling(16000, 1.0, test_clips=4)) == 4
    assert dataclasses.replace(ClipSampling(frames=2)).test_clips == 1
