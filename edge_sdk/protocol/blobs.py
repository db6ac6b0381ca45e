"""Content-addressed blobs: digests, and the arithmetic of which bytes are still missing. No I/O.

A blob's name is the SHA-256 of its bytes. The receiver keeps one flag a grain; the grain that starts at
``index * GRAIN_BYTES`` is present or missing as a whole, so a resumed transfer asks only for what is missing. A chunk
is as many grains as go well into one message.
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
    """The id of an update: the digest of who made it, for what, from what, and what it is."""
    return digest_of("\0".join((device, task, str(round_number), base_version, digest)).encode())


def grain_count(size_bytes: int, grain_bytes: int = GRAIN_BYTES) -> int:
    """How many grains a blob, or a part of one, of this size has; the last may be short."""
    return -(-size_bytes // grain_bytes)


def missing_grains(present: bytes | bytearray) -> Iterator[int]:
    """The indices of the grains whose flag in ``present`` is 0, rising."""
    index = present.find(0)
    while index >= 0:
        yield index
        index = present.find(0, index + 1)


def grains_of(ranges: Iterable[Range], size_bytes: int, grain_bytes: int = GRAIN_BYTES) -> Iterator[int]:
    """The indices of the grains that byte ranges touch; what lies outside the blob is left out."""
    for start, stop in ranges:
        yield from range(start // grain_bytes, grain_count(min(stop, size_bytes), grain_bytes))


def ranges_of(grains: Iterable[int], size_bytes: int, grain_bytes: int = GRAIN_BYTES) -> Iterator[Range]:
    """Byte ranges [start, stop) of grains by index, adjacent ones joined, the order kept."""
    first = following = -1
    for grain in grains:
        if grain != following:
            if following >= 0:
                yield first * grain_bytes, min(following * grain_bytes, size_bytes)
            first = grain
        following = grain + 1
    if following >= 0:
        yield first * grain_bytes, min(following * grain_bytes, size_bytes)
