"""Valid inputs made hostile: trees whose leaves lie, and bytes that are torn; the same from the same random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from random import Random
from typing import Any

import msgspec

Mutate = Callable[[bytes, Random], bytes]
_NUMBERS = (0, 1, -1, 127, 2**16, 2**31, 2**32 - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**64 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 0.5, -1.0, 5e-324, 1e9, 1.7e308, math.nan, math.inf, -math.inf)
_TEXTS = (
    "",
    "a\n",
    "0" * 64,
    "0" * 64 + "\n",
    "\0",
    "../../examples.jsonl",
    "/etc/passwd",
    "A" * 65,
    "x" * 501,
    "\x1b[2J\r\n",
    "\u202e\ufeff\U0001f600e\u0301",
    "__class__",
    "NaN",
    "fp16",
)
_OTHERS = (None, True, False, b"", b"\xff" * 40, [], {}, [[[[[]]]]], {"": {"": {}}})
_ODD_BYTES = (b"\0", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x80", b"\n", b'"', b"[", b"{", b"=", b"\x91", b"9" * 30)
_MOST_HARM = 4
_GROWTH = 1000
_MOST_GROWING = 300
"""Places of a tree that may still grow: what grows in what has grown takes the memory that its parser should have."""


def torn(data: bytes, chance: Random) -> bytes:
    """What bad luck or bad will makes of bytes: cut, flipped, zeroed, doubled, with something in between."""
    torn_data = bytearray(data)
    for _ in range(chance.randint(1, _MOST_HARM)):
        place = chance.randrange(len(torn_data) + 1)
        chance.choice(_HARMS)(torn_data, place, chance)
    return bytes(torn_data)


def of_trees(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes]) -> Mutate:
    """What lies about one or a few values of a format that nests; sometimes :func:`torn` instead."""

    def mutate(data: bytes, chance: Random) -> bytes:
        if chance.random() < 0.3:
            return torn(data, chance)
        with suppress(MemoryError, OverflowError, RecursionError, ValueError):  # no tree, or one that cannot be written
            holder = [decode(data)]
            for _ in range(chance.randint(1, _MOST_HARM)):
                _lie(holder, chance)
            return encode(holder[0])
        return torn(data, chance)

    return mutate


msgpack_or_torn = of_trees(msgspec.msgpack.decode, msgspec.msgpack.encode)
json_or_torn = of_trees(msgspec.json.decode, msgspec.json.encode)
json_lines = of_trees(
    lambda data: [msgspec.json.decode(line) for line in data.splitlines()],
    lambda rows: b"\n".join(msgspec.json.encode(row) for row in (rows if isinstance(rows, list) else [rows])),
)


def tensor_file(data: bytes, chance: Random) -> bytes:
    """A header of another shape before the same rows, under its own length or a wrong one."""
    if chance.random() < 0.3:
        return torn(data, chance)
    length = int.from_bytes(data[:8], "little")
    header, rows = json_or_torn(data[8 : 8 + length], chance), data[8 + length :]
    said = len(header) if chance.random() < 0.8 else chance.choice(_NUMBERS) % 2**64
    return said.to_bytes(8, "little") + header + (torn(rows, chance) if rows and chance.random() < 0.5 else rows)


def _lie(holder: list[Any], chance: Random) -> None:
    """Change something, anywhere below ``holder``, whose only entry is the tree."""
    places = _places(holder)
    inside, key = chance.choice(places)
    value = inside[key]
    harm = chance.randrange(6)
    if harm == 0 and inside is not holder:
        del inside[key]
    elif harm == 1 and isinstance(value, dict):
        value[chance.choice(_TEXTS)] = _odd_value(chance)
    elif harm == 2 and isinstance(value, list) and len(places) < _MOST_GROWING:
        inside[key] = value * chance.choice((2, 17, _GROWTH // max(1, len(value))))
    elif harm == 3 and isinstance(value, (str, bytes)):
        inside[key] = _odd_text(value, chance)
    elif harm == 4 and isinstance(value, (int, float)):
        inside[key] = _odd_number(value, chance)
    else:
        inside[key] = _odd_value(chance)


def _places(holder: list[Any]) -> list[tuple[Any, Any]]:
    """Every container below ``holder``, itself included, with each of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [holder]
    while waiting:
        inside = waiting.pop()
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        found += [(inside, key) for key in keys]
        waiting += [inside[key] for key in keys if isinstance(inside[key], (dict, list))]
    return found


def _odd_value(chance: Random) -> Any:
    return deepcopy(chance.choice(chance.choice((_NUMBERS, _FLOATS, _TEXTS, _OTHERS))))


def _odd_number(value: float, chance: Random) -> float:
    return chance.choice((value + 1, value - 1, -value, float(value), *_NUMBERS, *_FLOATS))


def _odd_text(value: str | bytes, chance: Random) -> str | bytes:
    if isinstance(value, bytes):
        return torn(value, chance)
    return chance.choice((value + "\n", value.upper(), value * 2, value[:-1], f"../{value}", value + "\0"))


def _cut(data: bytearray, place: int, _: Random) -> None:
    del data[place:]


def _drop(data: bytearray, place: int, chance: Random) -> None:
    del data[place : place + chance.randint(1, 16)]


def _flip(data: bytearray, place: int, chance: Random) -> None:
    if place < len(data):
        data[place] ^= 1 << chance.randrange(8)


def _zero(data: bytearray, place: int, chance: Random) -> None:
    size = len(data[place : place + chance.choice((1, 8, 512))])
    data[place : place + size] = bytes(size)


def _noise(data: bytearray, place: int, chance: Random) -> None:
    size = len(data[place : place + chance.choice((1, 4, 64))])
    data[place : place + size] = chance.randbytes(size)


def _insert(data: bytearray, place: int, chance: Random) -> None:
    data[place:place] = chance.choice(_ODD_BYTES) * chance.choice((1, 1, 1, 7, _GROWTH))


def _repeat(data: bytearray, place: int, chance: Random) -> None:
    data[place:place] = data[max(0, place - chance.randint(1, 64)) : place] * chance.choice((1, 2, 30))


_HARMS = (_cut, _drop, _flip, _flip, _flip, _zero, _noise, _insert, _repeat)
