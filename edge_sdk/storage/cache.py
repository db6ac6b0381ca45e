"""A cache of blobs, bounded in size: the least recently used are evicted first, pinned ones never.

A file's mtime records when its blob was last used; it is free for that because a blob's bytes never change. So there is
no index that could disagree with the folder, and recency survives a restart or a kill. A file system's own access time
would not do: most are mounted with ``relatime``, which updates it about once a day.

An unfinished blob counts in full from its first byte, since that is the room that it is going to take.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.disk import disk_errors
from edge_sdk.elastic.runtimes import MIB
from edge_sdk.errors import CacheFullError, DiskFullError
from edge_sdk.protocol.messages import BlobEntry
from edge_sdk.transport.blob_folder import BlobFolder, is_digest


@dataclass(frozen=True, slots=True)
class Held:
    """One blob of the folder, complete or not.

    ``size_bytes`` count against the limit. ``disk_bytes`` are what deleting it frees: none if a slot has a hard link to
    it. ``used_ns`` is when it was last used, in nanoseconds since 1970.
    """

    digest: str
    size_bytes: int
    disk_bytes: int
    used_ns: int


def choose(
    held: Iterable[Held], pinned: AbstractSet[str], *, size_bytes: int = 0, disk_bytes: int = 0
) -> tuple[list[Held], int, int]:
    """Which blobs to evict to free ``size_bytes`` and ``disk_bytes``, and how much of each is still lacking then."""
    chosen: list[Held] = []
    for blob in sorted(held, key=lambda blob: (blob.used_ns, blob.digest)):
        if size_bytes <= 0 and disk_bytes <= 0:
            break
        if blob.digest not in pinned:
            chosen.append(blob)
            size_bytes, disk_bytes = size_bytes - blob.size_bytes, disk_bytes - blob.disk_bytes
    return chosen, max(0, size_bytes), max(0, disk_bytes)


class BlobCache(BlobFolder):
    """A :class:`BlobFolder` that stays within ``limit_bytes``, if callers make room before they add blobs.

    It also leaves ``keep_free_bytes`` of its disk free, since blobs that can be fetched again must not obstruct work.
    ``pinned``, in its methods, are the digests of blobs that stay, whatever the limit.
    """

    def __init__(self, path: Path, limit_bytes: int, keep_free_bytes: int = 0) -> None:
        super().__init__(path)
        self._limit_bytes, self._keep_free_bytes = limit_bytes, keep_free_bytes
        self._used_ns = 0

    def use(self, digests: Iterable[str]) -> None:
        """Mark these blobs as used now, so that others are evicted before them."""
        for digest in digests:
            self._used_ns = max(self._used_ns + 1, time.time_ns())  # rises even where the clock is set back
            path = self.path_of(digest)
            with disk_errors(path):
                os.utime(path, ns=(self._used_ns, self._used_ns))

    def make_room(
        self,
        coming: Iterable[BlobEntry],
        pinned: AbstractSet[str],
        *,
        reserve_bytes: int = 0,
        beside_bytes: int = 0,
    ) -> None:
        """Evict until the blobs that are ``coming``, and ``reserve_bytes`` more, fit within the limit and on the disk.

        The disk also has to hold ``beside_bytes`` of checkpoints, which lie outside of the cache. Raises
        ``CacheFullError`` or ``DiskFullError`` if pinned blobs leave too little room; then nothing is evicted.
        """
        coming = [entry for entry in coming if not self.has(entry.digest)]
        digests = {entry.digest for entry in coming}
        others = [blob for blob in self.held() if blob.digest not in digests]
        begun_bytes = sum(blob.disk_bytes for blob in self.held() if blob.digest in digests)
        need_bytes = sum(entry.size_bytes for entry in coming) + reserve_bytes
        over_bytes = sum(blob.size_bytes for blob in others) + need_bytes - self._limit_bytes
        short_bytes = need_bytes + beside_bytes - begun_bytes + self._lacks_free_bytes()
        chosen, lacking_bytes, disk_lacking_bytes = choose(
            others, pinned, size_bytes=over_bytes, disk_bytes=short_bytes
        )
        if lacking_bytes:
            raise self._limit_error(need_bytes)
        if disk_lacking_bytes:
            raise self._disk_error(need_bytes, beside_bytes, disk_lacking_bytes)
        self._delete_all(chosen)

    def shrink(self, pinned: AbstractSet[str], limit_bytes: int | None = None) -> int:
        """Evict down to ``limit_bytes``, by default the cache's own limit; the bytes evicted."""
        held = self.held()
        limit_bytes = self._limit_bytes if limit_bytes is None else limit_bytes
        over_bytes = sum(blob.size_bytes for blob in held) - limit_bytes
        chosen, _, _ = choose(held, pinned, size_bytes=over_bytes, disk_bytes=self._lacks_free_bytes())
        self._delete_all(chosen)
        return sum(blob.size_bytes for blob in chosen)

    def held(self) -> list[Held]:
        """Every blob in the folder, complete or not; other files are none of its business."""
        files: defaultdict[str, list[os.stat_result]] = defaultdict(list)
        with disk_errors(self.path):
            for entry in os.scandir(self.path):
                digest = entry.name.partition(".")[0]
                with suppress(FileNotFoundError):  # a fetch that ends meanwhile on its own thread renames its file
                    found = entry.stat()
                    if is_digest(digest):
                        files[digest].append(found)
        return [_held(digest, stats) for digest, stats in files.items()]

    def _lacks_free_bytes(self) -> int:
        """The bytes to free on the disk; negative if more than enough is free."""
        with disk_errors(self.path):
            return self._keep_free_bytes - shutil.disk_usage(self.path).free

    def _limit_error(self, need_bytes: int) -> CacheFullError:
        return CacheFullError(
            f"{need_bytes / MIB:.1f} MiB do not fit into the cache of {self._limit_bytes / MIB:.1f} MiB beside what is"
            " in use: raise cache_bytes (--cache-mib)"
        )

    def _disk_error(self, need_bytes: int, beside_bytes: int, lacking_bytes: int) -> DiskFullError:
        need_mib, beside_mib = (need_bytes + beside_bytes) / MIB, beside_bytes / MIB
        beside = f" ({beside_mib:.1f} for checkpoints)" if beside_bytes else ""
        return DiskFullError(
            f"no space left for {self.path}: {need_mib:.1f} MiB{beside} are needed with"
            f" {self._keep_free_bytes / MIB:.0f} left free, {lacking_bytes / MIB:.1f} too many: free some, or raise the"
            " quota"
        )

    def _delete_all(self, blobs: Iterable[Held]) -> None:
        for blob in blobs:
            self.delete(blob.digest)


def _held(digest: str, stats: list[os.stat_result]) -> Held:
    return Held(
        digest,
        size_bytes=max(stat.st_size for stat in stats),  # the flags beside an unfinished blob are a byte for 128 KiB
        disk_bytes=sum(512 * stat.st_blocks for stat in stats if stat.st_nlink == 1),
        used_ns=max(stat.st_mtime_ns for stat in stats),
    )
