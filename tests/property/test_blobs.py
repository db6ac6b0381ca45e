"""The arithmetic of chunks: what is missing, what is present and what is sent always make up the whole."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.protocol.blobs import Range, chunk_count, chunks_of, digest_of, joined, missing_ranges

CHUNK = 10
sizes = st.integers(0, 300)


@st.composite
def partial_blobs(draw: st.DrawFn) -> tuple[int, bytes]:
    """A size and one flag a chunk."""
    size_bytes = draw(sizes)
    count = chunk_count(size_bytes, CHUNK)
    return size_bytes, bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))


def covered(ranges: list[Range]) -> list[int]:
    return [byte for start, stop in ranges for byte in range(start, stop)]


@given(sizes)
def test_chunks_of_the_whole_tile_it(size_bytes: int) -> None:
    chunks = list(chunks_of([(0, size_bytes)], size_bytes, CHUNK))
    assert covered(chunks) == list(range(size_bytes))
    assert len(chunks) == chunk_count(size_bytes, CHUNK)
    assert all(start % CHUNK == 0 and 0 < stop - start <= CHUNK for start, stop in chunks)


@given(partial_blobs())
def test_missing_ranges_are_exactly_the_bytes_without_flag(blob: tuple[int, bytes]) -> None:
    size_bytes, present = blob
    ranges = list(missing_ranges(present, size_bytes, CHUNK))
    assert covered(ranges) == [byte for byte in range(size_bytes) if not present[byte // CHUNK]]
    assert all(stop < later for (_, stop), (later, _) in pairwise(ranges)), "not joined"


@given(partial_blobs())
def test_joined_chunks_of_missing_ranges_are_those_ranges(blob: tuple[int, bytes]) -> None:
    size_bytes, present = blob
    ranges = list(missing_ranges(present, size_bytes, CHUNK))
    assert list(joined(chunks_of(ranges, size_bytes, CHUNK))) == ranges


@given(sizes, st.lists(st.tuples(st.integers(0, 2**53), st.integers(0, 2**53)), max_size=5))
def test_chunks_of_hostile_ranges_stay_inside_the_blob(size_bytes: int, ranges: list[Range]) -> None:
    for start, stop in chunks_of(ranges, size_bytes, CHUNK):
        assert 0 <= start < stop <= size_bytes
        assert start % CHUNK == 0
        assert stop == min(start + CHUNK, size_bytes)


@given(sizes, st.integers(0, 300), st.integers(0, 300))
def test_chunks_of_a_range_hold_every_byte_of_it(size_bytes: int, start: int, stop: int) -> None:
    wanted = set(range(start, min(stop, size_bytes)))
    assert wanted <= set(covered(list(chunks_of([(start, stop)], size_bytes, CHUNK))))


def test_digest_is_sha256_in_hexadecimal() -> None:
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
