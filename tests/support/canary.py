"""Finds strings that were never to leave a device in what it published, however they were wrapped."""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import urllib.parse
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import msgspec
import numpy as np

from edge_sdk.errors import MalformedMessageError
from edge_sdk.protocol.messages import Chunk, decode_from_device

_MOST_BYTES = 1 << 22
_UNPACKERS: tuple[tuple[bytes, Callable[[], object]], ...] = (
    *((bytes([0x78, level]), zlib.decompressobj) for level in (0x01, 0x5E, 0x9C, 0xDA)),
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
)


def leaks(payloads: Sequence[bytes], canaries: Iterable[str], token_ids: Iterable[Sequence[int]] = ()) -> set[str]:
    """The name of each encoding in which a canary occurs, or one of the rows of ``token_ids``, in any of ``payloads``.

    Chunks of a blob are also searched together, and whatever is compressed is searched unpacked.
    """
    needles = [found for canary in canaries for found in _encodings(canary)]
    needles += [found for row in token_ids for found in _integers(row)]
    views = [view for payload in (*payloads, *_blobs(payloads)) for view in (payload, *_unpacked(payload))]
    return {name for name, needle in needles if any(needle in view for view in views)}


def _encodings(canary: str) -> Iterator[tuple[str, bytes]]:
    utf8 = canary.encode()
    for name in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le"):
        yield name, canary.encode(name)
    yield "json", json.dumps(canary)[1:-1].encode()
    yield "json", msgspec.json.encode(canary)[1:-1]
    yield "url", urllib.parse.quote(canary).encode()
    yield "hex", utf8.hex().encode()
    for before in range(3):  # the three ways in which bytes can lie in base64, less what their neighbours decide
        text = base64.b64encode(bytes(before) + utf8)
        yield "base64", text[4 if before else 0 : len(text) // 4 * 4 - 4]


def _integers(row: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    for dtype in (np.int64, np.int32, np.int16, np.uint8):
        yield "token ids", np.asarray(row).astype(dtype).tobytes()
    yield "token ids", msgspec.msgpack.encode(list(row))[1:]
    yield "token ids", msgspec.json.encode(list(row))[1:-1]


def _blobs(payloads: Iterable[bytes]) -> Iterator[bytes]:
    """Each blob of which chunks were sent, put together again."""
    blobs: defaultdict[str, dict[int, bytes]] = defaultdict(dict)
    for payload in payloads:
        try:
            message = decode_from_device(payload)
        except MalformedMessageError:  # the coordinator's, and what a test makes up
            continue
        if isinstance(message, Chunk):
            blobs[message.digest][message.offset] = message.data
    return (b"".join(data for _, data in sorted(parts.items())) for parts in blobs.values())


def _unpacked(payload: bytes) -> Iterator[bytes]:
    """What every place decompresses to at which something compressed could begin."""
    for magic, unpacker in _UNPACKERS:
        place = payload.find(magic)
        while place >= 0:
            with suppress(zlib.error, OSError, lzma.LZMAError):
                yield unpacker().decompress(payload[place:], _MOST_BYTES)  # type: ignore[attr-defined]
            place = payload.find(magic, place + 1)
