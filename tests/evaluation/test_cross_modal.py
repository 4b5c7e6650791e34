"""Predictions of one modality from another: scores against slow versions on a method that knows the answers."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import nn

from mmssl.config import from_dict
from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.evaluation.cross_modal import judge_cross_modal, predicted_by
from mmssl.evaluation.probe import probe
from mmssl.paths import find_resource
from mmssl.tokenizers.depth import DepthTokenizerConfig
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.segmentation import SegmentationTokenizerConfig
from mmssl.tokenizers.text import TextTokenizerConfig
from mmssl.training.pretrain import PretrainConfig, pretrain

L = 8


class Samples(Dataset):
    """Images whose red level is one of four words' number; a text spells that number, of which sample 0 has none."""

    def __init__(self, n: int, seed: int, keys=("image", "depth", "segmentation", "text")):
        self.n, self.keys = n, keys
        super().__init__("samples", Geometry((8, 8)))
        generator = torch.Generator().manual_seed(seed)
        self.word = torch.randint(0, 4, (n,), generator=generator)
        image = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
        image[:, 0] = 60 * self.word.view(-1, 1, 1).byte()
        ids = torch.randint(-1, 3, (n, 8, 8), generator=generator)
        length = torch.randint(3, L + 1, (n,), generator=generator)
        mask = torch.arange(L) < length[:, None]
        mask[0] = False
        common = torch.rand(n, L, generator=generator) < 0.4  # word 7 is the most frequent
        text = torch.where(common, 7, 10 + self.word[:, None] + torch.arange(L)) * mask
        depth = 1 + torch.rand(n, 1, 8, 8, generator=generator)
        self.held = {"image": image, "depth": depth, "segmentation": ids, "text": text, "text_mask": mask}
        self.held |= {"present/text": torch.arange(n) > 0, "present/depth": torch.arange(n) != 2}

    def __len__(self) -> int:
        return self.n

    def fetch(self, index, keys=None, augmentation=None):
        wanted = {k for name in self.keys for k in (name, f"{name}_mask", f"present/{name}")}
        return {**{k: x[index] for k, x in self.held.items() if k in wanted}, "index": index.clone()}


class Knowing(nn.Module):
    """Says a fixed function of what it can see, and notes what that was."""

    def __init__(self, modalities=("image", "depth", "segmentation", "text")):
        super().__init__()
        size = {"image_size": 8, "patch_size": 4}
        tokenizers = {
            "image": ImageTokenizerConfig(**size),
            "depth": DepthTokenizerConfig(**size, standardise="none"),
            "segmentation": SegmentationTokenizerConfig(**size, classes=3, stride=1),
            "text": TextTokenizerConfig(length=L),
        }
        tokenizers = {name: tokenizers[name] for name in modalities}
        self.encoder = Encoder(EncoderConfig(tokenizers=tokenizers, dim=16, depth=1, heads=2))
        self.seen = []

    def reconstruct(self, batch, masks=None, keys=None):
        self.seen.append((set(batch), masks))
        found = {}
        for name in self.encoder.modalities:
            if name in batch:
                tokenizer = self.encoder.tokenizer(name)
                found[f"target/{name}"] = truth = tokenizer.picture(tokenizer.target(batch[name]))
                found[f"prediction/{name}"] = getattr(self, f"_{name}")(batch, truth)
        return found

    def _image(self, batch, truth):
        return truth * 0.9

    def _depth(self, batch, truth):
        return truth + 0.1 if "image" in batch else torch.full_like(truth, 1.4)

    def _segmentation(self, batch, truth):
        return torch.where(truth == 2, 1, truth.clamp_min(0))

    def _text(self, batch, truth):
        """With the image it knows the word and not where the common one stands; without, that one alone."""
        if "image" not in batch:
            return torch.full_like(truth, 7)
        word = batch["image"][:, 0, 0, 0].long() // 60
        return (10 + word[:, None] + torch.arange(L)).expand_as(truth)


@pytest.fixture(scope="module")
def parts():
    return Samples(24, 0), Samples(15, 1)


@pytest.fixture(scope="module")
def judged(parts):
    method = Knowing()
    rows = judge_cross_modal(method, *parts, batch_size=4)
    return method, {(r.evaluator, r.target, r.encoder, r.metric): r.value for r in rows}


def test_every_ordered_pair_is_judged(judged):
    _, by = judged
    pairs = {(source.removeprefix("from "), target) for source, target, *_ in by}
    names = ("image", "depth", "segmentation", "text")
    assert pairs == {(a, b) for a in names for b in names if a != b}
    assert {encoder for *_, encoder, _ in by} == {"pretrained", "constant", "alone"}


def test_of_a_pair_the_one_is_shown_and_the_other_hidden(judged):
    method, _ = judged
    for keys, masks in method.seen[1:]:  # the first asks what is predicted
        names = [name for name in method.encoder.modalities if name in keys]
        assert set(masks) == set(names) and len(names) <= 2
        wholly = {name for name in names if bool(masks[name].all())}
        seen = {name for name in names if not bool(masks[name].any())}
        assert (len(wholly), len(seen)) == (1, 1) or "text" in names
        assert all(mask.dtype == torch.bool for mask in masks.values())


def test_explained_variance_is_that_over_the_mean_picture(judged, parts):
    _, by = judged
    train, test = (part.held for part in parts)
    both = torch.arange(15) != 2  # that have depth
    truth, known = test["depth"][both].flatten(1).numpy(), train["depth"][torch.arange(24) != 2].flatten(1).numpy()
    slow = 1 - (0.1**2 * truth.size) / ((truth - known.mean(0)) ** 2).sum()
    assert by["from image", "depth", "pretrained", "explained"] == pytest.approx(slow, rel=1e-4)
    assert by["from image", "depth", "constant", "explained"] == 0
    poor = 1 - ((truth - 1.4) ** 2).sum() / ((truth - known.mean(0)) ** 2).sum()
    assert by["from segmentation", "depth", "pretrained", "explained"] == pytest.approx(poor, rel=1e-4)


def test_segmentation_is_scored_where_there_is_a_class(judged, parts):
    _, by = judged
    train, test = (part.held["segmentation"] for part in parts)
    there = test >= 0
    guess = torch.where(test == 2, 1, test)
    key = ("from image", "segmentation")
    assert by[*key, "pretrained", "pixel_accuracy"] == pytest.approx((guess == test)[there].float().mean().item())
    slow = jaccard_score(test[there], guess[there], average="macro", labels=[0, 1, 2], zero_division=0)
    assert by[*key, "pretrained", "miou"] == pytest.approx(slow)
    most = torch.stack([(train == k).sum(0) for k in range(3)]).argmax(0).expand_as(test)
    assert by[*key, "constant", "pixel_accuracy"] == pytest.approx((most == test)[there].float().mean().item())


def test_words_are_counted_where_they_are_hidden(judged, parts):
    method, by = judged
    held = parts[1].held
    asked = [masks for keys, masks in method.seen[1:] if keys >= {"text", "image"}]
    every = torch.cat([masks["text"] for masks in asked if not masks["image"].any()])  # sample 0 has no text
    real, text, word = held["text_mask"][1:], held["text"][1:], parts[1].word[1:]
    assert every.shape == real.shape and not (every & ~real).any()
    assert 0.6 < every.sum() / real.sum() < 0.9
    right = (text == 10 + word[:, None] + torch.arange(L))[every].float().mean().item()
    key = ("from image", "text")
    assert by[*key, "pretrained", "accuracy"] == pytest.approx(right)
    common = (text == 7)[every].float().mean().item()
    assert by[*key, "alone", "accuracy"] == by[*key, "constant", "accuracy"] == pytest.approx(common)
    assert right > common


def test_the_batch_size_changes_nothing(judged, parts):
    again = judge_cross_modal(Knowing(), *parts, batch_size=15)
    for row in again:
        assert row.value == pytest.approx(judged[1][row.evaluator, row.target, row.encoder, row.metric], abs=1e-6)


def test_of_one_modality_nothing_is_predicted(parts):
    alone = Samples(5, 0, ("image",))
    with pytest.raises(MmsslError, match=r"reads image, depth, segmentation, text and predicts image, and the data"):
        judge_cross_modal(Knowing(), alone, alone)


def test_a_run_of_several_modalities_is_judged_with_the_probe(joint_run, capsys):
    """MultiMAE with fresh weights: what is written and printed, on all modalities whatever the probe is shown."""
    settings = {"target": "state", "evaluators": ("knn",), "options": ("knn.k=[1]",), "pixels": False}
    probe(str(joint_run), modalities=("image",), device="cpu", **settings)
    out = capsys.readouterr().out
    assert "from depth" in out and "explained" in out
    rows = json.loads((joint_run / "scores.json").read_text())["rows"]
    crossed = [row for row in rows if row["evaluator"].startswith("from ")]
    names = {"image", "depth", "segmentation"}
    assert {(r["evaluator"][5:], r["target"]) for r in crossed} == {(a, b) for a in names for b in names if a != b}
    assert all(np.isfinite(row["value"]) for row in crossed)


def test_what_is_predicted_and_not_read_is_judged_too(make_multimae, make_run_of, scenes, tmp_path):
    method = make_multimae(in_tasks=("image",), out_tasks=("image", "depth"), budget=4)
    run = make_run_of(method, tmp_path / "run", source=(str(scenes),), image_size=(16, 16))
    assert predicted_by(method, Samples16(2, 0, ("image",))) == ["image", "depth"]
    probe(str(run), target="state", evaluators=("knn",), pixels=False, quiet=True, device="cpu")
    rows = json.loads((run / "scores.json").read_text())["rows"]
    assert {(r["evaluator"], r["target"]) for r in rows if r["evaluator"].startswith("from ")} == {
        ("from image", "depth")
    }


class Samples16(Samples):
    """The same, of 16 x 16 pixels."""

    def fetch(self, index, keys=None, augmentation=None):
        batch = super().fetch(index)
        return {**batch, "image": batch["image"].repeat_interleave(2, 2).repeat_interleave(2, 3)}


def test_a_run_on_data_without_labels_is_judged_by_what_it_predicts(tmp_path, capsys):
    """M3AE on the captioned sample pictures: no probe, and words from the image beside words alone."""
    size = {"size": "custom", "dim": 16, "depth": 1, "heads": 2, "image_size": [32, 32], "patch_size": 8}
    decoder = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "text_length": 16}
    pictures = Path(find_resource("data", "samples")).parent / "samples"
    flat = tmp_path / "pictures"
    flat.mkdir()
    for file in pictures.rglob("*.*"):
        if file.suffix in (".txt", ".jpg", ".png"):
            shutil.copy(file, flat / f"{file.parent.name}-{file.name}")
    loop = {"steps": 1, "batch_size": 2, "precision": "fp32"}
    data = {"source": [str(flat)], "test_every": 2}
    recipe = {"method": {"name": "m3ae", **size, **decoder}, "data": data, "loop": loop, "optim": {"lr": 1e-3}}
    pretrain(from_dict(PretrainConfig, recipe), tmp_path / "run")
    assert probe(tmp_path / "run", device="cpu") == []
    said = capsys.readouterr().out
    assert "have no labels: no probe" in said and re.search(r"from image +text +accuracy", said)
    rows = json.loads((tmp_path / "run/scores.json").read_text())["rows"]
    assert {row["encoder"] for row in rows if row["target"] == "text"} == {"pretrained", "alone", "constant"}
