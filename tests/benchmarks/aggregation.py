"""One sliced float32 update into the new model, decoding included, in warm copies of the update's bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coordinator.aggregation.coverage import UpdateSource, aggregate
from edge_sdk.elastic.slicing import Array, shapes_of
from edge_sdk.elastic.submodel import uniform
from edge_sdk.protocol.tensors import write_tensors
from tests.benchmarks._measure import Figure, show, side_by_side, warm_copy
from tests.support.bert import MINILM, slices, weights

BAR = 1.5
UPDATES = 50
HEADS = (12, 9, 6, 6, 3)  # mixed widths, from the whole model to a quarter
_REPEATS = 7


def write_updates(folder: Path, count: int) -> None:
    """Random deltas of mixed widths, one file each."""
    generator = np.random.default_rng(1)
    for source in sources(folder, count):
        table = shapes_of(source.slices)
        deltas = {name: generator.standard_normal(shape, np.float32) for name, shape in table.items()}
        with source.path.open("wb") as file:
            write_tensors(file, deltas)


def sources(folder: Path, count: int) -> list[UpdateSource]:
    """The updates that :func:`write_updates` writes."""
    cuts = [slices(uniform(MINILM, heads), MINILM) for heads in HEADS]
    return [
        UpdateSource(f"{index:03}", 100.0 + index, cuts[index % len(cuts)], folder / f"{index:03}.safetensors")
        for index in range(count)
    ]


def run() -> Figure:
    base = weights(MINILM, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        write_updates(Path(folder), UPDATES)
        figure = _measure(base, sources(Path(folder), UPDATES))
    return Figure("aggregation", figure, BAR, "warm copies of an update's bytes")


def _measure(base: dict[str, Array], updates: Sequence[UpdateSource]) -> float:
    """As many copies as updates are timed together, so that a busy machine takes its share of both alike."""
    mean_bytes = sum(update.path.stat().st_size for update in updates) // len(updates)
    copy = warm_copy(mean_bytes)
    actions = {
        "copies": lambda: [copy() for _ in updates],
        "aggregate": lambda: aggregate(base, updates, floor=0.0),
    }
    medians = {name: total / len(updates) for name, total in side_by_side(actions, _REPEATS).items()}
    rows = [
        ("parameters", f"{sum(array.size for array in base.values()) / 1e6:.1f} M"),
        ("arrays", str(len(base))),
        ("updates", str(len(updates))),
        ("mean update", f"{mean_bytes / 1e6:.1f} MB"),
        ("copy", f"{1e3 * medians['copies']:.2f} ms"),
        ("one update", f"{1e3 * medians['aggregate']:.2f} ms"),
    ]
    show("aggregation of updates of mixed widths, medians", rows)
    return medians["aggregate"] / medians["copies"]
