"""The arithmetic of grains: what is missing, what is present and what is sent always make up the whole."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.protocol.blobs import Range, digest_of, grain_count, grains_of, missing_grains, ranges_of

GRAIN = 10
sizes = st.integers(0, 300)


@st.composite
def partial_blobs(draw: st.DrawFn) -> tuple[int, bytes]:
    """A size and one flag a grain."""
    size_bytes = draw(sizes)
    count = grain_count(size_bytes, GRAIN)
    return size_bytes, bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))


def covered(ranges: list[Range]) -> list[int]:
    return [byte for start, stop in ranges for byte in range(start, stop)]


@given(sizes)
def test_grains_of_the_whole_are_all(size_bytes: int) -> None:
    grains = list(grains_of([(0, size_bytes)], size_bytes, GRAIN))
    assert grains == list(range(grain_count(size_bytes, GRAIN)))
    assert covered(list(ranges_of(grains, size_bytes, GRAIN))) == list(range(size_bytes))


@given(partial_blobs())
def test_missing_ranges_are_exactly_the_bytes_without_flag(blob: tuple[int, bytes]) -> None:
    size_bytes, present = blob
    ranges = list(ranges_of(missing_grains(present), size_bytes, GRAIN))
    assert covered(ranges) == [byte for byte in range(size_bytes) if not present[byte // GRAIN]]
    assert all(stop < later for (_, stop), (later, _) in pairwise(ranges)), "not joined"


@given(partial_blobs())
def test_grains_of_the_ranges_of_grains_are_those_grains(blob: tuple[int, bytes]) -> None:
    size_bytes, present = blob
    grains = list(missing_grains(present))
    assert list(grains_of(ranges_of(grains, size_bytes, GRAIN), size_bytes, GRAIN)) == grains


@given(st.lists(st.integers(0, 29), unique=True))
def test_ranges_of_grains_in_any_order_hold_each_once(grains: list[int]) -> None:
    ranges = list(ranges_of(grains, 300, GRAIN))
    assert covered(ranges) == [byte for grain in grains for byte in range(grain * GRAIN, (grain + 1) * GRAIN)]


@given(sizes, st.lists(st.tuples(st.integers(0, 2**53), st.integers(0, 2**53)), max_size=5))
def test_grains_of_hostile_ranges_stay_inside_the_blob(size_bytes: int, ranges: list[Range]) -> None:
    assert all(0 <= grain < grain_count(size_bytes, GRAIN) for grain in grains_of(ranges, size_bytes, GRAIN))


@given(sizes, st.integers(0, 300), st.integers(0, 300))
def test_grains_of_a_range_hold_every_byte_of_it(size_bytes: int, start: int, stop: int) -> None:
    grains = grains_of([(start, stop)], size_bytes, GRAIN)
    assert set(range(start, min(stop, size_bytes))) <= set(covered(list(ranges_of(grains, size_bytes, GRAIN))))


def test_digest_is_sha256_in_hexadecimal() -> None:
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
