"""Pictures and words of several modalities, as a page shows them."""

import json

import numpy as np
import pytest

from mmssl.errors import MmsslError
from mmssl.report.figures import NOTHING
from mmssl.report.html import write_report
from mmssl.report.modalities import FILE, TEXTS, colours, read_modalities
from mmssl.report.reading import read_run


@pytest.fixture
def figures(tmp_path):
    """A run folder with three modalities, crossed, and two texts."""
    rng, folder = np.random.default_rng(0), tmp_path / "run/figures"
    folder.mkdir(parents=True)
    values = {
        "image": rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8),
        "depth": rng.normal(size=(4, 8, 8)).astype(np.float32),
        "segmentation": rng.integers(-1, 5, (4, 8, 8)),
    }
    arrays = {f"{kind}/{name}": x for name, x in values.items() for kind in ("original", "masked", "reconstructed")}
    crossed = {f"{a}>{b}": values[b][:3] for a in values for b in values if a != b}
    np.savez_compressed(folder / FILE, names=np.array(list(values)), **arrays, **crossed)
    words = [[["a ", "given", "a "], ["<dog>", "wrong", "cat&"]], [["sun", "right", "sun"]]]
    (folder / TEXTS).write_text(json.dumps(words))
    (folder.parent / "config.yaml").write_text("method: {name: multimae}\n")
    (folder.parent / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    return folder


def test_every_modality_has_its_strip_and_its_square(figures):
    found = read_modalities(figures)
    strips = found.strips()
    assert [[name for name, _ in columns] for columns in strips[0]] == [
        [f"{name}, {kind}" for kind in ("original", "masked", "reconstructed")]
        for name in ("image", "depth", "segmentation")
    ]
    squares = found.squares()
    assert len(squares) == 3 and [title for title, _ in squares[0]] == [
        "original", "given image", "given depth", "given segmentation",
    ]  # fmt: skip
    given_depth = dict(dict(squares[1])["given depth"])
    np.testing.assert_array_equal(given_depth["depth"], found.drawn["original/depth"][1])
    np.testing.assert_array_equal(given_depth["image"], found.crossed["depth", "image"][1])
    assert all(p.dtype == np.uint8 and p.shape == (8, 8, 3) for _, p in squares[0][1][1])


def test_the_page_shows_pictures_and_words(figures):
    page = write_report(figures.parent).read_text()
    assert "Each from one other alone" in page and "given segmentation" in page
    assert '<span class="wrong" title="cat&amp;">&lt;dog&gt;</span>' in page
    assert '<span class="right">sun</span>' in page and '<span class="given">a </span>' in page
    assert read_run(figures.parent).modalities.samples == 4


def test_colours():
    depth = np.array([[[0.0, 1.0], [2.0, np.nan]]])
    picture = colours("depth/corner", depth, depth)
    assert picture.shape == (1, 2, 2, 3) and (picture[0, 1, 1] == NOTHING).all()
    brightness = picture.astype(int).sum(-1)[0]
    assert brightness[0, 0] < brightness[0, 1] < brightness[1, 0]  # farther is brighter
    ids = np.arange(-1, 40)[None, None]
    seen = {tuple(c) for c in colours("segmentation", ids, ids)[0, 0].tolist()}
    assert len(seen) == 41 and tuple([NOTHING] * 3) in seen
    assert colours("video", np.zeros((1, 2, 200, 400, 3), np.uint8), None).shape == (1, 2, 80, 160, 3)


def test_what_is_damaged_is_named(figures):
    assert read_modalities(figures.parent) is None
    (figures / TEXTS).write_text("[")
    with pytest.raises(MmsslError, match=r"damaged pictures.*modalities\.npz"):
        read_modalities(figures)
