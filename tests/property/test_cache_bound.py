"""Any sequence of coming blobs, uses, pins and evictions: the bound holds, pins hold, the oldest go first."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_sdk.errors import CacheFullError
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import BlobEntry, Part
from edge_sdk.storage.cache import BlobCache

LIMIT_BYTES = 1000
SIZES = (1, 2, 120, 333, 500, 999, 1001)
BLOBS = {digest_of(bytes([size % 251]) * size): bytes([size % 251]) * size for size in SIZES}
numbers = st.sampled_from(sorted(BLOBS))


class CacheMachine(RuleBasedStateMachine):
    """``used`` is the model: what is here, longest unused first."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.cache = BlobCache(self.folder, LIMIT_BYTES)
        self.used: list[str] = []
        self.pinned: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def total_bytes(self) -> int:
        return sum(len(BLOBS[digest]) for digest in self.used)

    def evict_until(self, most_bytes: int) -> bool:
        """What the cache must do, in the plainest words; nothing where it cannot be done."""
        kept = list(self.used)
        for digest in self.used:
            if sum(len(BLOBS[held]) for held in kept) > most_bytes and digest not in self.pinned:
                kept.remove(digest)
        fits = sum(len(BLOBS[held]) for held in kept) <= most_bytes
        self.used = kept if fits else self.used
        return fits

    @rule(digest=numbers, unfinished=st.booleans())
    def comes(self, digest: str, unfinished: bool) -> None:
        size_bytes, known = len(BLOBS[digest]), digest in self.used
        entry = BlobEntry(part=Part.WEIGHTS, digest=digest, size_bytes=size_bytes)
        if unfinished and not known:
            self.cache.open_partial(digest, size_bytes).close()
        try:
            self.cache.make_room([entry], self.pinned)
        except CacheFullError:
            assert not known
            assert not self.evict_until(LIMIT_BYTES - size_bytes)
            self.cache.delete(digest)
            return
        assert known or self.evict_until(LIMIT_BYTES - size_bytes)
        self.fetch(digest)
        self.is_used(digest)

    def fetch(self, digest: str) -> None:
        if not self.cache.has(digest):
            partial = self.cache.open_partial(digest, len(BLOBS[digest]))
            partial.write(0, BLOBS[digest])
            partial.commit()

    @rule(digest=numbers)
    def is_used(self, digest: str) -> None:
        if self.cache.has(digest):
            self.cache.use([digest])
            self.used = [*(held for held in self.used if held != digest), digest]

    @rule(digests=st.sets(numbers, max_size=3))
    def pins(self, digests: set[str]) -> None:
        self.pinned = digests & {*self.used}

    @rule(most_bytes=st.integers(0, LIMIT_BYTES))
    def shrinks(self, most_bytes: int) -> None:
        before = self.total_bytes()
        went_bytes = self.cache.shrink(self.pinned, most_bytes)
        if not self.evict_until(most_bytes):
            self.used = [digest for digest in self.used if digest in self.pinned]
        assert went_bytes == before - self.total_bytes()

    @rule()
    def restarts(self) -> None:
        self.cache = BlobCache(self.folder, LIMIT_BYTES)

    @invariant()
    def holds_what_it_must_and_no_more_than_it_may(self) -> None:
        assert {*self.cache.digests()} == {*self.used}
        assert self.pinned <= {*self.used}
        assert self.cache.size_bytes() <= LIMIT_BYTES


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=30, stateful_step_count=20)
