"""Arrays and series -> pictures: PNG and animated WebP bytes, and SVG in the colours of the page around it.

Curves are drawn once, by matplotlib, with a palette. The palette `PRINT` gives a picture for a paper or a page of
documentation; `THEMED` gives placeholder colours that become CSS variables, so that one drawing serves a light and a
dark page.
"""

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mmssl.errors import MmsslError

NOTHING = 128
"""Grey for places that hold no data, in every channel."""
Series = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Palette:
    """Colours of a drawing: text, faint text, grid lines, and one colour a curve."""

    ink: str
    muted: str
    line: str
    curves: tuple[str, ...]


PRINT = Palette("#1a2230", "#667085", "#e3e7ee", ("#2f5fe0", "#d9772b", "#2a9d6f", "#b14fc5", "#c23b4a", "#4aa3c7"))
THEMED = Palette("#010101", "#020202", "#030303", tuple(f"#0400{i:02d}" for i in range(1, 7)))
_VARIABLES = {
    THEMED.ink: "var(--ink)",
    THEMED.muted: "var(--muted)",
    THEMED.line: "var(--line)",
    **{colour: f"var(--curve-{i})" for i, colour in enumerate(THEMED.curves, start=1)},
}


def png_bytes(image: np.ndarray) -> bytes:
    """PNG of a uint8 image (H, W, 3)."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise MmsslError(f"a picture must be uint8 (H, W, 3), got {image.dtype} {image.shape}.")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def webp_bytes(clip: np.ndarray, fps: float = 6.0) -> bytes:
    """Endless animated WebP of a uint8 clip (T, H, W, 3), as small as pictures this size may be."""
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or len(clip) == 0:
        raise MmsslError(f"an animation must be uint8 (T, H, W, 3), got {clip.dtype} {clip.shape}.")
    first, *rest = (Image.fromarray(np.ascontiguousarray(frame)) for frame in clip)
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": rest, "duration": round(1000 / fps), "loop": 0}
    first.save(buffer, format="WEBP", quality=80, method=4, **options)
    return buffer.getvalue()


def shrink(clips: np.ndarray, most: int = 160) -> np.ndarray:
    """uint8 clips (n, T, H, W, 3) at most `most` pixels a side: a page shows them small, and they are many pictures."""
    n, frames, height, width = clips.shape[:4]
    factor = most / max(height, width)
    if factor >= 1:
        return clips
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = [np.asarray(Image.fromarray(frame).resize(size)) for frame in clips.reshape(-1, height, width, 3)]
    return np.stack(small).reshape(n, frames, size[1], size[0], 3)


def grid(rows: Sequence[np.ndarray], gap: int = 2, scale: int = 2, background: int = 255) -> np.ndarray:
    """One picture of several rows of equally sized images, each row uint8 (n, H, W, 3), enlarged by whole pixels."""
    if len({row.shape for row in rows}) != 1:
        raise MmsslError(f"the rows of a picture grid must have one shape, got {[row.shape for row in rows]}.")
    tiles = np.stack(rows)  # (rows, n, H, W, 3)
    tiles = tiles.repeat(scale, axis=2).repeat(scale, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=background)
    r, n, h, w, c = tiles.shape
    return tiles.transpose(0, 2, 1, 3, 4).reshape(r * h, n * w, c)[: -gap or None, : -gap or None]


def pca_colours(tokens: np.ndarray) -> np.ndarray:
    """Patch features (n, h, w, D) -> uint8 (n, h, w, 3): their first three principal components as red, green, blue.

    The components are those of all n images together, so that one colour means the same thing in all of them. Each is
    stretched from its 2nd to its 98th percentile; its sign is chosen so that its largest weight is positive. Features
    of NaN stand for nothing: they are grey.
    """
    n, h, w, dim = tokens.shape
    real = ~np.isnan(tokens).any(-1)  # (n, h, w)
    if not real.all():
        colours = np.full((n, h, w, 3), NOTHING, np.uint8)
        colours[real] = pca_colours(tokens[real][None, None])[0, 0] if real.any() else 0
        return colours
    flat = tokens.reshape(-1, dim).astype(np.float64)
    flat = flat - flat.mean(0)  # (n*h*w, D)
    _, _, axes = np.linalg.svd(flat, full_matrices=False)
    axes = axes[:3]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    parts = flat @ axes.T  # (n*h*w, <=3)
    parts = np.pad(parts, ((0, 0), (0, 3 - parts.shape[1])))
    low, high = np.percentile(parts, [2, 98], axis=0)
    parts = np.clip((parts - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.round(parts * 255).astype(np.uint8).reshape(n, h, w, 3)


def color_table(steps: int, name: str = "magma") -> np.ndarray:
    """uint8 (steps, 3): colours from dark to bright that stay in order for colour-blind readers and in grey print."""
    from matplotlib import colormaps

    return np.round(colormaps[name](np.linspace(0, 1, steps))[:, :3] * 255).astype(np.uint8)


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Mean over a centred window, cut at both ends of the curve, so that the smooth curve does not lag behind."""
    ones = np.ones(max(1, window) // 2 * 2 + 1)
    padded = np.pad(np.asarray(values, dtype=np.float64), len(ones) // 2)
    weight = np.convolve(np.pad(np.ones(len(values)), len(ones) // 2), ones, "valid")
    return np.convolve(padded, ones, "valid") / weight


def thin(series: Series, most: int = 600) -> Series:
    """At most `most` points of a long curve, evenly spaced, the first and the last kept."""
    steps, values = series
    if len(steps) <= most:
        return steps, values
    keep = np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))
    return [steps[i] for i in keep], [values[i] for i in keep]


def draw_curves(curves: dict[str, Series], *, title: str, palette: Palette, smoothed: bool = False, size=(5.2, 2.9)):
    """A matplotlib figure of one or more curves over the steps; `smoothed`, with the raw values faint behind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, series) in enumerate(curves.items()):
        steps, values = series
        colour = palette.curves[i % len(palette.curves)]
        if smoothed and len(values) > 20:
            axes.plot(*thin(series), color=colour, alpha=0.28, linewidth=0.9)
            axes.plot(*thin((steps, smooth(values, len(values) // 20))), color=colour, linewidth=2, label=name)
        else:
            marker = "o" if len(values) == 1 else None
            axes.plot(*thin(series), color=colour, linewidth=2, marker=marker, label=name)
    style_axes(axes, title=title, palette=palette)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=palette.ink)
    return figure


def style_axes(axes, *, title: str, palette: Palette, xlabel: str = "step") -> None:
    """Title, labels, grid and numbers of a plot over steps, as all of ours have them."""
    axes.set_title(title, loc="left", fontsize=11, color=palette.ink, pad=10)
    axes.set_xlabel(xlabel, fontsize=9, color=palette.muted)
    axes.tick_params(colors=palette.muted, labelsize=9, length=0)
    axes.grid(True, axis="y", color=palette.line, linewidth=1)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.xaxis.get_major_locator().set_params(nbins=6, integer=True)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(palette.line)


def curves_png(curves: dict[str, Series], *, title: str, smoothed: bool = False, dpi: int = 150) -> bytes:
    """The curves as a PNG on white, for documentation."""
    buffer = io.BytesIO()
    draw_curves(curves, title=title, palette=PRINT, smoothed=smoothed).savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def curves_svg(curves: dict[str, Series], *, title: str, smoothed: bool = False) -> str:
    """The curves as an `<svg>` element in the colours of the page: CSS variables --ink, --muted, --line, --curve-N."""
    return themed_svg(lambda: draw_curves(curves, title=title, palette=THEMED, smoothed=smoothed), title)


def themed_svg(draw: Callable[[], Any], title: str) -> str:
    """The figure that `draw` makes with the palette THEMED, as an `<svg>` element in the colours of the page."""
    import matplotlib

    buffer = io.StringIO()
    # Text stays text (the page's own font), and equal drawings give equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        draw().savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"""\s(width|height)="[\d.]+pt\"""", "", svg, count=2)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--font)", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)} over the training steps" ', 1)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    return svg
