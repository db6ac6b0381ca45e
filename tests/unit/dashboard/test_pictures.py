"""The picture of a submodel: what is drawn covers what is kept, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from coordinator.dashboard.pictures import ModelSizes, Sizes, picture
from coordinator.models.versions import Ordering, put_bytes
from coordinator.store.records import VersionRecord
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.messages import Part
from edge_sdk.transport.blob_folder import BlobFolder

SIZES = Sizes(layers=2, heads=4, ffn=100)
WIDE = {"width": 1000.0, "height": 20.0}
_BOX = re.compile(r"M(\S+) (\S+)h(\S+)v(\S+)H\S+z")


def boxes(path: str) -> list[tuple[float, ...]]:
    """Left, top, width and height of each."""
    return [tuple(map(float, found)) for found in _BOX.findall(path)]


def area(path: str) -> float:
    return sum(width * height for _, _, width, height in boxes(path))


def test_whole_model_is_filled_and_a_half_half() -> None:
    full = picture(Submodel((0, 1), (4, 4), (100, 100)), SIZES, **WIDE)
    half = picture(Submodel((0, 1), (2, 2), (50, 50)), SIZES, **WIDE)
    assert full.kept == full.whole == half.whole
    assert area(half.kept) == pytest.approx(area(full.whole) / 2, rel=0.01)


def test_layer_that_is_left_out_is_empty() -> None:
    drawn = picture(Submodel((1,), (4,), (100,)), SIZES, **WIDE)
    assert {top for _, top, _, _ in boxes(drawn.kept)} == {10.0}
    assert len(boxes(drawn.whole)) == 2 * len(boxes(drawn.kept))


def test_window_goes_around_the_end() -> None:
    drawn = picture(Submodel((0,), (2,), (30,), first_head=3, first_neuron=90), SIZES, **WIDE)
    heads = [box for box in boxes(drawn.kept) if box[0] < drawn.ffn_x]
    neurons = [box for box in boxes(drawn.kept) if box[0] >= drawn.ffn_x]
    assert [left for left, *_ in heads] == [300.0, 0.0]
    assert [(left, width) for left, _, width, _ in neurons] == [(946.0, 54.0), (460.0, 108.0)]


@pytest.mark.parametrize("sizes", [Sizes(6, 12, 1536), Sizes(24, 16, 4096), Sizes(80, 64, 28672), Sizes(1, 1, 1)])
def test_nothing_is_drawn_outside_of_the_box(sizes: Sizes) -> None:
    whole = Submodel((*range(sizes.layers),), (sizes.heads,) * sizes.layers, (sizes.ffn,) * sizes.layers)
    drawn = picture(whole, sizes)
    for left, top, width, height in boxes(drawn.whole):
        assert left + width <= drawn.width + 0.1
        assert top + height <= drawn.height + 0.1
    assert len(drawn.rows_y) == sizes.layers


def test_sizes_are_those_of_the_version_and_unknown_without_its_blobs(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path)
    ordering = Ordering(((0, 1),) * 3, ((*range(8),),) * 3, (0, 1, 2))
    entry = put_bytes(blobs, Part.ORDERING, msgspec.msgpack.encode(ordering))
    version = VersionRecord("news", 0, "0" * 64, (entry,), 1.0)
    sizes = ModelSizes(blobs)
    assert sizes.of(version) == Sizes(3, 2, 8)
    assert sizes.of(None) is None
    assert ModelSizes(BlobFolder(tmp_path / "elsewhere")).of(version) is None
