"""What a method's tokenizers ask of the data: how texts are encoded, cameras, planes, vectors and their statistics."""

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from mmssl import open_dataset
from mmssl.config import from_dict
from mmssl.data import text as text_data
from mmssl.data.clips import ClipSampling
from mmssl.data.loading import DataConfig
from mmssl.data.recording_file import RecordingFile
from mmssl.data.text import TextEncoding
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.methods.base import Method, MethodConfig, create_method
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.text import TextTokenizerConfig
from mmssl.tokenizers.vector import VectorTokenizerConfig
from mmssl.training.asked import (
    as_asked,
    cameras_of,
    check_data,
    check_vocabulary,
    modalities_of,
    settle_statistics,
    text_encoding,
)
from mmssl.training.pretrain import PretrainConfig, pretrain


def encoder_of(**text) -> Encoder:
    tokenizers = {"image": ImageTokenizerConfig(image_size=8, patch_size=4), "text": TextTokenizerConfig(**text)}
    return Encoder(EncoderConfig(tokenizers, dim=8, depth=1, heads=2))


def test_the_method_says_how_texts_are_encoded():
    model = torch.nn.ModuleDict({"tower": encoder_of(length=12, special=True)})  # a method with towers
    assert text_encoding(model, None) == TextEncoding("bytes", 12, True)
    shorter = TextEncoding("bytes", 10, True)
    assert text_encoding(model, shorter) is shorter
    pictures = Encoder(EncoderConfig({"image": ImageTokenizerConfig(image_size=8, patch_size=4)}, 8, 1, 2))
    assert text_encoding(pictures, None) is None and text_encoding(pictures, shorter) is shorter


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            TextEncoding("bert", 12),
            "data.text.vocabulary is 'bert' and the method's tokenizer has 'bytes'; set them alike",
        ),
        (TextEncoding("bytes", 12, True), "data.text.special is True and the method's tokenizer has False"),
        (TextEncoding("bytes", 13), "data.text.length is 13 and the method reads 12 tokens; lower the first"),
    ],
)
def test_a_recipe_that_contradicts_the_method(given, message):
    with pytest.raises(MmsslError, match=message):
        text_encoding(encoder_of(length=12), given)


def test_the_vocabulary_of_the_data_fits_the_method(tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    (words / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (words / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (words / "config.json").write_text(json.dumps({"model_type": "bert"}))
    large, small = (encoder_of(vocabulary=str(words), vocab_size=size) for size in (6, 5))
    dataset = open_dataset("samples", image_size=8, text=text_encoding(large, None))
    check_vocabulary(large, dataset)
    large.check(dataset.fetch(torch.arange(4)))
    with pytest.raises(MmsslError, match=r"has 6 ids and the method's vocab_size is 5; set vocab_size to 6"):
        check_vocabulary(small, dataset)


def test_pretraining_reads_texts_as_the_method_does(tmp_path, capsys, caplog, monkeypatch):
    """The captions of the samples have more than 10 tokens: the run goes on, and says so."""
    monkeypatch.setattr(text_data, "_TOLD", set())
    monkeypatch.setattr("mmssl.training.pretrain._finish", lambda *_: None)  # no report: that is tested elsewhere
    method = {"name": "clip", "size": "custom", "dim": 8, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8}
    method |= {"text_dim": 8, "text_depth": 1, "text_heads": 2, "text_length": 10}
    recipe = {
        "method": method,
        "loop": {"steps": 2, "batch_size": 4, "workers": 1, "device": "cpu"},
        "data": {"source": ["samples"]},
    }
    pretrain(from_dict(PretrainConfig, recipe), tmp_path / "run")
    assert sum("texts of more than 10 tokens are cut there" in record.message for record in caplog.records) == 1
    said = capsys.readouterr().err
    assert "texts were cut 9 times: they have more than 10 tokens" in said  # that of the check, and 2 batches of 4


GEOMS = ["floor", "right_arm_base_link#0", "right_hand#1", "drawer_link#0"]  # four classes, and "table" and "other"
PAIR = {"name": "multimae", "size": "custom", "dim": 8, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8}
PAIR |= {"decoder_dim": 8, "decoder_depth": 0, "decoder_heads": 2, "budget": 2, "class_dim": 2}


def record(folder: Path, cameras=("front", "side"), leave_out=(), geoms=GEOMS, scale=1.0) -> Path:
    """Five episodes of 2 to 6 frames, with whatever is not left out; vectors are random."""
    data, random = folder / "data", np.random.default_rng(0)
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for e in range(5):
            n, observations = 2 + e, f"episode_{e}/observations"
            planes = {f"rgb/{c}": random.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8) for c in cameras}
            planes |= {f"depth/{c}": random.random((n, 16, 16)).astype(np.float16) for c in cameras}
            planes |= {f"segmentation/{c}": random.integers(-1, 4, (n, 16, 16)).astype(np.int16) for c in cameras}
            planes["proprio"] = np.stack([scale * random.random(n), np.full(n, 2.0), 10 * random.random(n)], 1)
            for name, values in planes.items():
                if name.split("/")[0] not in leave_out:
                    file[f"{observations}/{name}"] = values
            file[f"episode_{e}/rewards"], file[f"episode_{e}/actions"] = np.zeros(n - 1), np.zeros((n - 1, 1))
    metadata = {"dataset_id": "toys/reach-v0", "mmssl": {"geoms": list(geoms), "has_success": False}}
    (data / "metadata.json").write_text(json.dumps(metadata))
    return folder


def multimae(*modalities: str, **settings) -> Method:
    tasks = {"in_tasks": modalities, "out_tasks": modalities, "widths": {"proprio": 3}}
    tasks |= {} if "proprio" in modalities else {"widths": {}}
    return create_method(from_dict(MethodConfig, PAIR | tasks | settings))


def reading(*modalities: str, views=()) -> Encoder:
    sizes = {name: ImageTokenizerConfig(image_size=16, patch_size=8) for name in modalities}
    return Encoder(EncoderConfig(sizes, 8, 1, 2, views=views))


def test_what_a_model_works_with():
    assert modalities_of(multimae("image", "proprio")) == ("image", "proprio")
    apart = multimae("image", in_tasks=("image",), out_tasks=("depth", "segmentation"))
    assert modalities_of(apart) == ("image", "depth", "segmentation")
    towers = torch.nn.ModuleList([reading("image"), encoder_of()])
    assert modalities_of(towers) == ("image", "text")
    assert modalities_of(reading("image", views=("a", "b"))) == ("image/a", "image/b")
    assert cameras_of(reading("image", views=("a", "b"))) == ("a", "b")
    assert cameras_of(reading("image/a", "image/b")) == ("a", "b") and cameras_of(reading("image/a", "image")) == ()
    assert cameras_of(encoder_of()) == ()


def test_recorded_data_give_what_the_method_works_with(tmp_path):
    data = DataConfig(source=(str(record(tmp_path / "toys")),))
    every = multimae("image", "depth", "segmentation", "proprio", classes=6, class_stride=1)
    asked = as_asked(every, data)
    assert asked == dataclasses.replace(data, image_size=(16, 16), extras=("depth", "segmentation", "proprio"))
    batch = asked.open().fetch(torch.arange(3))
    check_data(every, asked.open())
    every.check(batch)
    assert batch["proprio"].shape == (3, 1, 3)
    assert as_asked(multimae("image"), data).extras == ()
    predicted = multimae("image", in_tasks=("image",), out_tasks=("proprio",), widths={"proprio": 3})
    assert as_asked(predicted, data).extras == ("proprio",)
    chosen = dataclasses.replace(data, extras=("depth",), camera="side", image_size=(8, 8))
    assert as_asked(every, chosen) == chosen


def test_what_no_recording_has_is_told(tmp_path):
    said, every = [], multimae("image", "depth", "segmentation", "proprio", classes=6, class_stride=1)
    data = DataConfig(source=(str(record(tmp_path / "toys", leave_out=("depth", "proprio"))),))
    assert as_asked(every, data, said.append).extras == ("segmentation",)
    assert said == ["the method works with depth and proprio, and no recording has it: going on without."]


def test_cameras_are_those_of_the_method(tmp_path):
    data = DataConfig(source=(str(record(tmp_path / "toys")),), clip=ClipSampling(frames=2, stride=1))
    small = {"size": "custom", "dim": 8, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8, "frames": 2}
    small |= {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.5}
    views = create_method("mvmae", views=("side", "front"), **small)
    asked = as_asked(views, data)
    assert asked.cameras == ("side", "front") and asked.extras == ()
    views.check(asked.open().fetch(torch.arange(2)))
    one = dataclasses.replace(data, camera="front")
    assert as_asked(views, one).cameras == () and "video" in as_asked(views, one).open()[0]
    with pytest.raises(MmsslError, match="unknown camera 'wrist'"):
        as_asked(create_method("mvmae", views=("wrist",), hidden_views=0, **small), data).open()


def test_folders_of_pictures_are_left_as_they_are(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    data = DataConfig(source=(str(tmp_path),))
    assert as_asked(multimae("image", "depth"), data) == dataclasses.replace(data, image_size=(16, 16))
    with pytest.raises(MmsslError, match="no data was given"):
        as_asked(multimae("image", "depth"), DataConfig()).open()


def test_another_number_of_classes(tmp_path):
    data = DataConfig(source=(str(record(tmp_path / "toys")),))
    for kind, count in (("classes", 6), ("coarse", 5)):
        wanted = dataclasses.replace(data, segmentation=kind)
        wrong, right = (multimae("image", "segmentation", classes=n, class_stride=1) for n in (7, count))
        dataset = as_asked(wrong, wanted).open()
        with pytest.raises(
            MmsslError, match=rf"has {count} classes and the method has 7; set method.classes to {count}"
        ):
            check_data(wrong, dataset)
        check_data(right, dataset)
    check_data(wrong, as_asked(wrong, dataclasses.replace(data, segmentation="ids")).open())  # geoms have no names


@pytest.mark.parametrize("clip", [None, ClipSampling(frames=2, stride=1)])
def test_vectors_are_standardised_by_the_training_part(tmp_path, clip):
    folder, said = record(tmp_path / "toys"), []
    proprio = VectorTokenizerConfig(width=3, frames=2)
    model = Encoder(EncoderConfig({"proprio": proprio}, dim=8, depth=1, heads=2))
    data = as_asked(model, DataConfig(source=(str(folder),), clip=clip))
    settle_statistics(model, data.open(), said.append)
    with h5py.File(folder / "data" / "main_data.hdf5") as file:  # the fifth episode is held out
        rows = np.concatenate([file[f"episode_{e}/observations/proprio"][()] for e in range(4)])
    tokenizer = model.tokenizer("proprio")
    np.testing.assert_allclose(tokenizer.mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(tokenizer.std, [rows[:, 0].std(), 1.0, rows[:, 2].std()], rtol=1e-6)
    still = "; dimensions [1] of it never change, and are not divided by it."
    assert said == [f"proprio is standardised by its mean and std over 14 frames of toys/reach{still}"]
    told = VectorTokenizerConfig(width=3, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 3.0))
    other = Encoder(EncoderConfig({"proprio": told}, dim=8, depth=1, heads=2))
    settle_statistics(other, data.open(), said.append)
    assert other.tokenizer("proprio").mean.tolist() == [1, 2, 3] and len(said) == 1
    blind = Encoder(EncoderConfig({"proprio": proprio}, dim=8, depth=1, heads=2))
    settle_statistics(blind, dataclasses.replace(data, extras=()).open(), said.append)
    assert blind.tokenizer("proprio").mean.tolist() == [0, 0, 0] and len(said) == 1


def test_damaged_and_infinite_vectors(tmp_path, monkeypatch):
    model, said = multimae("image", "proprio"), []
    data = as_asked(model, DataConfig(source=(str(record(tmp_path / "toys")),)))
    read = RecordingFile.vector

    def damaged(self, episode, name, bad=(1,)):
        if episode in bad:
            raise OSError("no such block")
        return read(self, episode, name)

    monkeypatch.setattr(RecordingFile, "vector", damaged)
    settle_statistics(model, data.open(), said.append)
    assert said[0].startswith("proprio is standardised by its mean and std over 11 frames of toys/reach;")
    monkeypatch.setattr(RecordingFile, "vector", lambda *args: damaged(*args, bad=range(5)))
    with pytest.raises(MmsslError, match="no 'proprio' of toys/reach can be read; record again"):
        settle_statistics(model, data.open(), said.append)
    monkeypatch.setattr(RecordingFile, "vector", lambda *args: np.where(read(*args) == 2, np.nan, read(*args)))
    with pytest.raises(MmsslError, match="holds NaN or infinite values in 14 of 14 frames; mend the recording"):
        settle_statistics(model, data.open(), said.append)


def test_vectors_of_another_width(tmp_path):
    data, model = (
        DataConfig(source=(str(record(tmp_path / "toys")),)),
        multimae("image", "proprio", widths={"proprio": 4}),
    )
    with pytest.raises(
        MmsslError, match=r"'proprio' of dataset 'toys/reach' has 3 numbers .* reads 4; set its width to 3"
    ):
        check_data(model, as_asked(model, data).open())


def test_pretraining_settles_statistics_once(tmp_path, capsys, monkeypatch):
    """A run that goes on, and one that starts from other weights, keep the statistics of these weights."""
    monkeypatch.setattr("mmssl.training.pretrain._finish", lambda *_: None)
    first, second = record(tmp_path / "first"), record(tmp_path / "second", scale=5.0)
    method = PAIR | {"in_tasks": ["image", "proprio"], "out_tasks": ["image", "proprio"], "widths": {"proprio": 3}}
    loop = {"steps": 1, "batch_size": 4, "workers": 0, "device": "cpu", "checkpoint_every": 1}
    recipe = {"method": method, "loop": loop, "data": {"source": [str(first)]}}

    def run(source: Path, steps: int, folder: str, **options) -> torch.Tensor:
        wanted = recipe | {"loop": loop | {"steps": steps}, "data": {"source": [str(source)]}}
        done = pretrain(from_dict(PretrainConfig, wanted), tmp_path / folder, **options)
        return done.latest().tensors()["encoder.tokenizers.proprio.mean"]

    own = run(first, 1, "run")
    assert "proprio is standardised by its mean and std over 14 frames" in capsys.readouterr().err
    assert not torch.allclose(own, run(second, 1, "other")) and not own.eq(0).any()
    capsys.readouterr()
    assert torch.equal(run(second, 2, "run"), own)
    assert "standardised" not in capsys.readouterr().err
    assert torch.equal(run(second, 1, "begun", init=tmp_path / "run"), own)
