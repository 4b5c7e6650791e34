import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from mmssl.errors import MmsslError
from mmssl.report.figures import PRINT, curves_png, curves_svg, grid, pca_colours, png_bytes, smooth, thin


def test_png_is_lossless():
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(png_bytes(image)))) == image).all()


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)])
def test_png_of_something_else_is_a_clear_error(image: np.ndarray):
    with pytest.raises(MmsslError, match="must be uint8"):
        png_bytes(image)


def test_grid_puts_rows_below_each_other():
    rows = [np.full((3, 4, 5, 3), value, np.uint8) for value in (10, 20)]
    picture = grid(rows, gap=1, scale=2)
    assert picture.shape == (2 * 8 + 1, 3 * 10 + 2, 3)
    assert (picture[0, 0] == 10).all() and (picture[-1, -1] == 20).all() and (picture[8] == 255).all()
    with pytest.raises(MmsslError, match="one shape"):
        grid([rows[0], rows[1][:2]])


def test_pca_separates_what_differs_and_shares_colours_between_images():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 16)) * 10
    tokens = np.where(np.arange(4)[None, None, :, None] < 2, left, right)  # (1, 1, 4, D)
    tokens = np.broadcast_to(tokens, (2, 4, 4, 16)) + rng.normal(size=(2, 4, 4, 16)) * 0.01
    colours = pca_colours(tokens)
    assert colours.shape == (2, 4, 4, 3) and colours.dtype == np.uint8
    red = colours[..., 0].astype(int)
    assert abs(red[..., :2].mean() - red[..., 2:].mean()) > 200
    assert abs(red[0] - red[1]).max() < 20


def test_pca_ignores_scale_and_handles_few_or_constant_features():
    tokens = np.random.default_rng(1).normal(size=(1, 3, 3, 6))
    assert (pca_colours(tokens) == pca_colours(tokens * 100)).all()
    assert pca_colours(tokens[..., :2]).shape == (1, 3, 3, 3)
    assert (pca_colours(np.ones((1, 2, 2, 5))) == 0).all()


def test_smooth_keeps_constants_and_does_not_lag():
    assert np.allclose(smooth([2.0] * 30, 7), 2)
    line = np.arange(50.0)
    assert np.allclose(smooth(line, 5)[2:-2], line[2:-2])
    assert np.allclose(smooth(line, 0), line)


def test_thin_keeps_ends():
    steps, values = thin((range(10_000), range(10_000)), most=100)
    assert len(steps) == len(values) <= 100 and (steps[0], steps[-1]) == (0, 9999)


@pytest.mark.parametrize("points", [1, 2, 500])
def test_svg_is_valid_and_takes_the_colours_of_the_page(points: int):
    curve = {"a & <b>": (list(range(points)), [1.0 / (s + 1) for s in range(points)]), "c": ([0], [1.0])}
    svg = curves_svg(curve, title="Loss", smoothed=True)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and "width" not in root.attrib and root.attrib["aria-label"].startswith("Loss")
    assert "var(--ink)" in svg and "var(--curve-1)" in svg and "var(--curve-2)" in svg
    assert "#0400" not in svg and "#0101" not in svg


def test_png_of_curves_is_for_a_white_page():
    png = Image.open(io.BytesIO(curves_png({"loss": ([1, 2, 3], [3.0, 2.0, 1.0])}, title="Loss", dpi=60))).convert(
        "RGB"
    )
    assert png.getpixel((0, 0)) == (255, 255, 255)
    blue = tuple(int(PRINT.curves[0][i : i + 2], 16) for i in (1, 3, 5))
    assert blue in {colour for _, colour in png.getcolors(100_000)}
