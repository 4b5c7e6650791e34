"""`mmssl probe` from a run folder to its scores.json."""

import json

import numpy as np
import pytest

from mmssl.errors import MmsslError
from mmssl.evaluation.knn import KnnConfig
from mmssl.evaluation.probe import parse_question, probe
from mmssl.registry import EVALUATORS


def test_a_run_is_judged_on_its_own_data_beside_random_and_pixels(run_folder, capsys):
    rows = probe(
        str(run_folder), evaluators=("ridge:grid2", "knn"), options=("knn.k=[1,3]",), random_seeds=2, device="cpu"
    )
    out = capsys.readouterr().out
    assert "ridge grid2" in out and "best_interpolation" in out
    held = json.loads((run_folder / "scores.json").read_text())
    assert len(held["rows"]) == len(rows) == 9  # three encoders, three metrics
    assert {r["encoder"] for r in held["rows"]} == {"pretrained", "random", "pixels"}
    assert {r["evaluator"] for r in held["rows"]} == {"ridge grid2", "knn"}
    assert all((r["spread"] is None) == (r["encoder"] != "random") for r in held["rows"])
    assert held["reconstruction"]["model"] > 0 and "best_interpolation" in held["reconstruction_explained"]
    features = np.load(run_folder / "figures" / "features.npz")
    assert features["image"].shape[1:] == (16, 16, 3) and features["tokens"].shape[1:] == (4, 4, 32)
    assert features["random"].shape == features["tokens"].shape
    assert np.load(run_folder / "figures" / "reconstruction.npz")["masked"].dtype == np.uint8


def test_colours_are_easy_for_pixels_and_other_data_may_be_given(run_folder, picture_folder):
    rows = probe(
        str(run_folder / "export"), data=(str(picture_folder),), evaluators=("logistic",), quiet=True, device="cpu"
    )
    assert {r.encoder: r.value for r in rows}["pixels"] == 1.0
    assert not (run_folder / "export" / "scores.json").exists()


def test_few_labels_are_another_question(run_folder):
    rows = probe(
        str(run_folder),
        evaluators=("ridge",),
        labels_per_class=3,
        draws=2,
        pixels=False,
        reconstruction=False,
        quiet=True,
    )
    assert {r.evaluator for r in rows} == {"ridge, 3 per class"} and all(r.spread is not None for r in rows)


def test_settings_reach_their_evaluator():
    question = parse_question("knn:grid4", {"seed": 3}, ("knn.k=[2]", "ridge.folds=2"))
    assert question.config == KnnConfig(pooling="grid4", seed=3, k=(2,)) and question.label == "knn grid4"


def test_every_evaluator_has_settings_and_a_name():
    assert {"attentive", "finetune", "knn", "linear", "logistic", "ridge"} <= set(EVALUATORS.names())
    for name in EVALUATORS.names():
        assert parse_question(name, {"draws": 2}).config.draws == 2


@pytest.mark.parametrize(
    "change, words",
    [
        ({"evaluators": ("rigde",)}, "did you mean 'ridge'"),
        ({"evaluators": ("ridge:grid5",)}, "pooling"),
        ({"options": ("ridge.alpha=3",)}, "alphas"),
        ({"options": ("ridge",)}, "EVALUATOR.SETTING=VALUE"),
        ({"target": "clas"}, "class"),
        ({"device": "tpu"}, "device"),
        ({"random_seeds": 0}, "random_seeds"),
        ({"limit": 0}, "limit"),
    ],
)
def test_wrong_input_is_one_sentence(run_folder, change, words):
    with pytest.raises(MmsslError, match=words):
        probe(str(run_folder), **{"evaluators": ("ridge",), "quiet": True, **change})


def test_weights_without_data_say_what_to_give(run_folder):
    with pytest.raises(MmsslError, match="--data"):
        probe(str(run_folder / "export"), quiet=True)
