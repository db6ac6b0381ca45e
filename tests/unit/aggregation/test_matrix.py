"""Regions of parameters of any rank as regions of matrices, and the cells that they are cut into."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregation.matrix import MatrixRegion, as_matrix, cells, matrix_shape
from edge_sdk.elastic.slicing import Region

Shape = tuple[int, ...]
SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@st.composite
def regions(draw: st.DrawFn, shape: Shape) -> Region:
    """Any entries of every axis, at least one, as rising ranges that need not be as long as they could be."""
    axes = []
    for size in shape:
        borders = sorted(draw(st.sets(st.integers(0, size), min_size=2)))
        pieces = [range(low, high) for low, high in pairwise(borders)]
        axes.append(tuple(draw(st.sets(st.sampled_from(pieces), min_size=1).map(lambda kept: sorted(kept, key=min)))))
    return Region(tuple(axes))


@st.composite
def shapes_and_regions(draw: st.DrawFn) -> tuple[Shape, list[Region]]:
    shape = draw(SHAPES)
    return shape, draw(st.lists(regions(shape), min_size=1, max_size=4))


@settings(max_examples=80)
@given(shapes_and_regions(), st.data())
def test_rectangles_of_some_rows_are_the_regions_entries_in_them(
    drawn: tuple[Shape, list[Region]], data: st.DataObject
) -> None:
    shape, (region, *_) = drawn
    part = np.arange(1, region.size + 1, dtype=np.float32)
    full = np.zeros(shape, np.float32)
    region.put(full, part.reshape(region.shape))
    rows, columns = matrix_shape(shape)
    first = data.draw(st.integers(0, rows - 1))
    window = range(first, data.draw(st.integers(first + 1, rows)))

    found = MatrixRegion.of(region, shape)
    packed = part.reshape(-1, found.width)[found.rows_before(window.start) : found.rows_before(window.stop)]
    block = np.zeros((len(window), columns), np.float32)
    for whole, piece in found.rectangles(window):
        block[whole] = packed[piece]
    np.testing.assert_array_equal(block, as_matrix(full)[window.start : window.stop])


@settings(max_examples=80)
@given(shapes_and_regions())
def test_cells_tile_what_is_covered_with_the_sum_of_the_weights(drawn: tuple[Shape, list[Region]]) -> None:
    shape, covering = drawn
    expected, weights = np.zeros(shape, np.float32), {}
    for number, region in enumerate(covering):
        mask = np.zeros(shape, np.float32)
        region.put(mask, np.ones(region.shape, np.float32))
        matrix = MatrixRegion.of(region, shape)
        expected += (number + 1) * mask
        weights[matrix] = weights.get(matrix, 0.0) + number + 1

    found, times = np.zeros(matrix_shape(shape), np.float32), np.zeros(matrix_shape(shape), int)
    for cell in cells(weights):
        cell.within(found, 0)[...] = cell.weight
        times[cell.rows.start : cell.rows.stop, cell.columns.start : cell.columns.stop] += 1
    np.testing.assert_array_equal(found, as_matrix(expected))
    assert times.max() == 1


def test_adjacent_rows_are_one_run_where_the_other_axes_are_whole() -> None:
    region = Region(((range(2),), (range(1, 3),), (range(4),)))
    assert MatrixRegion.of(region, (3, 5, 4)) == MatrixRegion((range(2),), (range(4, 12),))
