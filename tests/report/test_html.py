"""The page: whole, self-contained, honest, and made of what is there."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmssl.errors import MmsslError
from mmssl.report.html import report, write_comparison, write_report

SECTIONS = {
    "What it reconstructs": ["figures/reconstruction.npz", "scores.json"],
    "What the frozen features are worth": ["scores.json"],
    "What its patches have in common": ["figures/features.npz"],
    "Training": ["metrics.jsonl"],
    "Where the time went": ["timing.json"],
}


class _Page(HTMLParser):
    """Collects what a browser would fetch, and checks that tags close in order."""

    VOID = {"meta", "link", "img", "br", "input", "source"}

    def __init__(self):
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(path: Path) -> tuple[_Page, str]:
    text = path.read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    return page, text


def test_page_is_self_contained(run: Path):
    page, text = parsed(write_report(run))
    assert page.links
    assert [link for link in page.links if not link.startswith(("data:", "#"))] == []
    assert re.findall(r"(?:url\(|@import)\s*['\"]?(?!#)", text) == []
    assert page.scripts == 0


def test_page_holds_every_part(run: Path):
    _, text = parsed(write_report(run))
    for title in SECTIONS:
        assert f"<h2>{title}</h2>" in text
    assert text.count("<svg ") == 2
    assert text.count("data:image/png") == 4 * 3 + 4 * 3
    assert "mmssl demo --budget 6m" in text and "mask_ratio: 0.75" in text


def test_headline_comes_first(run: Path):
    _, text = parsed(write_report(run))
    assert "<h1>33% less error than the best interpolation</h1>" in text
    assert text.index("<h1>") < text.index("<h2>")


def test_page_says_plainly_that_features_are_below_random(run: Path):
    _, text = parsed(write_report(run))
    assert "The pretrained encoder beats a random one in no frozen-feature probe." in text
    assert "are below a randomly initialised encoder (0.440)" in text


@pytest.mark.parametrize("missing", sorted({file for files in SECTIONS.values() for file in files}))
def test_parts_without_files_are_left_out(run: Path, missing: str):
    (run / missing).unlink()
    _, text = parsed(write_report(run))
    for title, files in SECTIONS.items():
        there = any((run / file).exists() for file in files)
        assert (f"<h2>{title}</h2>" in text) == there, title


def test_plain_pretraining_without_scores(run: Path):
    for name in ("scores.json", "timing.json", "command.txt", "figures/reconstruction.npz", "figures/features.npz"):
        (run / name).unlink()
    _, text = parsed(write_report(run))
    assert "the training loss fell from 1.000 to 0.0105" in text
    assert "mmssl pretrain" in text


def test_text_from_files_is_escaped(run: Path):
    (run / "config.yaml").write_text(yaml.safe_dump({"method": {"name": "<script>alert(1)</script>"}}))
    scores = json.loads((run / "scores.json").read_text())
    for row in scores["rows"]:
        row["evaluator"] = "<img src=http://x>"
    (run / "scores.json").write_text(json.dumps(scores))
    page, _ = parsed(write_report(run))
    assert page.scripts == 0
    assert [link for link in page.links if link.startswith("http")] == []


def test_same_files_give_the_same_page(run: Path):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize("values", [(-3.0, 0.4, 0.5), (0.0, 0.0, 0.0), (-0.1, -0.2, -0.3), (25.0, 31.0, 70.0)])
def test_bars_stay_inside_their_track(run: Path, values: tuple):
    scores = json.loads((run / "scores.json").read_text())
    for row, value in zip(scores["rows"], values, strict=True):
        row["value"] = value
    (run / "scores.json").write_text(json.dumps(scores))
    _, text = parsed(write_report(run))
    bars = re.findall(r'style="left:([\d.-]+)%;width:([\d.-]+)%"', text)
    assert len(bars) == 3
    for left, width in bars:
        assert float(left) >= 0 and float(width) >= 0 and float(left) + float(width) <= 100.01


def test_comparison_overlays_runs_and_names_what_differs(run: Path, make_run):
    other = make_run(run.parent / "longer", probe=(0.60, 0.44, 0.56))
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "loop": {"steps": 9000}}))
    page, text = parsed(write_comparison([run, other]))
    assert [link for link in page.links if not link.startswith(("data:", "#"))] == []
    assert "<td>loop.steps</td><td>100</td><td>9000</td>" in text
    assert '<td>0.310</td><td class="best">0.600</td>' in text
    assert text.count(">demo</text>") == 2 and text.count(">longer</text>") == 2  # legends of both curves


def test_verb_writes_one_page_a_run_and_a_comparison(run: Path, make_run, capsys: pytest.CaptureFixture):
    other = make_run(run.parent / "other")
    report((run, other), out=run.parent / "both.html")
    printed = capsys.readouterr().out
    for path in (run / "report.html", other / "report.html", run.parent / "both.html"):
        assert path.is_file() and str(path) in printed


def test_no_run_is_a_clear_error(tmp_path: Path):
    with pytest.raises(MmsslError, match="no run folder"):
        report(())
    with pytest.raises(MmsslError, match="is not a run folder"):
        write_report(tmp_path / "nothing")
    with pytest.raises(MmsslError, match="holds no run"):
        write_report(tmp_path)


def test_damaged_files_are_named(run: Path):
    (run / "figures/features.npz").write_bytes((run / "figures/features.npz").read_bytes()[:100])
    with pytest.raises(MmsslError, match=r"features\.npz"):
        write_report(run)
    (run / "figures/features.npz").unlink()
    (run / "scores.json").write_text("{")
    with pytest.raises(MmsslError, match=r"scores\.json is not valid JSON"):
        write_report(run)


def test_pictures_of_pickled_objects_are_not_opened(run: Path):
    np.savez(run / "figures/features.npz", image=np.array([{}], dtype=object), tokens=np.zeros(1))
    with pytest.raises(MmsslError, match=r"features\.npz"):
        write_report(run)
