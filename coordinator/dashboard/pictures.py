"""A submodel as a small picture: one row per layer, with the heads that are kept and the part of the FFN neurons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Lock

from coordinator.models.versions import read_ordering
from coordinator.store.records import VersionRecord
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.errors import RaffmError
from edge_sdk.protocol.messages import Part
from edge_sdk.transport.blob_folder import BlobFolder

_HEADS_SHARE, _GAP_SHARE = 0.4, 0.06
_LEAST_CELL = 6.0
_LEAST_ROW = 3.0
_MOST_KNOWN = 64
_Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a whole model: its layers, and the heads and FFN neurons in each."""

    layers: int
    heads: int
    ffn: int


@dataclass(frozen=True, slots=True)
class Picture:
    """Two SVG paths in a box of ``width`` by ``height``: the whole model, and over it the part that is kept.

    ``ffn_x`` is where the neurons begin, ``rows_y`` the middle of each layer's row.
    """

    width: float
    height: float
    whole: str
    kept: str
    ffn_x: float
    rows_y: tuple[float, ...]


class ModelSizes:
    """The sizes of the models in a folder of blobs, each read once and then kept in memory; thread-safe."""

    def __init__(self, blobs: BlobFolder) -> None:
        self._blobs = blobs
        self._lock = Lock()
        self._known: dict[str, Sizes] = {}

    def of(self, version: VersionRecord | None) -> Sizes | None:
        """The sizes of a version's model; ``None`` without a version, or if its blobs are missing or damaged."""
        entries = () if version is None else version.blobs
        digest = next((entry.digest for entry in entries if entry.part is Part.ORDERING), None)
        if digest is None or not self._blobs.has(digest):
            return None
        with self._lock:
            if digest not in self._known:
                try:
                    ordering = read_ordering(self._blobs, digest)
                except RaffmError:  # the doctor reports it; the page is shown without the picture
                    return None
                while len(self._known) >= _MOST_KNOWN:
                    del self._known[next(iter(self._known))]
                self._known[digest] = Sizes(len(ordering.heads), len(ordering.heads[0]), len(ordering.ffn[0]))
            return self._known[digest]


def picture(submodel: Submodel, sizes: Sizes, width: float = 112.0, height: float = 30.0) -> Picture:
    """Draw ``submodel`` within a model of ``sizes``. Heads are separate squares if there is space for that."""
    step = height / sizes.layers
    row = step * 0.8 if step >= _LEAST_ROW else step
    heads_width, ffn_x = _HEADS_SHARE * width, (_HEADS_SHARE + _GAP_SHARE) * width

    def path(layers: Iterable[int], heads: Iterable[tuple[int, int]], ffn: Iterable[tuple[int, int]]) -> str:
        boxes = list[str]()
        for layer, own_heads, own_ffn in zip(layers, heads, ffn, strict=True):
            spans = [*_cells(own_heads, sizes.heads, heads_width)]
            spans += ((ffn_x + a, ffn_x + b) for a, b in _spans(own_ffn, sizes.ffn, width - ffn_x))
            boxes += (_box(a, b, layer * step, row) for a, b in spans)
        return "".join(boxes)

    every = range(sizes.layers)
    return Picture(
        width,
        height,
        path(every, [(0, sizes.heads)] * sizes.layers, [(0, sizes.ffn)] * sizes.layers),
        path(
            submodel.layers,
            [(submodel.first_head, heads) for heads in submodel.heads],
            [(submodel.first_neuron, ffn) for ffn in submodel.ffn],
        ),
        ffn_x,
        tuple(round(layer * step + row / 2, 2) for layer in every),
    )


def _cells(window: tuple[int, int], of: int, width: float) -> Iterator[_Span]:
    """:func:`_spans`, but with every unit on its own if each is wide enough."""
    cell = width / of
    if cell < _LEAST_CELL:
        yield from _spans(window, of, width)
        return
    first, count = window
    for index in range(first, first + count):
        start = index % of * cell
        yield start, start + 0.8 * cell


def _spans(window: tuple[int, int], of: int, width: float) -> Iterator[_Span]:
    """The intervals on the x axis of a window (first unit, count); two if it wraps around the end."""
    first, count = window
    end = first + count
    for start, stop in ((first, min(end, of)), (0, max(0, end - of))):
        if stop > start:
            yield start / of * width, stop / of * width


def _box(left: float, right: float, top: float, height: float) -> str:
    return f"M{left:.1f} {top:.1f}h{right - left:.1f}v{height:.1f}H{left:.1f}z"
