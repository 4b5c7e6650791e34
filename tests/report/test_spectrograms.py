"""Spectrograms and sounds in the page, and what is done where they are missing or damaged."""

import base64
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from mmssl.errors import MmsslError
from mmssl.report import html, words
from mmssl.report.figures import NOTHING, color_table, pca_colours
from mmssl.report.html import write_comparison, write_report
from mmssl.report.reading import read_run
from mmssl.report.spectrograms import Scale, colours, draw, mel_ticks, pixels, png, read_spectrograms, time_ticks

MELS = 700 * np.expm1(np.linspace(np.log1p(20 / 700), np.log1p(8000 / 700), 34)[1:-1])  # centres in Hz (32,)


def arrays_of(n: int = 8, frames: int = 48, seed: int = 0) -> dict[str, np.ndarray]:
    levels = np.random.default_rng(seed).normal(-6, 3, (n, frames, 32)).astype(np.float16)
    masked = levels.copy()
    masked[:, 16:32] = np.nan
    return {
        "original": levels,
        "masked": masked,
        "reconstructed": levels[:, ::-1].copy(),
        "hop": np.float64(0.01),
        "mels": MELS,
        "frames": np.full(n, frames),
    }


def make_sound_run(run: Path, sounds: bool = True, **changes) -> Path:
    """Turn a run of images into one of sounds."""
    for path in (run / "figures").iterdir():
        path.unlink()
    arrays = {**arrays_of(), **changes}
    np.savez(run / "figures/spectrograms.npz", **{k: v for k, v in arrays.items() if v is not None})
    config = yaml.safe_load((run / "config.yaml").read_text())
    scores = json.loads((run / "scores.json").read_text())
    last = scores["rows"][-1] | {"encoder": "spectrogram", "value": 0.2}
    scores["rows"] = [last, *scores["rows"][:-1], scores["rows"][-1] | {"encoder": "logmel"}]
    (run / "scores.json").write_text(json.dumps(scores))
    config["method"] |= {"name": "audiomae", "modality": "audio"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "figures/sound").mkdir()
    for clip in range(8 if sounds else 0):
        tone = 0.5 * np.sin(np.arange(8000) * (0.1 + 0.02 * clip))
        for name, kind in (("original", "wav"), ("inverted", "mp3"), ("reconstructed", "mp3")):
            soundfile.write(run / f"figures/sound/{clip}-{name}.{kind}", tone, 16000)
    return run


def section(run: Path) -> str:
    page = write_report(run).read_text()
    return page.split("<h2>What it reconstructs</h2>")[1].split("</section>")[0]


def drawings(part: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r'<svg class="spectrogram".*?</svg>', part, re.DOTALL)]


def test_six_clips_as_spectrograms_with_axes_and_players(run: Path):
    part = section(make_sound_run(run))
    found = drawings(part)
    assert len(found) == 6 * 3
    for svg in found:
        texts = [text.text for text in svg.iter("text")]
        assert {"time (s)", "mel (kHz)", "0", "0.1", "0.4", "1", "4"} <= set(texts)
    assert [svg.attrib["aria-label"].split()[0] for svg in found[:3]] == ["original", "masked", "reconstructed"]
    players = re.findall(r'<audio controls preload="metadata" src="data:audio/(\w+);base64,([^"]+)"></audio>', part)
    assert [kind for kind, _ in players] == ["wav", "mpeg", "mpeg"] * 6
    for k, clip in enumerate((0, 1, 3, 4, 6, 7)):
        assert base64.b64decode(players[3 * k][1]) == (run / f"figures/sound/{clip}-original.wav").read_bytes()
        assert base64.b64decode(players[3 * k + 2][1]) == (run / f"figures/sound/{clip}-reconstructed.mp3").read_bytes()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", part)[3:6]
    assert captions == ["the recording", "its spectrogram, by Griffin-Lim", "the reconstruction, by Griffin-Lim"]


def test_the_page_stays_self_contained_and_says_what_is_heard(run: Path):
    page = write_report(make_sound_run(run)).read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert "Griffin-Lim guesses" in page and "hidden from the model" in page and "squared decibels" in page
    assert "clips per second" in page and "held-out sounds" in words.headline(read_run(run)).sentence
    assert "pixels" not in page.split("<style>")[0] + page.split("</style>")[1]
    assert write_report(run).read_text() == page


def test_log_mel_statistics_and_spectrograms_stand_where_pixels_would(run: Path):
    probes = read_run(make_sound_run(run)).probes
    assert list(probes[0].scores) == ["pretrained", "random", "logmel", "spectrogram"]
    assert "below log-mel statistics (0.560) and above the raw spectrogram (0.200)" in words.verdict(probes[0]).text
    page = write_report(run).read_text()
    assert "random encoder of the same shape and raw spectrograms" in page and 'class="bar logmel"' in page
    assert "log-mel statistics" in page and "log-mel statistics" in write_comparison([run]).read_text()


def test_a_summary_counts_probes_below_log_mel_statistics(run: Path, make_run):
    other = make_run(run.parent / "sounds", probe=(0.5, 0.44, 0.56))
    summary = words.probe_summary(read_run(make_sound_run(other)).probes)
    assert summary.tone == "even" and summary.text.endswith("; it is below log-mel statistics in 1.")


def test_a_run_of_sounds_is_known_without_its_figures(run: Path):
    make_sound_run(run)
    (run / "figures/spectrograms.npz").unlink()
    assert read_run(run).kind == "sounds" and read_run(run).spectrograms is None
    (run / "config.yaml").write_text("method: {name: audiomae, modality: audio/left}\n")
    part = section(run)
    assert "<audio" not in part and "squared decibels" in part and "Griffin-Lim" not in part


def test_missing_sounds_leave_their_players_out(run: Path):
    make_sound_run(run)
    (run / "figures/sound/0-inverted.mp3").unlink()
    (run / "figures/sound/1-original.wav").write_bytes(b"")
    (run / "figures/sound/.3-original.wav").write_bytes(b"half")
    (run / "figures/sound/4-other.wav").write_bytes(b"x")
    part = section(run)
    assert part.count("<audio") == 16 and len(drawings(part)) == 18


def test_no_sounds_at_all(run: Path):
    part = section(make_sound_run(run, sounds=False))
    assert "<audio" not in part and "Griffin-Lim" not in part and len(drawings(part)) == 18


def test_sounds_beyond_what_a_page_may_hold_stay_in_their_folder(run: Path, monkeypatch: pytest.MonkeyPatch):
    make_sound_run(run)
    size = sum(path.stat().st_size for path in (run / "figures/sound").glob("0-*"))
    monkeypatch.setattr(html, "_SOUND_BYTES", int(2.5 * size))
    part = section(run)
    assert part.count("<audio") == 6 and "they are in the run&#39;s figures/sound" in part.replace("'", "&#39;")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hop": None}, "hop must be finite"),
        ({"hop": np.float64(0)}, "hop must be above 0"),
        ({"mels": MELS[:5]}, "mels must be finite"),
        ({"mels": MELS[::-1]}, "mels must rise"),
        ({"frames": np.ones(3)}, "frames must be finite"),
        ({"original": np.zeros((2, 3))}, "original must be finite"),
        ({"reconstructed": np.full((8, 48, 32), np.nan)}, "reconstructed must be finite"),
        ({"masked": np.zeros((8, 48, 31))}, "masked must be finite"),
        ({"original": np.array([{}], dtype=object)}, "cannot be read"),
    ],
)
def test_arrays_that_cannot_be_drawn_are_named(run: Path, changes: dict, said: str):
    with pytest.raises(MmsslError, match=rf"spectrograms\.npz.*{said}"):
        write_report(make_sound_run(run, **changes))


def test_a_damaged_file_is_named_and_an_incomplete_one_left_out(run: Path):
    make_sound_run(run)
    path = run / "figures/spectrograms.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MmsslError, match=r"spectrograms\.npz cannot be read"):
        write_report(run)
    np.savez(path, original=np.zeros((1, 2, 3)))
    assert read_spectrograms(path.parent) is None


def test_colours_are_levels_and_hidden_places_are_empty():
    levels = np.array([[0.0, 5.0, 10.0], [-99.0, 99.0, np.nan]])  # (T, M)
    scale = Scale(0, 10)
    assert pixels(levels, scale).tolist() == [[254, 255], [127, 254], [0, 0]]  # the highest bin on top
    file = Image.open(io.BytesIO(png(levels, scale)))
    seen = np.asarray(file.convert("RGBA"))
    assert seen[0, 1, 3] == 0 and (np.delete(seen.reshape(-1, 4), 1, 0)[:, 3] == 255).all()
    assert np.array_equal(seen[1:, :, :3], colours(levels, scale)[1:])
    table = color_table(50).astype(int)
    brightness = table @ [299, 587, 114]
    assert (np.diff(brightness) > 0).all()


def test_long_clips_are_drawn_as_means_of_neighbours():
    levels = np.arange(1030.0)[:, None].repeat(2, 1)
    levels[100] = np.nan
    file = Image.open(io.BytesIO(png(levels, Scale(0, 1030))))
    assert file.size == (258, 2)
    row = np.asarray(file)[0]
    assert row[25] == 255 and (row == 255).sum() == 1 and (np.diff(np.delete(row, 25).astype(int)) >= 0).all()
    assert abs(int(row[100]) - 401.5 / 1030 * 254) <= 1


def test_one_scale_for_all_without_padding_and_deep_silence(run: Path):
    arrays = arrays_of(2)
    arrays["original"][0, 0, 0] = -200
    arrays["original"][1, 30:] = 90  # padding
    found = read_run(make_sound_run(run, sounds=False, **arrays | {"frames": np.array([48, 30])})).spectrograms
    scale = found.scale()
    sound = np.concatenate([arrays["original"][0].ravel(), arrays["original"][1, :30].ravel()])
    assert scale.high == sound.max() and -20 < scale.low < -6 and scale.decibels <= 80.001
    assert 'width="300"' in found.picture("original", 1, scale)
    texts = [text.text for text in ElementTree.fromstring(found.picture("original", 1, scale)).iter("text")]
    assert "0.3" in texts and "0.4" not in texts, "the axis ends with the sound"


def test_silence_alone_is_drawn():
    scale = Scale.of(np.full((4, 3), -15.9))
    assert scale.high > scale.low
    assert ElementTree.fromstring(draw(np.full((1, 3), -15.9), scale, 0.01, MELS[:3], "silence")) is not None


@pytest.mark.parametrize("seconds", [0.01, 0.16, 0.98, 1.0, 2.5, 5.11, 10.0, 10.24, 12.0])
def test_ticks_of_time_are_few_and_round(seconds: float):
    ticks = time_ticks(seconds)
    assert ticks[0] == 0 and 2 <= len(ticks) <= 6 and ticks[-1] <= seconds + 1e-9
    assert all(len(f"{tick:g}") <= 5 for tick in ticks)


def test_ticks_of_pitch_stand_where_their_bins_are():
    ticks = dict(mel_ticks(MELS))
    assert {4000, 2000, 1000} <= set(ticks) and 16000 not in ticks
    for value, place in ticks.items():
        edge = place * 32 - 0.5  # in bins
        assert np.interp(edge, np.arange(32), MELS) == pytest.approx(value)
    places = sorted(ticks.values())
    assert min(np.diff(places)) > 0.09


def test_features_of_padding_are_grey():
    tokens = np.random.default_rng(0).normal(size=(2, 4, 6, 8))
    whole = pca_colours(tokens[:, :, :4])
    padded = tokens.copy()
    padded[:, :, 4:] = np.nan
    found = pca_colours(padded)
    assert (found[:, :, 4:] == NOTHING).all() and np.array_equal(found[:, :, :4], whole)
    assert (pca_colours(np.full((1, 2, 2, 3), np.nan)) == NOTHING).all()
