"""`mmssl trajectories`: a run is judged, its report shows it, and wrong input is said in one sentence."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mmssl.cli import main
from mmssl.data.trajectory_files import Trajectory
from mmssl.data.trajectory_writing import write_trajectories
from mmssl.errors import MmsslError
from mmssl.report.html import write_report
from mmssl.report.trajectories import Judged, read_trajectories, trajectory_headline
from mmssl.trajectories import Acts, Held, trajectories, words_of

sys.path.append(str(Path(__file__).parent))  # tests are imported from their files, not as a package

from trajectory_worlds import TASK, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return small_run(tmp_path_factory.mktemp("trajectories"))


HELD, ACTS = Held(windows=200, specialist_steps=100), Acts(rollouts=3, factors=(0.5, 1.0), film=False)


@pytest.fixture(scope="module")
def found(run):
    return trajectories(run, held=HELD, acts=ACTS, device="cpu", quiet=True)


def test_it_is_judged_by_all_that_masks_make_of_it(run, found):
    assert json.loads((run / "trajectories.json").read_text()) == found
    assert list(found["held_out"]) == ["bc", "rcbc", "forward_dynamics", "inverse_dynamics"]
    for row in found["held_out"].values():
        assert set(row["errors"]) == {"model", "specialist", "copy", "mean"}
        assert row["errors"]["model"] == pytest.approx(np.mean(row["each"]["model"]))
    assert found["held_out"]["bc"]["errors"]["model"] < 0.5, "it learned something"
    assert len(found["held_out"]["forward_dynamics"]["each"]["model"]) == 4


def test_it_acts_beside_random_actions_and_the_demonstrations(found):
    rows = found["acting"][TASK]
    assert list(rows) == ["random", "bc", "rcbc 0.5", "rcbc 1", "demonstrations"]
    assert len(rows["bc"]["returns"]) == 3 and len(rows["demonstrations"]["returns"]) == 8
    assert rows["bc"]["return"] == pytest.approx(np.mean(rows["bc"]["returns"])) and rows["bc"]["success"] is None
    assert rows["rcbc 1"]["target_return"] > rows["rcbc 0.5"]["target_return"]
    text = words_of(found)
    assert "behaviour cloning" in text and TASK in text and "specialist" in text


def test_the_report_shows_it(run, found):
    page = write_report(run).read_text()
    assert "<h1>Its actions miss" in page or "<h1>Normalised score" in page
    for words in (
        "judged by what is hidden",
        "In the environment",
        "the demonstrations",
        "Filled in, beside the truth",
    ):
        assert words in page
    assert f"{found['held_out']['bc']['windows']:,} windows" in page
    assert page.count("state of gym/InvertedPendulum-v5, episode") == 1


def test_same_seed_same_numbers(run, found):
    again = trajectories(run, held=HELD, acts=ACTS, device="cpu", quiet=True)
    assert again == found


def test_the_headline_is_of_the_best_way_to_act(found, tmp_path):
    def row(success):
        return {"returns": [1.0], "lengths": [2], "return": 1.0, "success": success, "successes": [], "score": None}

    two = {
        "acting": {
            f"a/{k}": {"random": row(0.0), "bc": row(0.2), "rcbc 1": row(best)} for k, best in ((0, 0.7), (1, 0.9))
        }
    }
    headline = trajectory_headline(Judged(tmp_path, {**found, **two}))
    assert headline.title == "80% success by mask alone" and headline.tone == "good"
    assert "In 2 tasks, on new starts, random actions get 0% success." in headline.sentence


def test_a_damaged_file_is_named(run, found, tmp_path):
    (tmp_path / "trajectories.json").write_text('{"held_out": {}}')
    with pytest.raises(MmsslError, match="it lacks held_out, acting or filled"):
        read_trajectories(tmp_path)
    assert read_trajectories(tmp_path / "nowhere") is None


def test_the_verb(run, capsys):
    main(["trajectories", str(run), "--rollouts", "0", "--no-specialists", "--windows", "50", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "squared error on held-out windows" in said and "report.html" in said


def test_wrong_input(run, tmp_path):
    other = {"state": np.zeros((9, 6), np.float32), "action": np.zeros((9, 1), np.float32)}
    rows = [Trajectory({**other, "reward": np.zeros((9, 1), np.float32)}, {}, "own/other", k, f"{k}") for k in range(4)]
    write_trajectories(tmp_path, rows, "own/other-v0")
    (tmp_path / "mae").mkdir()
    (tmp_path / "mae/config.yaml").write_text("method: {name: mae}\n")
    for arguments, said in (
        ({"run": tmp_path}, "is no run folder; give one of `mmssl pretrain` with the method mtm"),
        ({"run": tmp_path / "mae"}, "is a run of mae; `mmssl trajectories` judges runs of mtm"),
        ({"data": (str(tmp_path / "own/other-v0"),)}, "'state' of dataset .* has 6 numbers"),
        ({"task": ("gym/Hopper-v5",)}, "'state' of 4 numbers, and gym/Hopper-v5 shows 11"),
        ({"task": ("gym/Pendulum-v9",)}, "Pendulum"),
        ({"acts": Acts(rollouts=-1)}, "rollouts and seed 0 or more, got 4000, -1 and 0"),
        ({"acts": Acts(rollouts=1, history=9)}, "history must be from 1 to 4"),
    ):
        with pytest.raises(MmsslError, match=said):
            trajectories(**{"run": run, "device": "cpu", "quiet": True, **arguments})
