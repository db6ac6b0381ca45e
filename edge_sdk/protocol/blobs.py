"""Content-addressed blobs: digests, and the arithmetic of which bytes are still missing. No I/O.

A blob's name is the SHA-256 of its bytes. The receiver keeps one flag per grain. The grain that starts at
``index * GRAIN_BYTES`` is present or missing as a whole, so a resumed transfer asks only for missing grains. A chunk is
a run of grains that fits into one message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from edge_sdk.protocol.messages import GRAIN_BYTES

Range = tuple[int, int]


def digest_of(data: bytes | memoryview) -> str:
    """The name of a blob: SHA-256, lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def update_id(device: str, task: str, round_number: int, base_version: str, digest: str) -> str:
    """The id of an update: a digest of its device, task, round, base version and content."""
    return digest_of("\0".join((device, task, str(round_number), base_version, digest)).encode())


def grain_count(size_bytes: int, grain_bytes: int = GRAIN_BYTES) -> int:
    """The number of grains in ``size_bytes``, the last of which may be short."""
    return -(-size_bytes // grain_bytes)


def missing_grains(present: bytes | bytearray) -> Iterator[int]:
    """The indices of the grains whose flag in ``present`` is 0, ascending."""
    index = present.find(0)
    while index >= 0:
        yield index
        index = present.find(0, index + 1)


def grains_of(ranges: Iterable[Range], size_bytes: int, grain_bytes: int = GRAIN_BYTES) -> Iterator[int]:
    """The indices of the grains that byte ranges [start, stop) touch, without those outside the blob."""
    for start, stop in ranges:
        yield from range(start // grain_bytes, grain_count(min(stop, size_bytes), grain_bytes))


def ranges_of(grains: Iterable[int], size_bytes: int, grain_bytes: int = GRAIN_BYTES) -> Iterator[Range]:
    """The byte ranges [start, stop) of grains, in their order; adjacent grains are joined."""
    first = following = -1
    for grain in grains:
        if grain != following:
            if following >= 0:
                yield first * grain_bytes, min(following * grain_bytes, size_bytes)
            first = grain
        following = grain + 1
    if following >= 0:
        yield first * grain_bytes, min(following * grain_bytes, size_bytes)
