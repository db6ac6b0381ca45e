"""Which examples a model is judged by and never trained on, decided once for each, however many come later.

An example's key is a hash of its input (its text, words, window or image, not its label) with the device's seed, spread
evenly over 0..1; it is held out where the key lies below the share. So growth, another order or a corrected label moves
nothing from one part to the other, and two examples with the same input are never in different parts. A device with few
examples needs exceptions, so that neither part is empty: they are decided once and then kept, see :class:`Past`. What
was ever trained on is kept too, since a model that has seen it cannot be judged by it.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_sdk.data.examples import Columns

Keys = NDArray[np.float64]
_KEY_BITS = 53  # what a float holds exactly
_E = TypeVar("_E", bound=Columns)


class Past(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was decided: keys held out although the share alone says otherwise, and all that were ever trained on."""

    held_out: tuple[float, ...] = ()
    training: tuple[float, ...] = ()


def split_held_out(examples: _E, share: float, seed: int) -> tuple[_E, _E]:
    """(training, held-out) of a device that has seen no others before; order is kept.

    Each part has at least one example where two have different inputs and ``share`` is not 0.

    >>> from edge_sdk import TextExamples
    >>> few = TextExamples(("cheap pills", "see you at noon", "you won"), ("spam", "ham", "spam"))
    >>> training, held_out = split_held_out(few, 0.1, seed=0)
    >>> len(training), len(held_out)
    (2, 1)
    >>> more = TextExamples((*few.texts, *map(str, range(100))), ("ham",) * 103)
    >>> {*held_out.texts} <= {*split_held_out(more, 0.4, seed=0)[1].texts}
    True
    """
    is_held_out, _ = decide(example_keys(examples, seed), share, None)
    return divide(examples, is_held_out)


def divide(examples: _E, is_held_out: NDArray[np.bool_]) -> tuple[_E, _E]:
    """(training, held-out) as :func:`decide` says."""
    return examples.take(np.flatnonzero(~is_held_out)), examples.take(np.flatnonzero(is_held_out))


def example_keys(examples: Columns, seed: int) -> Keys:
    """The key (examples,) of each input, from 0 up to, not including, 1."""
    salt = str(seed).encode()
    digests = (hashlib.blake2b(_bytes_of(given), digest_size=8, key=salt).digest() for given in examples.columns()[0])
    return np.array([_as_share(digest) for digest in digests], dtype=np.float64)


def decide(keys: Keys, share: float, known: Past | None) -> tuple[NDArray[np.bool_], Past]:
    """Which examples (examples,) are held out, and what has to be remembered of it.

    ``known`` is what an earlier call returned, ``None`` at first. Where all examples would be held out, one is trained
    on, but only at first: later it might have judged a model before. Where none would be, one is that was never
    trained on; where there is no such one, none is.
    """
    past = known or Past()
    is_held_out = ((keys < share) | np.isin(keys, past.held_out)) & ~np.isin(keys, past.training)
    if known is None and is_held_out.any() and is_held_out.all():
        is_held_out = keys != keys.max()
    untrained = np.setdiff1d(keys, past.training)
    if share and not is_held_out.any() and len(untrained) and len(np.unique(keys)) > 1:
        past = msgspec.structs.replace(past, held_out=(*past.held_out, float(untrained[0])))
        is_held_out = keys == untrained[0]
    training = np.union1d(past.training, keys[~is_held_out])
    return is_held_out, msgspec.structs.replace(past, training=tuple(training.tolist()))


def _bytes_of(given: object) -> bytes:
    return given.tobytes() if isinstance(given, np.ndarray) else msgspec.msgpack.encode(given)


def _as_share(digest: bytes) -> float:
    return float(int.from_bytes(digest, "big") >> (64 - _KEY_BITS)) / 2.0**_KEY_BITS
