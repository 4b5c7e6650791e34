"""Curves over seeds: each seed thin, their interquartile mean bold, its bootstrap interval as a band behind."""

import io
from dataclasses import dataclass

import numpy as np

from mmssl.report.figures import PRINT, THEMED, Palette, Series, smooth, style_axes, themed_svg, thin
from mmssl.report.seeds import at_steps, common_steps
from mmssl.statistics import Curve, learning_curve

WIDE = (10.4, 3.7)  # inches: the whole width of a page, so that its text is as large as that of small figures
SMALL = (5.2, 2.9)


@dataclass(frozen=True)
class Bundle:
    """The curves of the seeds of one run, under one name."""

    name: str
    seeds: tuple[Series, ...]

    @property
    def steps(self) -> list[int]:
        """Steps that all seeds have reached."""
        return common_steps(list(self.seeds))

    def middle(self) -> Curve | None:
        """Interquartile mean over seeds, with its interval, at `steps`; None where they have no step in common."""
        steps = self.steps
        return learning_curve(at_steps(list(self.seeds), steps)) if steps else None

    def smoothed(self) -> "Bundle":
        """The same with the mean over a twentieth of each curve in place of each value; steps that all have alone."""
        steps = self.steps
        values = at_steps(list(self.seeds), steps)
        if len(steps) <= 20:
            return self
        return Bundle(self.name, tuple(thin((steps, smooth(row, len(steps) // 20))) for row in values))


def draw_bundles(
    bundles: list[Bundle], *, title: str, palette: Palette, interval: bool = True, size: tuple[float, float] = WIDE
):
    """A matplotlib figure of the curves of one or more runs over environment steps.

    A seed that has gone farther than others goes on alone: what is said of all seeds ends where the first one ends.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for i, bundle in enumerate(bundles):
        _draw(axes, bundle, palette.curves[i % len(palette.curves)], interval, len(bundles) == 1)
    style_axes(axes, title=title, palette=palette, xlabel="environment steps")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.10g}")
    if size == WIDE and axes.get_legend_handles_labels()[1]:
        # Beside the plot, for within it every place is one where some curve goes; a small figure has no room for it.
        figure.legend(frameon=False, fontsize=9, labelcolor=palette.ink, loc="outside upper right", ncols=3)
    return figure


def _draw(axes, bundle: Bundle, colour: str, interval: bool, alone: bool) -> None:
    middle, steps, n = bundle.middle(), bundle.steps, len(bundle.seeds)
    if n == 1 or middle is None:
        for series in bundle.seeds:
            style = {"linewidth": 2, "marker": "o" if len(series[0]) <= 30 else None, "markersize": 4}
            axes.plot(*series, color=colour, label=None if alone else bundle.name, **style)
        return
    if interval and np.isfinite(middle.low).all():
        label = f"{middle.confidence:.0%} interval" if alone else None
        axes.fill_between(steps, middle.low, middle.high, color=colour, alpha=0.16, linewidth=0, label=label)
    for k, series in enumerate(bundle.seeds):
        label = "each seed" if alone and k == 0 else None
        axes.plot(*series, color=colour, alpha=0.42, linewidth=0.9, label=label)
    label = f"interquartile mean of {n} seeds" if alone else bundle.name
    axes.plot(steps, middle.value, color=colour, linewidth=2.4, label=label, marker="o" if len(steps) == 1 else None)


def bundles_svg(bundles: list[Bundle], *, title: str, interval: bool = True, size: tuple[float, float] = WIDE) -> str:
    """The curves as an `<svg>` element in the colours of the page."""
    draw = lambda: draw_bundles(bundles, title=title, palette=THEMED, interval=interval, size=size)  # noqa: E731
    return themed_svg(draw, title)


def bundles_png(bundles: list[Bundle], *, title: str, size: tuple[float, float] = WIDE, dpi: int = 150) -> bytes:
    """The curves as a PNG on white, for papers and documentation."""
    buffer = io.BytesIO()
    draw_bundles(bundles, title=title, palette=PRINT, size=size).savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
