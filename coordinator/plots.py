"""Plots as SVG: panels side by side; the same numbers give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Panel = tuple[str, Callable[[Axes], None]]
"""A title, and the function that draws the plot below it."""


def svg(panels: Sequence[Panel]) -> str:
    """The panels in a row as one SVG element."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "raffm", "font.size": 10}):
        figure = Figure(figsize=(max(8.0, 5.0 * len(panels)), 3.6), layout="constrained")
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, draw) in zip(row, panels, strict=True):
            axes.grid(visible=True, alpha=0.3)
            axes.set_title(title, loc="left", fontsize="medium")
            draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]
