"""The demo for real: every stage, tiny, as `mmssl demo --budget 30s` runs it."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mmssl.config import load_config
from mmssl.demo import demo
from mmssl.demo_plan import ARMS, SKILLS, WALKERS, Clock, Plan, parse_budget
from mmssl.errors import MmsslError
from mmssl.training.pretrain import PretrainConfig

STAGES = ["record", "pretrain", "judge", "experts", "imitate", "act", "report"]


def type_demo(folder: Path, *words: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "MMSSL_CACHE": str(folder / "cache"), "MMSSL_RUNS": str(folder / "runs")}
    command = [sys.executable, "-m", "mmssl.cli", "demo", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess, float]:
    """A finished demo: its folder, what it printed, and the processor seconds that it took."""
    folder = tmp_path_factory.mktemp("demo")
    began = _processor_seconds()
    done = type_demo(folder, "--budget", "30s")
    return folder, done, _processor_seconds() - began


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_every_stage_is_done(finished):
    folder, done, _ = finished
    assert done.returncode == 0, done.stderr[-2000:]
    run = folder / "runs" / "demo"
    assert list(json.loads((run / "timing.json").read_text())) == [
        "record",
        "pretrain",
        "judge",
        "experts",
        "imitate",
        "act",
    ]
    scores = json.loads((run / "scores.json").read_text())
    assert {row["encoder"] for row in scores["rows"]} == {"pretrained", "random", "pixels"}
    assert {row["target"] for row in scores["rows"]} == {"state", "task"}
    assert {"model", "best_interpolation"} <= set(scores["reconstruction"])
    assert (run / "export" / "model.safetensors").is_file()


def test_it_says_the_stages_and_the_path(finished):
    folder, done, _ = finished
    for stage in (
        "[1/7] record",
        "[2/7] pretrain",
        "[3/7] judge",
        "[4/7] experts",
        "[5/7] imitate",
        "[6/7] act",
        "[7/7] report",
    ):
        assert stage in done.stdout
    assert done.stdout.rstrip().endswith(str(folder / "runs" / "demo" / "report.html"))


def test_report_shows_every_part(finished):
    text = (finished[0] / "runs" / "demo" / "report.html").read_text()
    for title in ("What it reconstructs", "What the frozen features are worth", "What its patches have in common"):
        assert f"<h2>{title}</h2>" in text
    for title in ("What it does when it acts", "One model, four masks"):
        assert f"<h2>{title}</h2>" in text
    for title in ("Training", "Where the time went", "Run it again"):
        assert f"<h2>{title}</h2>" in text
    assert "mmssl demo --budget 30s" in text


def test_the_model_acts_beside_the_expert_and_a_random_policy(finished):
    run = finished[0] / "runs" / "demo" / "trajectories"
    found = json.loads((run / "act.json").read_text())
    assert list(found["skills"]) == list(Plan(30).skills)
    for policies in found["skills"].values():
        for name in ("model", "expert", "random"):
            assert len(policies[name]["successes"]) == len(policies[name]["lengths"]) == Plan(30).tries
    assert set(found["filled"]["errors"]) >= {"policy", "forward", "inverse", "waypoints", "dream"}


def test_it_keeps_to_its_budget(finished):
    # Processor time, since seconds on the wall would speak of whatever else the machine is doing: 20 to 25 s when it is
    # idle, and up to three times as much when other processes share its cores.
    assert finished[2] < 4 * 30


def test_the_same_command_uses_what_is_there(finished):
    folder, _, _ = finished
    run = folder / "runs" / "demo"
    config = load_config(PretrainConfig, run / "config.yaml")
    recordings = {p: p.stat().st_mtime_ns for p in (folder / "cache").rglob("main_data.hdf5")}
    again = type_demo(folder, "--budget", "30s")
    assert again.returncode == 0, again.stderr[-2000:]
    assert load_config(PretrainConfig, run / "config.yaml") == config
    assert f"{config.loop.steps:,} steps, going on" in again.stdout and "done before" in again.stdout
    assert recordings == {p: p.stat().st_mtime_ns for p in (folder / "cache").rglob("main_data.hdf5")}


def test_another_demo_in_the_folder_is_a_clear_error(finished):
    done = type_demo(finished[0], "--budget", "40s")
    assert done.returncode == 2
    assert "other settings" in done.stderr and "--overwrite" in done.stderr and "Traceback" not in done.stderr


def test_overwrite_deletes_no_folder_that_is_no_run(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(MmsslError, match="holds no run"):
        demo(run=tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").is_file()


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("6m", 360), ("1.5h", 5400), ("45", 45), ("2 min", 120)])
def test_budget(text: str, seconds: float):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3m", "5x", "10s"])
def test_wrong_budget_is_a_clear_error(text: str):
    with pytest.raises(MmsslError, match="--budget must be"):
        parse_budget(text)


@pytest.mark.parametrize("budget", [30, 119, 120, 360, 3600])
def test_stages_fit_into_the_budget(budget: float):
    plan = Plan(budget)
    assert plan.pretraining + plan.judging + plan.imitating + plan.acting < 0.9 * budget  # the rest is for recording
    assert min(plan.episodes, plan.shown) >= 5  # so that at least one in five can be held out
    assert {task.split("/")[0] for task in plan.tasks} >= {"metaworld", "dmc"}


def test_clock_keeps_the_stages_of_an_interrupted_demo(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "timing.json").write_text('{"record": 5.0, "pretrain": 9.0}')
    clock = Clock(100, ("record", "pretrain", "judge", "report"))
    clock.start("pretrain", "again")
    clock.stop()
    clock.save(tmp_path)
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert timing["record"] == 5.0 and timing["pretrain"] < 9.0 and list(timing) == ["record", "pretrain"]
    assert "[2/4] pretrain: again (100 s left)" in capsys.readouterr().out.replace("99 s", "100 s")


def test_every_task_of_the_demo_is_in_a_suite():
    from mmssl.envs.suites import expand_tasks

    assert len(expand_tasks(ARMS + WALKERS + SKILLS)) == len({*ARMS, *WALKERS, *SKILLS})
