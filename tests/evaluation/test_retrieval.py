"""Recall at K against slow versions, ties included, and `mmssl retrieve` from a run folder to its scores.json."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from mmssl.config import to_dict
from mmssl.data.loading import DataConfig, open_dataset
from mmssl.data.text import TextEncoding, text_encoder
from mmssl.errors import MmsslError
from mmssl.evaluation import retrieval
from mmssl.evaluation.joint_space import embed_images, embed_texts
from mmssl.evaluation.retrieval import chance, judge_retrieval, recalls
from mmssl.evaluation.retrieve import retrieve
from mmssl.methods.base import create_method
from mmssl.training.checkpoint import RunFolder

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (250, 250, 250)}


def tiny_clip(**settings):
    torch.manual_seed(0)
    shape = {"size": "custom", "dim": 16, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8, "joint_dim": 8}
    shape |= {"text_dim": 16, "text_depth": 1, "text_heads": 2, "text_length": 24, **settings}
    return create_method("clip", **shape).eval()


def write_pairs(root, captions_of_each=2):
    """train/ and test/, each with a picture and captions of every colour; one picture of test/ has no caption."""
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for k, (name, colour) in enumerate(COLOURS.items()):
            Image.new("RGB", (16, 16), colour).save(root / split / f"{k}.png")
            lines = [f"a {name} square", f"all {name}"][:captions_of_each]
            if captions_of_each:
                (root / split / f"{k}.txt").write_text("\n".join(lines) + "\n")
    Image.new("RGB", (16, 16), (9, 9, 9)).save(root / "test" / "9.png")
    return root


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def unit(n, dim, seed):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def slow_recall(queries, gallery, own, whose, k):
    """Sort all answers of each query; no ties."""
    hits = 0
    for query, mine in zip(queries, own.tolist(), strict=True):
        cosines = [(float(query @ answer), its) for answer, its in zip(gallery, whose.tolist(), strict=True)]
        hits += mine in [its for _, its in sorted(cosines, reverse=True)[:k]]
    return hits / len(queries)


def test_recall_is_the_slow_one_both_ways_and_in_blocks(monkeypatch):
    images, texts, places = unit(20, 6, 0), unit(50, 6, 1), torch.arange(20) * 3
    whose = torch.cat([places, places[torch.randint(0, 20, (30,), generator=torch.Generator().manual_seed(2))]])
    texts = F.normalize(texts + 0.7 * images[whose // 3], dim=1)
    to_text, to_image = recalls(images, texts, places, whose), recalls(texts, images, whose, places)
    for k in (1, 5, 10):
        assert to_text[k] == pytest.approx(slow_recall(images, texts, places, whose, k))
        assert to_image[k] == pytest.approx(slow_recall(texts, images, whose, places, k))
    assert 0.1 < to_image[1] < to_image[5] < 1
    monkeypatch.setattr(retrieval, "_ROWS", 7)
    monkeypatch.setattr(retrieval, "_COLUMNS", 9)
    assert recalls(images, texts, places, whose) == pytest.approx(to_text)


@pytest.mark.parametrize("cosines", [[5, 5, 5, 5, 5], [9, 5, 5, 5, 1], [9, 8, 5, 5, 5], [5, 5, 1, 1, 1]])
@pytest.mark.parametrize("right", [(0,), (1, 3), (2, 3, 4)])
def test_equal_cosines_count_as_in_every_order_of_them(cosines, right):
    """The mean over all orders of the answers, sorted by a sort that keeps them."""
    gallery = torch.tensor([[c / 10, math.sqrt(1 - (c / 10) ** 2)] for c in cosines])
    whose = torch.tensor([7 if k in right else k for k in range(5)])
    found = recalls(torch.tensor([[1.0, 0.0]]), gallery, torch.tensor([7]), whose, (1, 2, 3))
    orders = list(itertools.permutations(range(5)))
    for k, value in found.items():
        hits = sum(bool(set(right) & set(sorted(order, key=lambda j: -cosines[j])[:k])) for order in orders)
        assert value == pytest.approx(hits / len(orders))


def test_one_vector_for_everything_has_the_recall_of_chance():
    places = torch.arange(12)
    whose = torch.cat([places, places[:5], places[:2]])
    same = F.normalize(torch.ones(19, 4), dim=1)
    assert recalls(same[:12], same, places, whose) == pytest.approx(chance(places, whose))
    assert recalls(same, same[:12], whose, places) == pytest.approx(chance(whose, places))
    assert chance(whose, places) == pytest.approx({1: 1 / 12, 5: 5 / 12, 10: 10 / 12})
    right = [3 if p < 2 else 2 if p < 5 else 1 for p in range(12)]
    slow = sum(1 - math.comb(19 - r, 5) / math.comb(19, 5) for r in right) / 12
    assert chance(places, whose)[5] == pytest.approx(slow)


def test_a_query_without_an_answer_and_vectors_of_nan_are_said():
    with pytest.raises(MmsslError, match="not finite"):
        recalls(unit(2, 3, 0) / 0 * 0, unit(2, 3, 1), torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(MmsslError, match="no right answer in the gallery"):
        recalls(unit(2, 3, 0), unit(2, 3, 1), torch.tensor([0, 1]), torch.tensor([0, 0]))


def test_vectors_are_those_of_the_method_whatever_the_batch(pair_folder):
    method, encoding = tiny_clip(), TextEncoding(length=24, special=True)
    dataset = open_dataset(pair_folder, split="test", image_size=16, text=encoding)
    vectors, places = embed_images(method, dataset, batch_size=2)
    assert places.tolist() == [0, 1, 2, 3, 4]
    pictures = torch.stack([dataset[k]["image"] for k in range(5)])
    torch.testing.assert_close(vectors, method.embed({"image": pictures})["image"].detach())
    texts = ["all blue", "a", "all blue", "ein grünes Quadrat"]
    ids, mask = text_encoder(encoding)(texts)
    torch.testing.assert_close(
        embed_texts(method, texts, batch_size=2), method.embed({"text": ids, "text_mask": mask})["text"].detach()
    )


def test_a_picture_that_cannot_be_read_or_is_none_is_left_out(tmp_path):
    root = write_pairs(tmp_path / "pairs")
    (root / "test" / "1.png").write_bytes(b"no picture")
    (root / "test" / "8.txt").write_text("a caption alone\n")
    dataset = open_dataset(root, split="test", image_size=16, text=TextEncoding(), max_bad=0.5)
    vectors, places = embed_images(tiny_clip(), dataset, batch_size=2)
    assert places.tolist() == [0, 2, 3, 5] and len(vectors) == 4  # place 4 is the caption alone


def test_a_trained_run_finds_colours_and_keeps_its_scores(pair_folder, tmp_path, capsys):
    method, dataset = tiny_clip(), open_dataset(pair_folder, image_size=16, text=TextEncoding(length=24, special=True))
    optimizer, batch = torch.optim.AdamW(method.parameters(), lr=5e-3), dataset.fetch(torch.arange(4))
    encode = text_encoder(TextEncoding(length=24, special=True))
    captions = [encode([dataset.caption(k)[which] for k in range(4)]) for which in (0, 1)]
    for step in range(60):
        batch["text"], batch["text_mask"] = captions[step % 2]
        optimizer.zero_grad()
        (method(batch)["loss"][0] / 4).backward()
        optimizer.step()
    run = RunFolder(tmp_path / "run")
    run.start()
    data = to_dict(DataConfig(source=(str(pair_folder),), image_size=(16, 16)))
    run.config.write_text(yaml.safe_dump({"method": to_dict(method.config), "data": data}))
    run.save(1, method, {"step": 1}, keep=1)
    rows = retrieve(str(run.path), random_seeds=2, device="cpu")
    found = {(row.encoder, row.metric): row.value for row in rows}
    assert found["pretrained", "image to text R@1"] == 1 and found["pretrained", "text to image R@1"] > 0.8
    # Four pictures with two captions each: the fifth has none and is no answer.
    assert found["chance", "image to text R@1"] == found["chance", "text to image R@1"] == 0.25
    assert {row.evaluator for row in rows} == {"retrieval"} and len(rows) == 18
    assert all((row.spread is None) == (row.encoder != "random") for row in rows)
    assert json.loads((run.path / "scores.json").read_text())["rows"][0]["encoder"] == "pretrained"
    assert "text to image R@10" in capsys.readouterr().out


def test_wrong_input_is_one_sentence(tmp_path, run_folder):
    run, method = RunFolder(tmp_path / "clip"), tiny_clip()
    run.start()
    run.config.write_text(yaml.safe_dump({"method": to_dict(method.config)}))
    run.save(1, method, {"step": 1}, keep=1)
    bare = write_pairs(tmp_path / "bare", captions_of_each=0)
    with pytest.raises(MmsslError, match=r"has no captions to retrieve.*--prompts"):
        retrieve(str(run.path), data=(str(bare),), quiet=True)
    with pytest.raises(MmsslError, match="--data"):
        retrieve(str(run.path), quiet=True)
    with pytest.raises(MmsslError, match="random_seeds must be at least 1"):
        retrieve(str(run.path), data=(str(bare),), random_seeds=0)
    with pytest.raises(MmsslError, match="'mae' has no space that its modalities share"):
        retrieve(str(run_folder), quiet=True)
    with pytest.raises(MmsslError, match="'mae' reads no text"):
        embed_texts(create_method("mae", size="custom", dim=16, depth=1, heads=2, image_size=32), ["a"])


def test_captions_without_pictures_are_said(tmp_path):
    (tmp_path / "a.txt").write_text("a caption\n")
    dataset = open_dataset(tmp_path, split="all", image_size=16, text=TextEncoding())
    with pytest.raises(MmsslError, match="gives no images; its batches hold"):
        judge_retrieval(tiny_clip(), dataset)
