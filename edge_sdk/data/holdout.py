"""Which examples are held out to judge models by; decided once for each example, however many come later.

An example's key is a hash of its input (its text, words, window or image, not its label) and the device's seed, uniform
in [0, 1); the example is held out if its key is below the share. So examples that are added, reordered or relabelled
move no other example from one part to the other, and two examples with the same input are always in the same part. A
device with few examples needs exceptions, so that neither part is empty: they are decided once and then remembered, see
:class:`Past`. So is whatever was ever trained on, since a model cannot be judged by examples that it has seen.
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
    """Earlier decisions: keys that are held out although they are above the share, and all keys ever trained on."""

    held_out: tuple[float, ...] = ()
    training: tuple[float, ...] = ()


def split_held_out(examples: _E, share: float, seed: int) -> tuple[_E, _E]:
    """(training, held-out) of a device without earlier examples, in their order.

    Neither part is empty if at least two inputs differ and ``share`` is not 0.

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
    """The key of each input in [0, 1), float64 (examples,)."""
    salt = str(seed).encode()
    digests = (hashlib.blake2b(_bytes_of(given), digest_size=8, key=salt).digest() for given in examples.columns()[0])
    return np.array([_as_share(digest) for digest in digests], dtype=np.float64)


def decide(keys: Keys, share: float, known: Past | None) -> tuple[NDArray[np.bool_], Past]:
    """Which examples are held out, bool (examples,), and what to remember of it.

    ``known`` is what the previous call returned, ``None`` at first. If all examples would be held out, one is trained
    on instead, but only in the first call: later, a model may have been judged by it. If none would be, one that was
    never trained on is; if there is no such example, none is.
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
