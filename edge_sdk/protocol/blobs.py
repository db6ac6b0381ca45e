"""Content-addressed blobs: digests, and the arithmetic of which bytes are still missing. No I/O.

A blob's name is the SHA-256 of its bytes. The receiver keeps one flag a chunk; the chunk that starts at
``index * chunk_bytes`` is present or missing as a whole, so a resumed transfer asks only for what is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from edge_sdk.protocol.messages import MAX_CHUNK_BYTES

Range = tuple[int, int]


def digest_of(data: bytes | memoryview) -> str:
    """The name of a blob: SHA-256, lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def chunk_count(size_bytes: int, chunk_bytes: int = MAX_CHUNK_BYTES) -> int:
    """How many chunks a blob of this size has; the last may be short."""
    return -(-size_bytes // chunk_bytes)


def missing_ranges(present: bytes | bytearray, size_bytes: int, chunk_bytes: int = MAX_CHUNK_BYTES) -> Iterator[Range]:
    """Byte ranges [start, stop) of the chunks whose flag in ``present`` is 0, not 1; adjacent ones joined, rising."""
    start = present.find(0)
    while start >= 0:
        stop = present.find(1, start)
        if stop < 0:
            yield start * chunk_bytes, size_bytes
            return
        yield start * chunk_bytes, stop * chunk_bytes
        start = present.find(0, stop)


def chunks_of(ranges: Iterable[Range], size_bytes: int, chunk_bytes: int = MAX_CHUNK_BYTES) -> Iterator[Range]:
    """Cut byte ranges at chunk borders: (start, stop) of each chunk to send; what lies outside the blob is left out."""
    for start, stop in ranges:
        for offset in range(start - start % chunk_bytes, min(stop, size_bytes), chunk_bytes):
            yield offset, min(offset + chunk_bytes, size_bytes)


def joined(chunks: Iterable[Range]) -> Iterator[Range]:
    """Adjacent ranges made one, the order kept: fewer to name in a request."""
    pending: Range | None = None
    for start, stop in chunks:
        if pending is not None and pending[1] == start:
            pending = pending[0], stop
            continue
        if pending is not None:
            yield pending
        pending = start, stop
    if pending is not None:
        yield pending
