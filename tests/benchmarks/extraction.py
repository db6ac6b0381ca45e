"""Cut a submodel out of the global model into arrays of an earlier cut, in warm copies of its own bytes."""

from __future__ import annotations

from edge_sdk.elastic.slicing import extract
from edge_sdk.elastic.submodel import uniform
from tests.benchmarks._measure import Figure, show, side_by_side, warm_copy
from tests.support.bert import MINILM, slices, weights

BAR = 1.5
_HEADS = (12, 6, 3)
_REPEATS = 41


def run() -> Figure:
    model = weights(MINILM, seed=0)
    rows, worst = [], 0.0
    for heads in _HEADS:
        cut = slices(uniform(MINILM, heads), MINILM)
        reused = extract(model, cut)
        size_bytes = sum(array.nbytes for array in reused.values())
        medians = side_by_side(
            {
                "copy": warm_copy(size_bytes),
                "reused": lambda cut=cut, reused=reused: extract(model, cut, into=reused),
                "fresh": lambda cut=cut: extract(model, cut),
            },
            _REPEATS,
        )
        worst = max(worst, medians["reused"] / medians["copy"])
        for name, seconds in medians.items():
            rows.append((f"{heads} of 12 heads, {size_bytes / 1e6:.0f} MB, {name}", f"{1e3 * seconds:.2f} ms"))
    show("extraction, medians; the figure is the worst width's, with arrays reused", rows)
    return Figure("extraction", worst, BAR, "warm copies of the submodel's bytes")
