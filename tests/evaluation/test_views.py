"""Clips x crops: predictions of the views of a video, averaged; against loops that a reader can check by eye."""

import importlib
import math

import pytest
import torch

from mmssl.errors import MmsslError
from mmssl.evaluation.features import Splits, extract
from mmssl.evaluation.finetune_model import HeadConfig, build_model
from mmssl.evaluation.probe import parse_question
from mmssl.evaluation.sources import thin_out
from mmssl.evaluation.views import average_views, label_of_views
from mmssl.registry import EVALUATORS


def slow_average(task, rows, labels, groups, logits):
    """One video after the other, one view after the other."""
    found, answers = [], []
    for video in sorted(set(groups.tolist())):
        total, count = [0.0] * rows.shape[1], 0
        for row, label, group in zip(rows.tolist(), labels, groups.tolist(), strict=True):
            if group != video:
                continue
            if logits and task == "single_label":
                powers = [math.exp(value - max(row)) for value in row]
                row = [power / sum(powers) for power in powers]
            elif logits and task == "multi_label":
                row = [1 / (1 + math.exp(-value)) for value in row]
            total, count, answer = [a + b for a, b in zip(total, row, strict=True)], count + 1, label
        found.append([value / count for value in total])
        answers.append(answer)
    return torch.tensor(found), torch.stack(answers)


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_the_average_is_the_slow_one(task, logits):
    torch.manual_seed(0)
    groups = torch.tensor([7, 7, 7, 2, 2, 9, 2, 9])  # in any order, and videos that lost a view
    rows = 3 * torch.randn(8, 4)
    of_video = torch.randn(10, 4) if task == "regression" else (torch.rand(10, 4) > 0.5).float()
    labels = groups % 3 if task == "single_label" else of_video[groups]
    mean, answers = average_views(task, rows, labels, groups, logits)
    expected, wanted = slow_average(task, rows, labels, groups, logits)
    torch.testing.assert_close(mean, expected)
    assert torch.equal(answers, wanted) and len(mean) == 3


def test_an_average_of_probabilities_is_not_one_of_logits():
    rows = torch.tensor([[9.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    mean, _ = average_views("single_label", rows, torch.zeros(3).long(), torch.zeros(3).long())
    assert mean.argmax() == 1 and rows.mean(0).argmax() == 0


def test_views_that_disagree_about_the_label_are_refused():
    with pytest.raises(MmsslError, match="different labels"):
        average_views("single_label", torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([4, 4]))
    with pytest.raises(MmsslError, match="belong together"):
        average_views("single_label", torch.zeros(2, 3), torch.tensor([0, 1]), None)


def test_such_data_are_refused_before_any_work(in_memory_clips):
    clips = torch.zeros(4, 2, 3, 16, 16, dtype=torch.uint8)
    train = in_memory_clips(clips, torch.randn(4, 2), "regression")
    test = in_memory_clips(clips, torch.randn(4, 2), "regression", views=2)  # a state that differs from clip to clip
    with pytest.raises(MmsslError, match="one view a video"):
        Splits(train, test)


SHORT = ("linear.steps=30", "attentive.steps=30", "knn.k=[5]")


# kNN and ridge predict shares, the others scores before a softmax.
@pytest.mark.parametrize("name, logits", [("linear", 1), ("attentive", 1), ("logistic", 1), ("ridge", 0), ("knn", 0)])
def test_every_probe_judges_videos_by_the_mean_of_their_views(
    name, logits, tiny_video_encoder, clip_classification, monkeypatch
):
    seen = {}
    views, module = importlib.import_module("mmssl.evaluation.views"), f"mmssl.evaluation.{name}"
    score_part, score = views.score_part, views.score

    def spy_on_rows(task, prediction, part, logits):
        seen["rows"] = (task, prediction, part.labels, part.groups, logits)
        return score_part(task, prediction, part, logits)

    def spy_on_videos(task, prediction, labels):
        seen["videos"] = (prediction, labels)
        return score(task, prediction, labels)

    monkeypatch.setattr(f"{module}.score_part", spy_on_rows)
    monkeypatch.setattr(views, "score", spy_on_videos)
    question = parse_question(name, {}, SHORT)
    found = EVALUATORS.get(name)(tiny_video_encoder, Splits(*clip_classification), question.config)
    task, prediction, labels, groups, said = seen["rows"]
    assert len(prediction) == 90 and len(seen["videos"][0]) == 30 and said is bool(logits)
    expected, wanted = slow_average(task, prediction.cpu(), labels, groups, said)
    torch.testing.assert_close(seen["videos"][0], expected, atol=1e-5, rtol=1e-4)
    accuracy = (expected.argmax(1) == wanted).float().mean().item()
    assert list(found.values()) == [pytest.approx(accuracy)]


def test_fine_tuning_predicts_videos(tiny_video_encoder, clip_classification):
    train, test = clip_classification
    model = build_model(tiny_video_encoder, train, HeadConfig(std=1.0), seed=0).eval()
    prediction, labels = model.predict(test, batch_size=28)
    with torch.no_grad():
        rows = model.output({"video": test.clips})
    expected, wanted = slow_average("single_label", rows, test.values, test.groups, True)
    torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(labels, wanted)
    one_view, _ = model.predict(train, batch_size=28)
    assert one_view.shape == (60, 3) and one_view.min() < 0  # scores, as they are


def test_a_video_that_is_replaced_counts_once(tiny_video_encoder, clip_classification):
    train, test = clip_classification
    model = build_model(tiny_video_encoder, train, HeadConfig(), seed=0)
    whole, _ = model.predict(test, batch_size=64)
    fetch = test.fetch  # as a dataset does where video 5 cannot be read
    test.fetch = lambda index, *rest: fetch(torch.where((index >= 15) & (index < 18), index + 3, index))
    found, labels = model.predict(test, batch_size=64)
    kept = [video for video in range(30) if video != 5]
    torch.testing.assert_close(found, whole[kept])
    assert torch.equal(labels, test.values[::3][kept])
    assert len(extract(tiny_video_encoder, test)) == 87


def test_a_limit_counts_videos_and_keeps_all_their_views(clip_classification):
    small = thin_out(clip_classification[1], 4)
    assert small.places.tolist() == [v * 3 + k for v in (0, 10, 19, 29) for k in range(3)]
    assert small.views == 3 and thin_out(clip_classification[1], 30) is clip_classification[1]
    assert (
        label_of_views("ridge", small) == "ridge, 3 views"
        and label_of_views("ridge", clip_classification[0]) == "ridge"
    )
