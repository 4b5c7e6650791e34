"""scores.json and the table."""

import json

import pytest

from mmssl.errors import MmsslError
from mmssl.evaluation.scores import Score, table, to_scores, write_scores


def test_spreads_stand_beside_their_metric():
    rows = to_scores("knn", "task", "random", {"accuracy@5": 0.5, "accuracy@5/spread": 0.1, "accuracy@9": 0.4})
    assert [(r.metric, r.value, r.spread) for r in rows] == [("accuracy@5", 0.5, 0.1), ("accuracy@9", 0.4, None)]


def test_new_answers_replace_old_ones_and_the_rest_stays(tmp_path):
    first = [Score("ridge", "state", "pretrained", "r2", 0.1), Score("ridge", "state", "random", "r2", 0.2)]
    write_scores(tmp_path, first, {"model": 0.5})
    path = write_scores(tmp_path, [Score("ridge", "state", "pretrained", "r2", 0.3, 0.01)])
    held = json.loads(path.read_text())
    assert {(r["encoder"], r["value"], r["spread"]) for r in held["rows"]} == {
        ("random", 0.2, None),
        ("pretrained", 0.3, 0.01),
    }
    assert held["reconstruction"] == {"model": 0.5}
    assert set(held["rows"][0]) == {"evaluator", "target", "encoder", "metric", "value", "spread", "higher_is_better"}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "scores.json").write_text("{")
    with pytest.raises(MmsslError, match=r"scores\.json is not valid JSON"):
        write_scores(tmp_path, [])


def test_table_is_aligned_and_stars_the_best():
    text = table(
        [
            Score("ridge", "state", "pretrained", "r2", 0.5, 0.01),
            Score("ridge", "state", "random", "r2", 0.25),
            Score("knn", "state", "pretrained", "error", 0.5, None, False),
            Score("knn", "state", "random", "error", 0.25, None, False),
        ]
    ).splitlines()
    assert text[0].split() == ["evaluator", "target", "metric", "pretrained", "random"]
    assert text[2].split() == ["ridge", "state", "r2", "0.500", "±", "0.010", "*", "0.250"]
    assert text[3].split() == ["knn", "state", "error", "0.500", "0.250", "*"]
    assert text[2].index("0.250") == text[3].index("0.250") == text[0].index("random")
