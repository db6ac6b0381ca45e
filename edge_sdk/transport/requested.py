"""The sending side: grains that peers have requested and that are not sent yet. Bounded, without duplicates, and fair.

Blobs are read only when they can be sent, so that a thousand peers that ask at once only cost their requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

MAX_GRAINS_PER_PEER = 512

Wish = tuple[str, int]


class Requested:
    """The requested grains of each peer: (digest, grain index), in the order of requests."""

    def __init__(self) -> None:
        self._wishes: OrderedDict[str, OrderedDict[Wish, None]] = OrderedDict()

    def add(self, peer: str, digest: str, grains: Iterable[int]) -> None:
        """Add requests of ``peer``. Those beyond its limit are dropped: it will ask again."""
        own = self._wishes.setdefault(peer, OrderedDict())
        room = MAX_GRAINS_PER_PEER - len(own)
        own.update(dict.fromkeys((digest, grain) for grain in islice(grains, max(0, room))))
        if not own:
            del self._wishes[peer]

    def drop(self, peer: str, digest: str) -> None:
        """Forget what ``peer`` has requested of a blob."""
        own = self._wishes.pop(peer, OrderedDict())
        left = OrderedDict.fromkeys(wish for wish in own if wish[0] != digest)
        if left:
            self._wishes[peer] = left

    def next(self, most_grains: int) -> tuple[str, str, int, int] | None:
        """The next run of adjacent grains to send, (peer, digest, first grain, how many), at most ``most_grains``.

        Afterwards it is the other peers' turn. ``None`` if nothing is requested.
        """
        if not self._wishes:
            return None
        peer, own = self._wishes.popitem(last=False)
        (digest, first), _ = own.popitem(last=False)
        count = 1
        while count < most_grains and next(iter(own), None) == (digest, first + count):
            own.popitem(last=False)
            count += 1
        if own:
            self._wishes[peer] = own
        return peer, digest, first, count
