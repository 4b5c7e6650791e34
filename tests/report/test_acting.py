"""What the page says about a model that acted."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmssl.errors import MmsslError
from mmssl.report.acting import acting_headline, acting_parts, read_acting, share, wilson


def write(run: Path, own: int, tries: int = 20) -> Path:
    """A run whose model did `own` of its tries, its expert all, and a random policy none."""
    done = {"model": own, "expert": tries, "random": 0}
    skill = {
        n: {"successes": [i < k for i in range(tries)], "lengths": [50 + i for i in range(tries)]}
        for n, k in done.items()
    }
    rng = np.random.default_rng(0)
    filled = {f"suite/task/{n}": rng.random((30, w)) for n, w in (("state", 5), ("action", 4), ("policy", 4),
              ("inverse", 4), ("forward", 5), ("waypoints", 5), ("dream", 5))}  # fmt: skip
    errors = dict.fromkeys(("policy", "forward", "inverse", "waypoints", "dream", "mean action", "state held"), 0.5)
    (run / "figures").mkdir(parents=True)
    np.savez(run / "figures" / "filled.npz", **filled)
    content = {"settings": {"horizon": 200}, "skills": {"suite/task": skill}, "filled": {"errors": errors}}
    (run / "act.json").write_text(json.dumps(content))
    return run


@pytest.mark.parametrize(
    ("done", "tries", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval(done: int, tries: int, low: float, high: float):
    # The last is Newcombe's example (1998, Statistics in Medicine 17, method 3).
    assert wilson(done, tries) == pytest.approx((low, high), abs=1e-4)


def test_shares_are_said_with_their_interval():
    assert share([True] * 5 + [False] * 5) == "50% (24 to 76)"


def test_a_win_is_called_one_and_a_loss_too(tmp_path: Path):
    good, bad = (acting_headline(read_acting(write(tmp_path / str(own), own))) for own in (19, 1))
    assert good.tone == "good" and "95%" in good.title and "19" not in good.title
    assert bad.tone == "bad"


def test_a_demo_shows_what_stands_in_its_folder_of_trajectories(tmp_path: Path):
    write(tmp_path / "trajectories", 15)
    parts = acting_parts(read_acting(tmp_path))
    assert [name for name, _ in parts["rows"]] == ["task", "all of them"]
    assert parts["rows"][0][1][:2] == ["75% (53 to 89)", "100% (84 to 100)"]
    assert len(parts["fillings"]) == 1 and "<svg" in parts["fillings"][0][1]
    assert parts["films"] == []


def test_a_run_that_never_acted_has_no_such_part(tmp_path: Path):
    assert acting_parts(read_acting(tmp_path)) is None


def test_a_damaged_file_is_named(tmp_path: Path):
    (tmp_path / "act.json").write_text('{"skills":')
    with pytest.raises(MmsslError, match=r"act\.json"):
        read_acting(tmp_path)
