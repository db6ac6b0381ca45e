"""The sending side: which grains peers have asked for and have not been sent yet. Bounded, nothing twice, each in turn.

Nothing of a blob is read before it can be sent, so that a thousand peers that ask at once cost their wishes alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

MAX_GRAINS_PER_PEER = 512

Wish = tuple[str, int]


class Requested:
    """What is wanted by each peer: (digest, grain index), in the order of asking."""

    def __init__(self) -> None:
        self._wishes: OrderedDict[str, OrderedDict[Wish, None]] = OrderedDict()

    def add(self, peer: str, digest: str, grains: Iterable[int]) -> None:
        """``peer`` wants these too. What exceeds its limit is forgotten: it will ask again."""
        own = self._wishes.setdefault(peer, OrderedDict())
        room = MAX_GRAINS_PER_PEER - len(own)
        own.update(dict.fromkeys((digest, grain) for grain in islice(grains, max(0, room))))
        if not own:
            del self._wishes[peer]

    def next(self, most_grains: int) -> tuple[str, str, int, int] | None:
        """Whom to send what: (peer, digest, first grain, how many). Then it is the other peers' turn."""
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
