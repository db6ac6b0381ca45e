"""What reads bytes of others, as both harnesses see it: how to call it, what it is fed, and what it may raise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.support.mutation import Mutate, torn

RAW_SHARE = 0.1
_MOST_RAW_BYTES = 400


@dataclass(frozen=True)
class Parser:
    """``parse`` is given bytes and raises nothing but ``refuses``.

    ``seeds`` are valid, and what inputs are made of; ``attacks`` are tried as they are. Of a full run's inputs this one
    has a share of ``weight``: the faster, the more.
    """

    name: str
    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    refuses: type[Exception] | tuple[type[Exception], ...] = ()
    mutate: Mutate = torn
    weight: int = 10
    attacks: tuple[bytes, ...] = ()

    def input_of(self, seed: int, number: int) -> bytes:
        """The ``number``-th input of the run ``seed``: what is known, then what is made of seeds, and some noise."""
        known = (*self.seeds, *self.attacks)
        if number < len(known):
            return known[number]
        chance = Random(f"{self.name} {seed} {number}")
        if chance.random() < RAW_SHARE:
            return chance.randbytes(chance.randrange(_MOST_RAW_BYTES))
        return self.mutate(chance.choice(self.seeds), chance)


def of_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A parser of files as one of bytes: they are at ``path`` when it reads."""

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return parse
