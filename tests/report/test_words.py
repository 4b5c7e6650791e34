"""The sentences say what the numbers say."""

from pathlib import Path

import pytest

from mmssl.report import words
from mmssl.report.reading import Probe, RunFiles, Score


def probe(pretrained: float, random: float, pixels: float = 0.5, spread: float | None = None, higher: bool = True):
    values = {"pretrained": pretrained, "random": random, "pixels": pixels}
    return Probe("ridge", "state", "r2", higher, {name: Score(v, spread) for name, v in values.items()})


def judged(model: float, best: float = 1.0) -> RunFiles:
    return RunFiles(Path("run"), reconstruction={"model": model, "best_interpolation": best})


@pytest.mark.parametrize(
    ("model", "title", "tone"),
    [
        (0.6, "40% less error than the best interpolation", "good"),
        (1.0, "As good as the best interpolation, no better", "even"),
        (1.25, "Not there yet: 25% more error than the best interpolation", "bad"),
        (3.25, "Not there yet: 3.2 times the error of the best interpolation", "bad"),
    ],
)
def test_headline(model: float, title: str, tone: str):
    headline = words.headline(judged(model))
    assert (headline.title, headline.tone) == (title, tone)
    assert f"{model:.2f} times" in headline.sentence


def test_headline_takes_the_best_filler_where_none_is_named():
    run = RunFiles(Path("run"), reconstruction={"model": 0.5, "nearest": 2.0, "linear": 1.0})
    assert words.error_ratio(run) == 0.5


def test_norm_pix_models_are_judged_on_normalised_patches():
    mse = {"model": 2.0, "best_interpolation": 1.0}
    explained = {"model": 0.6, "best_interpolation": 0.5}
    raw = RunFiles(Path("run"), {"method": {"norm_pix": False}}, reconstruction=mse, explained=explained)
    assert words.error_ratio(raw) == 2.0
    run = RunFiles(Path("run"), {"method": {"norm_pix": True}}, reconstruction=mse, explained=explained)
    assert words.error_ratio(run) == pytest.approx(0.8)
    assert "without their own mean and contrast" in words.headline(run).sentence


def test_headline_of_a_rising_loss_does_not_call_it_a_fall():
    metrics = [{"step": s, "loss": float(s)} for s in range(1, 30)]
    assert "did not fall" in words.headline(RunFiles(Path("run"), metrics=metrics)).sentence


def test_verdict_below_random_is_bad_and_says_so():
    verdict = words.verdict(probe(0.3, 0.44))
    assert verdict.tone == "bad"
    assert "below a randomly initialised encoder (0.440)" in verdict.text


def test_verdict_above_random_but_below_pixels_is_no_win():
    verdict = words.verdict(probe(0.46, 0.44, pixels=0.56))
    assert verdict.tone == "even"
    assert "above a randomly initialised encoder" in verdict.text and "below raw pixels" in verdict.text


def test_verdict_within_the_spread_is_level():
    assert "level with a randomly" in words.verdict(probe(0.46, 0.44, spread=0.03)).text
    assert "above a randomly" in words.verdict(probe(0.46, 0.44, spread=0.01)).text


def test_smaller_is_better_for_errors():
    assert words.verdict(probe(0.2, 0.4, higher=False)).tone == "good"


@pytest.mark.parametrize(
    ("probes", "tone", "part"),
    [
        ([probe(0.6, 0.4), probe(0.5, 0.4)], "good", "in all 2 frozen-feature probes."),
        ([probe(0.6, 0.4), probe(0.45, 0.4)], "even", "in all 2 frozen-feature probes; it is below raw pixels in 1"),
        ([probe(0.3, 0.4), probe(0.2, 0.4)], "bad", "in none of the 2 frozen-feature probes"),
        ([probe(0.6, 0.4), probe(0.2, 0.4, 0.1)], "even", "in 1 of 2 frozen-feature probes and is below in 1 of them."),
        ([probe(0.4, 0.4)], "even", "level with a random one"),
        ([probe(0.1, 0.4)], "bad", "in no frozen-feature probe"),
    ],
)
def test_summary_counts(probes: list, tone: str, part: str):
    summary = words.probe_summary(probes)
    assert summary.tone == tone and part in summary.text


def test_no_comparison_no_words():
    alone = Probe("knn", "task", "accuracy", True, {"pretrained": Score(0.5)})
    assert words.verdict(alone) is None and words.probe_summary([alone]) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.14, "2.1 s"), (42, "42 s"), (61, "1 min 01 s"), (3780, "1 h 03 min"), (59.9, "1 min 00 s")]
)
def test_duration(seconds: float, text: str):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (0.31, None, "0.310"),
        (0.55, 0.012, "0.550 ± 0.012"),
        (0.0061, None, "0.0061"),
        (0.0, None, "0.000"),
        (-2e-16, None, "0.000"),
        (144.6436, 2.25, "144.6 ± 2.2"),
    ],
)
def test_score(value: float, spread: float | None, text: str):
    assert words.score(value, spread) == text


def test_scores_beside_another_of_the_same_probe_do_not_count_again():
    values = {"pretrained": Score(0.6), "random": Score(0.4)}
    probes = [Probe("knn", "labels", name, True, values) for name in ("map", "auc", "dprime")]
    assert words.probe_summary(probes).text == "The pretrained encoder beats a random one in the frozen-feature probe."
    assert [words.metric(p.metric) for p in probes] == ["mAP", "mAUC", "d′"]
