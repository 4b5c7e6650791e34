"""The page of a control run: right numbers, honest words, whole at every stage of a run."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.stats import trim_mean

from mmssl.errors import MmsslError
from mmssl.report.control import TAIL, final_scores, write_report
from mmssl.report.curves import Bundle, bundles_png, draw_bundles
from mmssl.report.figures import PRINT
from mmssl.report.html import report
from mmssl.report.seeds import is_control_run, read_control_run


def write_seed(folder: Path, seed: int, *, steps: int = 20_000, success: bool = False, every: int = 1000) -> np.ndarray:
    """A seed's run folder; returns the mean returns of its evaluations."""
    rng = np.random.default_rng(seed)
    (folder / "figures").mkdir(parents=True)
    at = np.arange(0, steps + 1, every)
    level = 6000 * (1 - np.exp(-at / 8000)) * (1 + 0.1 * rng.normal()) - 300
    returns = level[:, None] + 150 * rng.normal(size=(len(at), 5))
    lines = [
        {"step": int(s), "returns": r.tolist(), "lengths": [1000] * 5, "seconds": float(s)}
        for s, r in zip(at, returns, strict=True)
    ]
    for line in lines if success else []:
        line["successes"] = (rng.random(5) < line["step"] / 40_000).tolist()
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    logged = [
        {"step": int(s), "episodes": 1, "steps_per_second": 250 + float(rng.normal()), "return": float(r - 200),
         "critic_loss": float(np.exp(rng.normal()))}
        for s, r in zip(at[1:], level[1:], strict=True)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
    return returns.mean(1)


def write_film(folder: Path, frames: int = 6) -> None:
    pictures = [Image.fromarray(np.full((32, 32, 3), 40 * k, np.uint8)) for k in range(frames)]
    pictures[0].save(folder / "policy.webp", "WEBP", save_all=True, append_images=pictures[1:])
    pictures[0].save(folder / "policy.png")
    (folder / "policy.mp4").write_bytes(b"film")
    (folder / "policy.json").write_text(json.dumps({"return": 5123.4, "length": 1000, "success": None}))


def write_control_run(path: Path, seeds=(0, 1, 2), **settings) -> tuple[Path, np.ndarray]:
    """A run of several seeds, and the mean returns of its evaluations (seeds, T)."""
    returns = [write_seed(path / f"seed-{seed}", seed, **settings) for seed in seeds]
    config = {
        "algorithm": {"name": "td3", "lr": 3e-4},
        "task": "gym/HalfCheetah-v5",
        "steps": 20_000,
        "seeds": list(seeds),
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (path / "command.txt").write_text("mmssl rl td3 --task gym/HalfCheetah-v5 --seeds 0 1 2 --steps 20_000\n")
    return path, np.array(returns)


@pytest.fixture
def control_run(tmp_path: Path) -> tuple[Path, np.ndarray]:
    return write_control_run(tmp_path / "runs/cheetah")


class _Page(HTMLParser):
    """Collects what a browser would fetch, and checks that tags close in order."""

    VOID = {"meta", "link", "img", "br", "source"}

    def __init__(self):
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data.strip())


def parsed(path: Path) -> tuple[_Page, str]:
    page, text = _Page(), path.read_text()
    page.feed(text)
    assert page.open == [] and all(link.startswith(("data:", "#")) for link in page.links)
    return page, text


def row(page: _Page, name: str, cells: int) -> list[str]:
    """The cells of a table's row behind its name."""
    start = page.cells.index(name) + 1
    return page.cells[start : start + cells]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, np.ndarray, Path]:
    """A run that is done, with a film, its returns, and its page."""
    path, returns = write_control_run(tmp_path_factory.mktemp("whole") / "cheetah")
    write_film(path / "seed-1/figures")
    return path, returns, write_report(path)


def test_scores_are_those_of_the_files(whole):
    _, returns, report_page = whole
    page, text = parsed(report_page)
    for seed in range(3):
        expected = [returns[seed, -1], returns[seed, -TAIL:].mean(), returns[seed].max()]
        assert row(page, f"seed {seed}", 3) == [f"{value:,.0f}" for value in expected]
    middle = trim_mean(returns[:, -1], 0.25)
    assert row(page, "interquartile mean", 1) == [f"{middle:,.0f}"] and f"<h1>Return {middle:,.0f} after" in text
    assert "best (optimistic)" in page.cells and "it was picked because it was high" in text


def test_page_holds_every_part(whole):
    path, _, report_page = whole
    _, text = parsed(report_page)
    for title in ("Learning curve", "What the policy does", "Final scores", "Training", "Run it again, and see it"):
        assert f"<h2>{title}</h2>" in text
    assert text.count("<svg ") == 1 + 3  # learning; training return, loss, speed
    assert "critic loss" in text and "data:image/webp" in text and "seed-1/figures/policy.mp4" in text
    assert f"mmssl rl play {path}" in text and "--seeds 0 1 2" in text and "Not finished" not in text
    assert "Success rate" not in text and "name: td3" in text and "of 20,000 a seed" in text


def test_success_is_shown_where_the_task_has_it(tmp_path):
    path, _ = write_control_run(tmp_path / "arm", success=True)
    page, text = parsed(write_report(path))
    lines = [(path / f"seed-{s}/evaluations.jsonl").read_text().splitlines() for s in range(3)]
    rates = [np.mean(json.loads(line[-1])["successes"]) for line in lines]
    assert f"<h1>Success in {100 * np.mean(rates):.0f}% of episodes after 20,000 steps</h1>" in text
    assert "Success rate of evaluations" in text and row(page, "seed 0", 4)[3] == f"{100 * rates[0]:.0f}%"


def test_an_unfinished_run_says_so_and_counts_what_all_seeds_have(control_run):
    path, returns = control_run
    lines = (path / "seed-2/evaluations.jsonl").read_text().splitlines(keepends=True)
    (path / "seed-2/evaluations.jsonl").write_text("".join(lines[:8]) + lines[8][:20])  # a kill cut the last line
    (path / "seed-2/metrics.jsonl").write_text("")
    (path / "seed-1/evaluations.jsonl").unlink()
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"seeds": [0, 1, 2, 9]}))
    page, text = parsed(write_report(path))
    assert "Not finished: of 20,000 environment steps seed 2 at 7,000." in text and "Not begun: seed 9." in text
    assert "Seed 1 has not been evaluated yet" in text and "What is said of all seeds is of step 7,000" in text
    assert row(page, "seed 0", 1) == [f"{returns[0, 7]:,.0f}"] and "Go on, and see it" in text
    assert "2 seeds have no interval" in text.lower() and "95% interval" not in page.cells


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "new/seed-0").mkdir(parents=True)
    _, text = parsed(write_report(tmp_path / "new"))
    assert "No evaluation has been made yet." in text and "Final scores" not in text


def test_one_seed_is_said_to_have_no_interval(tmp_path):
    path, _ = write_control_run(tmp_path / "one", seeds=(4,))
    _, text = parsed(write_report(path))
    assert "One seed has no interval" in text and "One seed says little" in text and "95% interval" not in text


def test_broken_simulations_are_counted(control_run):
    path, _ = control_run
    with (path / "seed-1/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20_001, "broken": 3}) + "\n")
    assert "broke down 3 times in seed 1" in write_report(path).read_text()


def test_the_verb_knows_control_runs_and_compares_them(control_run, tmp_path, capsys):
    path, _ = control_run
    other, _ = write_control_run(tmp_path / "runs/other", seeds=(5, 6, 7), every=2000)
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(config | {"algorithm": {"name": "sac"}}))
    report((path, other))
    said = capsys.readouterr().out
    assert "Return " in said and str(tmp_path / "runs/comparison.html") in said
    page, text = parsed(tmp_path / "runs/comparison.html")
    ends = [[final_scores(seed, 20_000)["last"] for seed in read_control_run(p).seeds] for p in (path, other)]
    wins = np.mean([a > b for a in ends[0] for b in ends[1]])
    assert row(page, "cheetah over other", 2) == ["20,000", f"{wins:.2f}"]
    assert row(page, "algorithm.name", 2) == ["td3", "sac"] and "seeds" not in page.cells[page.cells.index("key") :]
    assert text.count("<svg ") == 1


def test_other_runs_are_not_compared_with_control_runs(control_run, run):
    with pytest.raises(MmsslError, match="compared with one another"):
        report((control_run[0], run))


def test_the_folder_of_a_seed_is_a_run_of_one(control_run, tmp_path):
    seed = control_run[0] / "seed-1"
    assert is_control_run(seed) and [s.seed for s in read_control_run(seed).seeds] == [1]
    assert not is_control_run(tmp_path / "nothing") and not is_control_run(control_run[0].parent)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"step": 1, "returns": [NaN]}\n', "no finite returns"),
        ('{"step": 1}\n', "no finite returns"),
        ("{\n{}\n", "line 1"),
    ],
)
def test_damaged_evaluations_are_named(control_run, line, words):
    file = control_run[0] / "seed-0/evaluations.jsonl"
    file.write_text(line)
    with pytest.raises(MmsslError, match=words) as error:
        write_report(control_run[0])
    assert str(file) in str(error.value)


def test_a_folder_without_seeds_is_no_control_run(tmp_path):
    with pytest.raises(MmsslError, match="no seed-<number> folder"):
        read_control_run(tmp_path)


def test_the_middle_ends_where_the_first_seed_ends():
    bundle = Bundle("x", (([0, 1, 2], [0.0, 1.0, 2.0]), ([0, 1], [2.0, 3.0]), ([0, 1, 2], [4.0, 5.0, 6.0])))
    assert bundle.steps == [0, 1] and bundle.middle().value.tolist() == [2.0, 3.0]
    axes = draw_bundles([bundle], title="x", palette=PRINT).axes[0]
    lengths = sorted(len(line.get_xdata()) for line in axes.lines)
    assert lengths == [2, 2, 3, 3] and len(axes.collections) == 1  # three seeds and their middle, and the band
    two = Bundle("y", bundle.seeds[:2])
    assert not draw_bundles([two], title="y", palette=PRINT).axes[0].collections  # no interval, no band


def test_smoothing_keeps_a_straight_line_and_what_all_have():
    straight = Bundle("x", tuple((list(range(n)), [2.0 * s for s in range(n)]) for n in (100, 60)))
    for steps, values in straight.smoothed().seeds:
        assert list(steps) == list(range(60)) and np.allclose(values[3:-3], 2.0 * np.arange(60)[3:-3])


def test_curves_for_papers_are_pictures():
    series = ([0, 10], [0.0, 1.0])
    assert bundles_png([Bundle("x", (series,))], title="x").startswith(b"\x89PNG")


def test_text_from_files_is_escaped(control_run):
    path, _ = control_run
    config = {"algorithm": {"name": "<script>"}, "task": "<img src=x>", "steps": 20_000}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    for seed in range(3):
        (path / f"seed-{seed}/metrics.jsonl").unlink()  # fewer curves to draw
    _, text = parsed(write_report(path))
    assert not re.search(r"<script|<img src=x", text)
