"""Clips, pairs of frames and tracking overlays in the page."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageSequence

from mmssl.errors import MmsslError
from mmssl.report import words
from mmssl.report.figures import shrink, webp_bytes
from mmssl.report.html import write_report
from mmssl.report.reading import read_run


def smooth_clips(n: int, frames: int, size: tuple[int, int] = (24, 32), seed: int = 0) -> np.ndarray:
    """uint8 (n, T, H, W, 3): colours that differ from frame to frame, without detail that compression would lose."""
    colours = np.random.default_rng(seed).integers(0, 256, (n, frames, 1, 1, 3))
    return np.broadcast_to(colours, (n, frames, *size, 3)).astype(np.uint8).copy()


def make_clip_run(run: Path, frames: int, keys=("original", "masked", "reconstructed"), size=(24, 32), n=5) -> Path:
    arrays = {key: smooth_clips(n, frames, size, seed) for seed, key in enumerate(keys)}
    np.savez(run / "figures/reconstruction.npz", **arrays)
    config = yaml.safe_load((run / "config.yaml").read_text())
    clip = {"how": "pair", "frames": 2} if frames == 2 else {"how": "dense", "frames": frames}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "data": {"clip": clip}}))
    return run


def pictures_of(page: str, kind: str) -> list[Image.Image]:
    found = re.findall(rf'<img src="data:image/{kind};base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def section(page: str, title: str) -> str:
    return page.split(f"<h2>{title}</h2>")[1].split("</section>")[0]


def test_webp_plays_every_frame_endlessly():
    clip = smooth_clips(1, 7)[0]
    file = Image.open(io.BytesIO(webp_bytes(clip, fps=5)))
    assert file.n_frames == 7 and file.info["loop"] == 0
    shown = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(file)]
    assert file.info["duration"] == 200
    assert np.abs(np.stack(shown) - clip).max() < 12
    assert webp_bytes(clip) == webp_bytes(clip.copy())
    with pytest.raises(MmsslError, match="animation must be uint8"):
        webp_bytes(clip[0])


def test_large_clips_are_shrunk_and_small_ones_stay():
    clips = smooth_clips(2, 3, (100, 400))
    assert shrink(clips).shape == (2, 3, 40, 160, 3)
    assert np.array_equal(shrink(clips)[:, :, 0, 0], clips[:, :, 0, 0])
    assert shrink(clips[:, :, :50, :60]).shape == (2, 3, 50, 60, 3)


def test_clips_move_and_stand_still_for_who_wants_no_motion(run: Path):
    make_clip_run(run, frames=6, keys=("original", "masked", "reconstructed", "interpolated"), size=(80, 320))
    page = write_report(run).read_text()
    part = section(page, "What it reconstructs")
    moving = pictures_of(part, "webp")
    assert len(moving) == 4 * 4 and {file.n_frames for file in moving} == {6}
    assert moving[0].size == (160, 40)
    assert part.count('media="(prefers-reduced-motion: reduce)"') == 16
    assert "Held-out clips" in part and "the last picture is the best interpolation" in part
    assert "clips per second" in page and "images per second" not in page
    assert "masked patches of held-out clips" in words.headline(read_run(run)).sentence


def test_pairs_are_still_pictures_from_past_to_future(run: Path):
    make_clip_run(run, frames=2, keys=("original", "masked", "reconstructed", "interpolated"))
    part = section(write_report(run).read_text(), "What it reconstructs")
    assert "image/webp" not in part
    captions = ["past", "masked future", "reconstructed", "without a model", "future"]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", part) == captions * 5
    arrays = read_run(run).pictures["reconstruction"]
    named = [("original", 0), ("masked", 1), ("reconstructed", 1), ("interpolated", 1), ("original", 1)]
    for shown, (key, time) in zip(pictures_of(part, "png"), named, strict=False):
        assert np.array_equal(np.asarray(shown.convert("RGB")), arrays[key][0, time])
    assert "past frame whole" in part


def test_a_pair_has_to_beat_copying(run: Path):
    make_clip_run(run, frames=2)
    headline = words.headline(read_run(run))
    assert headline.title == "33% less error than copying or interpolating"
    assert "copying the first" in headline.sentence
    page = write_report(run).read_text()
    assert "copying or interpolating = 1.00" in page and "pairs of frames per second" in page


@pytest.mark.parametrize(("frames", "kind"), [(2, "pairs"), (4, "clips"), (None, "images")])
def test_the_kind_of_a_run_without_a_clip_setting_is_seen_in_its_pictures(run: Path, frames, kind):
    if frames is not None:
        make_clip_run(run, frames)
        (run / "config.yaml").write_text("method: {name: videomae}\n")
    assert read_run(run).kind == kind


@pytest.mark.parametrize("wrong", [np.zeros((2, 3, 4), np.uint8), np.zeros((2, 8, 8, 3), np.float32)])
def test_arrays_that_are_no_pictures_are_named(run: Path, wrong):
    np.savez(run / "figures/reconstruction.npz", original=wrong, masked=wrong, reconstructed=wrong)
    with pytest.raises(MmsslError, match=r"reconstruction\.npz: original must be uint8"):
        write_report(run)


def add_tracks(run: Path, sequences: int) -> None:
    scores = json.loads((run / "scores.json").read_text())
    row = {"evaluator": "track, top-k 5", "target": "davis", "metric": "J&F", "higher_is_better": True, "spread": None}
    values = {"pretrained": 0.5, "random": 0.3, "pixels": 0.2, "copy": 0.6}
    scores["rows"] += [{**row, "encoder": name, "value": value} for name, value in values.items()]
    (run / "scores.json").write_text(json.dumps(scores))
    folder = run / "track" / "davis"
    folder.mkdir(parents=True)
    for i in range(sequences):
        clip = smooth_clips(1, 3, seed=i)[0]
        (folder / f"s{i}.webp").write_bytes(webp_bytes(clip))
        Image.fromarray(clip[0]).save(folder / f"s{i}.png")


def test_tracking_has_a_section_of_its_own(run: Path):
    before = words.probe_summary(read_run(run).fitted).text
    add_tracks(run, 9)
    (run / "track/davis/.half-written.webp").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(run / "track/davis/still.png")
    page = write_report(run).read_text()
    part = section(page, "How far its features follow things")
    assert part.count("<figure>") == 6 and "davis/s0" in part and "half-written" not in part
    moving = pictures_of(part, "webp")
    assert {file.n_frames for file in moving} == {3} and len(moving) + len(pictures_of(part, "png")) == 6
    assert "above a randomly initialised encoder (0.300)" in part
    assert "below the first frame&#39;s labels held still (0.600)" in part and "held still" in part
    assert "track" not in section(page, "What the frozen features are worth").replace('class="track"', "")
    assert before in page, "a score of tracking is no probe"


def test_tracks_without_scores_and_scores_without_tracks(run: Path):
    assert "How far its features follow" not in write_report(run).read_text()
    add_tracks(run, 1)
    scores = (run / "scores.json").read_text()
    (run / "scores.json").write_text("{}")
    assert section(write_report(run).read_text(), "How far its features follow things").count("<figure>") == 1
    (run / "scores.json").write_text(scores)
    (run / "track/davis/s0.webp").unlink()
    assert len(pictures_of(section(write_report(run).read_text(), "How far its features follow things"), "png")) == 1
