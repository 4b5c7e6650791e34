"""Zero-shot classification against a slow version, ties, and what it refuses."""

import pytest
import torch

from mmssl.data.text import TextEncoding, text_encoder
from mmssl.errors import MmsslError
from mmssl.evaluation.retrieve import retrieve
from mmssl.evaluation.zero_shot import class_vectors, judge_zero_shot
from mmssl.methods.base import create_method
from mmssl.training.checkpoint import RunFolder

CLASSES = ["cat", "dog", "golden_retriever", "tree", "house", "boat", "car"]
PROMPTS = ("a photo of a {}", "{}!", "the {} and the {}")


@pytest.fixture
def method():
    torch.manual_seed(0)
    shape = {"size": "custom", "dim": 16, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8, "joint_dim": 8}
    return create_method("clip", **shape, text_dim=16, text_depth=1, text_heads=2, text_length=40).eval()


@pytest.fixture
def animals(in_memory):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, len(CLASSES), (30,), generator=generator)
    return in_memory(images, labels, "single_label", classes=CLASSES)


def slow_vectors(method, prompts):
    encode, rows = text_encoder(TextEncoding(length=40, special=True)), []
    for name in CLASSES:
        total = 0
        for prompt in prompts:
            ids, mask = encode([prompt.replace("{}", name.replace("_", " "))])
            total = total + method.embed({"text": ids, "text_mask": mask})["text"][0].detach()
        rows.append(total / total.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_the_score_is_the_slow_one(method, animals, prompts):
    vectors = class_vectors(method, CLASSES, prompts, batch_size=4)
    slow = slow_vectors(method, prompts)
    torch.testing.assert_close(vectors, slow)
    found, guess = judge_zero_shot(method, animals, prompts, batch_size=7)
    cosines = method.embed({"image": animals.images})["image"] @ slow.T
    order = cosines.argsort(dim=1, descending=True)
    right = [label in order[i, :5].tolist() for i, label in enumerate(animals.values.tolist())]
    assert found["accuracy"] == pytest.approx((order[:, 0] == animals.values).float().mean().item())
    assert found["top 5"] == pytest.approx(sum(right) / 30)
    assert guess == pytest.approx({"accuracy": 1 / 7, "top 5": 5 / 7})


def test_equal_classes_share_their_hits(method, animals):
    """Each class twice under the same name: half of the images of a class are found."""
    once = judge_zero_shot(method, animals)[0]["accuracy"]
    animals.classes = [*CLASSES, *CLASSES]
    twice, guess = judge_zero_shot(method, animals)
    assert twice["accuracy"] == pytest.approx(once / 2) and guess["accuracy"] == pytest.approx(1 / 14)


def test_few_classes_have_no_top_5(method, in_memory, animals):
    three = in_memory(animals.images, animals.values % 3, "single_label", classes=CLASSES[:3])
    assert judge_zero_shot(method, three)[0].keys() == {"accuracy"}


def test_a_folder_of_classes_is_judged(method, picture_folder, tmp_path, capsys):
    import yaml

    from mmssl.config import to_dict

    run = RunFolder(tmp_path / "run")
    run.start()
    run.config.write_text(yaml.safe_dump({"method": to_dict(method.config)}))
    run.save(1, method, {"step": 1}, keep=1)
    options = {"data": (str(picture_folder),), "split": "all", "device": "cpu"}
    rows = retrieve(str(run.path), prompts=PROMPTS, **options)
    assert {(row.evaluator, row.target, row.metric) for row in rows} == {("zero-shot, 3 prompts", "class", "accuracy")}
    assert {row.encoder: row.value for row in rows}["chance"] == 0.5
    assert "zero-shot, 3 prompts" in capsys.readouterr().out and (run.path / "scores.json").is_file()
    with pytest.raises(MmsslError, match=r"a prompt needs \{\} .*got 'a photo'"):
        retrieve(str(run.path), prompts=("a photo",), **options)
    with pytest.raises(MmsslError, match=r"unknown target .*class"):
        retrieve(str(run.path), prompts=PROMPTS, target="x", **options)


def test_wrong_input_is_one_sentence(method, in_memory, animals):
    with pytest.raises(MmsslError, match=r"needs a prompt, e.g. 'a photo of a \{\}'"):
        judge_zero_shot(method, animals, ())
    with pytest.raises(MmsslError, match=r"a prompt needs \{\} where the name of a class goes.*got 'photo'"):
        class_vectors(method, CLASSES, ("{}", "photo"))
    for bare in (in_memory(animals.images), in_memory(animals.images, animals.values, "single_label")):
        with pytest.raises(MmsslError, match="has no named classes to tell apart; give a folder of class folders"):
            judge_zero_shot(method, bare)
