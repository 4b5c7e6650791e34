import json
import math
from pathlib import Path

import pytest

from mmssl.errors import MmsslError
from mmssl.report.reading import group_scores, read_run


def test_a_cut_last_line_is_ignored_and_a_broken_one_before_is_not(run: Path):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 101, "lo')
    assert read_run(run).metrics[-1]["step"] == 100
    with open(run / "metrics.jsonl", "a") as file:
        file.write('\n{"step": 102, "loss": 1.0}\n')
    with pytest.raises(MmsslError, match="line 101"):
        read_run(run)


def test_steps_logged_twice_after_a_resume_count_once(run: Path):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 50, "loss": 7.0}) + "\n")
    steps, losses = read_run(run).series("loss")
    assert steps == list(range(1, 101))
    assert losses[49] == 7.0


def test_series_leaves_out_what_is_no_number(run: Path):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 101, "loss": math.nan}) + "\n" + json.dumps({"step": 102, "note": "x"}) + "\n")
    assert read_run(run).series("loss")[0][-1] == 100


def test_rows_of_one_question_are_joined_in_a_fixed_order():
    row = {"evaluator": "knn", "target": "task", "metric": "accuracy", "higher_is_better": True, "spread": None}
    given = [{**row, "encoder": e, "value": v} for e, v in (("timm", 0.1), ("pixels", 0.2), ("pretrained", 0.3))]
    (probe,) = group_scores(given)
    assert list(probe.scores) == ["pretrained", "pixels", "timm"]
    assert probe.margin("pixels") == pytest.approx(0.1)
    assert probe.margin("random") is None


def test_margin_is_positive_when_better_also_for_errors():
    row = {"evaluator": "ridge", "target": "state", "metric": "mse", "higher_is_better": False}
    (probe,) = group_scores([{**row, "encoder": e, "value": v} for e, v in (("pretrained", 0.2), ("random", 0.5))])
    assert probe.margin("random") == pytest.approx(0.3)


def test_a_row_that_is_no_score_is_named():
    with pytest.raises(MmsslError, match="not a score"):
        group_scores([{"evaluator": "knn"}])
