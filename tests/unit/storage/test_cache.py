"""The cache: room is made by what was used longest ago, what is pinned stays, and recency outlives the process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_sdk.errors import CacheFullError, DiskFullError
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import MAX_CHUNK_BYTES, BlobEntry, Part
from edge_sdk.storage.cache import BlobCache, Held, choose

LIMIT_BYTES = 10_000
NOTHING: frozenset[str] = frozenset()


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "blobs", LIMIT_BYTES)


def put(cache: BlobCache, number: int, size_bytes: int = 3000) -> str:
    """A blob unlike those of other numbers, used now."""
    digest = cache.put_bytes(bytes([number]) * size_bytes)
    cache.use([digest])
    return digest


def coming(size_bytes: int) -> BlobEntry:
    return BlobEntry(part=Part.WEIGHTS, digest=digest_of(b"coming"), size_bytes=size_bytes)


def test_room_is_made_by_what_was_used_longest_ago(cache: BlobCache) -> None:
    first, second, third = (put(cache, number) for number in range(3))
    cache.use([first])
    cache.make_room([coming(4000)], NOTHING)
    assert {*cache.digests()} == {first, third}
    assert not cache.has(second)


def test_no_more_is_evicted_than_the_room_that_lacks(cache: BlobCache) -> None:
    kept = {put(cache, number) for number in range(3)}
    cache.make_room([coming(1000)], NOTHING)
    assert {*cache.digests()} == kept


def test_room_reserved_for_an_update_is_made_as_well(cache: BlobCache) -> None:
    first, second, third = (put(cache, number) for number in range(3))
    cache.make_room([coming(1000)], NOTHING, reserve_bytes=1)
    assert {*cache.digests()} == {second, third}
    assert not cache.has(first)


def test_what_is_pinned_stays_however_old(cache: BlobCache) -> None:
    oldest, second, third = (put(cache, number) for number in range(3))
    cache.make_room([coming(7000)], {oldest})
    assert cache.digests() == (oldest,)
    assert not cache.has(second)
    assert not cache.has(third)


def test_what_is_here_already_needs_no_room(cache: BlobCache) -> None:
    kept = [put(cache, number) for number in range(3)]
    entries = [BlobEntry(part=Part.WEIGHTS, digest=digest, size_bytes=3000) for digest in kept]
    cache.make_room(entries, {*kept})
    assert {*cache.digests()} == {*kept}


def test_blob_that_cannot_fit_is_refused_and_nothing_is_evicted(cache: BlobCache) -> None:
    pinned, other = put(cache, 0), put(cache, 1)
    with pytest.raises(CacheFullError, match=r"0\.0 MiB do not fit .*raise cache_bytes"):
        cache.make_room([coming(7001)], {pinned})
    assert {*cache.digests()} == {pinned, other}
    cache.make_room([coming(7000)], {pinned})
    assert cache.digests() == (pinned,)


def test_unfinished_blob_counts_in_full_and_goes_when_nobody_wants_it(cache: BlobCache) -> None:
    stale = digest_of(b"stale")
    cache.open_partial(stale, 9000).close()
    assert [(blob.digest, blob.size_bytes) for blob in cache.held()] == [(stale, 9000)]
    cache.make_room([coming(2000)], NOTHING)
    assert list(cache.path.iterdir()) == []


def test_unfinished_blob_that_is_coming_takes_its_room_once(cache: BlobCache) -> None:
    kept, entry = put(cache, 0), coming(7000)
    cache.open_partial(entry.digest, entry.size_bytes).close()
    cache.make_room([entry], NOTHING)
    assert cache.has(kept)
    assert {blob.digest for blob in cache.held()} == {kept, entry.digest}


def test_recency_outlives_the_process_and_a_clock_that_is_set_back(
    cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = put(cache, 0), put(cache, 1)
    monkeypatch.setattr("edge_sdk.storage.cache.time", SimpleNamespace(time_ns=lambda: 0))
    cache.use([first])
    BlobCache(cache.path, LIMIT_BYTES).make_room([coming(6000)], NOTHING)
    assert cache.digests() == (first,)
    assert not cache.has(second)


def test_shrinking_keeps_what_is_pinned_even_above_the_limit(cache: BlobCache) -> None:
    pinned, other = put(cache, 0), put(cache, 1)
    assert cache.shrink({pinned}, limit_bytes=0) == 3000
    assert cache.digests() == (pinned,)
    assert not cache.has(other)


def test_lower_limit_of_the_owner_holds_after_shrinking(cache: BlobCache) -> None:
    digests = [put(cache, number) for number in range(3)]
    lowered = BlobCache(cache.path, 5000)
    assert lowered.shrink(NOTHING) == 6000
    assert lowered.digests() == (digests[2],)


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the disk has free, to be set."""
    figures = {"free": 0}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(**figures))
    return figures


def test_disk_with_less_room_than_the_limit_evicts_too(tmp_path: Path, free_bytes: dict[str, int]) -> None:
    free_bytes["free"] = 3 << 20
    cache = BlobCache(tmp_path / "blobs", 1 << 30, keep_free_bytes=2 << 20)
    first, second = put(cache, 0, 1 << 20), put(cache, 1, 1 << 20)
    cache.make_room([coming(3 << 19)], NOTHING)
    assert cache.digests() == (second,)
    assert not cache.has(first)


def test_disk_without_room_is_refused_in_one_line_and_nothing_is_evicted(
    tmp_path: Path, free_bytes: dict[str, int]
) -> None:
    free_bytes["free"] = 3 << 20
    cache = BlobCache(tmp_path / "blobs", 1 << 30, keep_free_bytes=2 << 20)
    held = put(cache, 0, 1 << 20)
    with pytest.raises(
        DiskFullError, match=r"no space left .*: 3\.0 MiB are needed with 2 left free, 1\.0 too many: free some"
    ):
        cache.make_room([coming(3 << 20)], NOTHING)
    assert cache.has(held)


def test_room_for_checkpoints_is_asked_of_the_disk_alone(tmp_path: Path, free_bytes: dict[str, int]) -> None:
    free_bytes["free"] = 6 << 20
    cache = BlobCache(tmp_path / "blobs", 2 << 20, keep_free_bytes=2 << 20)
    cache.make_room([coming(1 << 20)], NOTHING, reserve_bytes=1 << 20, beside_bytes=2 << 20)
    with pytest.raises(DiskFullError, match=r"4\.5 MiB \(2\.5 for checkpoints\) are needed with 2 left free, 0\.5 too"):
        cache.make_room([coming(1 << 20)], NOTHING, reserve_bytes=1 << 20, beside_bytes=5 << 19)


def test_shrinking_gives_the_disk_what_it_has_to_have_free(tmp_path: Path, free_bytes: dict[str, int]) -> None:
    free_bytes["free"] = 1 << 20
    cache = BlobCache(tmp_path / "blobs", 1 << 30, keep_free_bytes=2 << 20)
    first, second = put(cache, 0, 1 << 20), put(cache, 1, 1 << 20)
    assert cache.shrink(NOTHING) == 1 << 20
    assert cache.digests() == (second,)
    assert not cache.has(first)


def test_file_that_a_slot_links_gives_no_disk_back(cache: BlobCache, tmp_path: Path) -> None:
    os.link(cache.path_of(put(cache, 0)), tmp_path / "model")
    assert [blob.disk_bytes for blob in cache.held()] == [0]


def test_bytes_of_an_unfinished_blob_are_not_asked_of_the_disk_again(
    tmp_path: Path, free_bytes: dict[str, int]
) -> None:
    cache, entry = BlobCache(tmp_path / "blobs", 1 << 30), coming(4 * MAX_CHUNK_BYTES)
    partial = cache.open_partial(entry.digest, entry.size_bytes)
    for index in range(2):
        partial.write(index * MAX_CHUNK_BYTES, bytes(MAX_CHUNK_BYTES))
    os.sync()  # what is not on the disk yet has no blocks there
    partial.close()
    free_bytes["free"] = 2 * MAX_CHUNK_BYTES
    cache.make_room([entry], NOTHING)
    free_bytes["free"] -= MAX_CHUNK_BYTES
    with pytest.raises(DiskFullError):
        cache.make_room([entry], NOTHING)


def test_choice_goes_on_until_both_limit_and_disk_have_room() -> None:
    linked, plain, newest = Held("a", 5, 0, 1), Held("b", 5, 5, 2), Held("c", 5, 5, 3)
    held = [newest, plain, linked]
    assert choose(held, NOTHING, size_bytes=5) == ([linked], 0, 0)
    assert choose(held, NOTHING, size_bytes=5, disk_bytes=5) == ([linked, plain], 0, 0)
    assert choose(held, {"b"}, disk_bytes=7) == ([linked, newest], 0, 2)


def test_what_is_no_blob_is_left_alone_and_counts_nothing(cache: BlobCache) -> None:
    """Such as what a network file system keeps of a file that is deleted while it is read, and a disk's lost+found."""
    (cache.path / "lost+found").mkdir()
    (cache.path / ".nfs0001").write_bytes(bytes(9000))
    os.utime(cache.path / ".nfs0001", (0, 0))
    kept, evicted = {put(cache, number) for number in (1, 2)}, put(cache, 3)
    cache.use(kept)
    cache.make_room([coming(3500)], NOTHING)
    assert {path.name for path in cache.path.iterdir()} == {"lost+found", ".nfs0001", *kept}
    assert not cache.has(evicted)


def test_blob_that_is_completed_meanwhile_is_no_error_of_the_disk(
    cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetch from the web ends on its own thread, and renames its file, while this one looks through the folder."""
    kept, scandir = put(cache, 1), os.scandir

    def looked(path: Path) -> list[os.DirEntry[str]]:
        (path / digest_of(b"coming")).touch()
        entries = [*scandir(path)]
        (path / digest_of(b"coming")).unlink()
        return entries

    monkeypatch.setattr(os, "scandir", looked)
    assert [held.digest for held in cache.held()] == [kept]
