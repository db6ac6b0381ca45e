"""`coordinator model inspect`: the salience of a model's units as a table, and its submodels' accuracy as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from coordinator.config import Salience
from coordinator.listing import Row
from coordinator.models.inspection import Inspection
from coordinator.plots import svg
from edge_sdk.disk import disk_errors


def layer_rows(inspection: Inspection, metric: Salience) -> list[Row]:
    """One row per layer: its share of all salience, and how much of its own the best half of its units holds."""
    salience = inspection.salience[metric]
    total = salience.heads.sum() + salience.ffn.sum()
    place = {layer: rank for rank, layer in enumerate(salience.layer_ranking(), start=1)}
    return [
        {
            "layer": layer,
            "rank": place[layer],
            f"{metric.value} share": f"{(heads.sum() + ffn.sum()) / total:.1%}",
            "best head": int(heads.argmax()),
            "best half of heads": f"{_best_half(heads):.0%}",
            "best half of FFN": f"{_best_half(ffn):.0%}",
        }
        for layer, (heads, ffn) in enumerate(zip(salience.heads, salience.ffn, strict=True))
    ]


def width_rows(inspection: Inspection) -> list[Row]:
    """One row per width: its size, and its accuracy without training if units are ranked by each metric."""
    curves = inspection.curves
    first = next(iter(curves.values()))
    return [
        {
            "heads": point.heads,
            "parameters": f"{point.share:.0%}",
            **{metric.value: f"{curve[index].accuracy:.1%}" for metric, curve in curves.items()},
        }
        for index, point in enumerate(first)
    ]


def write_picture(inspection: Inspection, path: Path) -> None:
    """Draw the accuracy curves of all metrics, and how the first one's salience is spread in each layer, as SVG."""
    metric, salience = next(iter(inspection.salience.items()))
    panels = [
        ("Accuracy of the submodel, cut without training", partial(_draw_curves, inspection)),
        (f"Share of {metric.value} salience, most salient first: heads", partial(_draw_spread, salience.heads)),
        ("and FFN neurons", partial(_draw_spread, salience.ffn)),
    ]
    with disk_errors(path):
        path.write_text(svg(panels), encoding="utf-8")


def _draw_curves(inspection: Inspection, axes: Axes) -> None:
    for metric, curve in inspection.curves.items():
        shares, accuracies = zip(*((100 * point.share, 100 * point.accuracy) for point in curve), strict=True)
        axes.plot(shares, accuracies, marker="o", markersize=3, label=metric.value)
    axes.set(xlabel="parameters, % of the full model", ylabel="accuracy, %")
    axes.legend(loc="lower right", fontsize="small")


def _draw_spread(values: np.ndarray, axes: Axes) -> None:
    """One line per layer: the cumulative share of the layer's salience, most salient units first."""
    for layer, units in enumerate(values):
        share = np.concatenate([[0.0], np.sort(units)[::-1].cumsum() / max(units.sum(), np.finfo(float).tiny)])
        axes.plot(100 * np.linspace(0, 1, len(share)), 100 * share, label=f"layer {layer}", linewidth=1)
    axes.set(xlabel="units, %", ylabel="salience, %")
    axes.legend(loc="lower right", fontsize="x-small", ncols=2)


def _best_half(units: Sequence[float] | np.ndarray) -> float:
    falling = np.sort(units)[::-1]
    return float(falling[: (len(falling) + 1) // 2].sum() / max(falling.sum(), np.finfo(float).tiny))
