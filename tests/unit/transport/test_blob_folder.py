"""Blobs on disk: names that hold what they say, and half-fetched blobs that survive a kill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from edge_sdk.errors import BlobCorruptError, DiskFullError, MalformedMessageError, StorageError
from edge_sdk.protocol.blobs import digest_of, grain_count
from edge_sdk.protocol.messages import GRAIN_BYTES, MAX_CHUNK_BYTES
from edge_sdk.transport.blob_folder import BlobFolder, Partial

DATA = bytes(range(256)) * 2000  # 3.9 chunks
DIGEST = digest_of(DATA)


@pytest.fixture
def folder(tmp_path: Path) -> BlobFolder:
    return BlobFolder(tmp_path / "blobs")


def fill(partial: Partial, *offsets: int) -> None:
    for offset in offsets:
        partial.write(offset, DATA[offset : offset + MAX_CHUNK_BYTES])


def all_offsets() -> range:
    return range(0, len(DATA), MAX_CHUNK_BYTES)


def test_put_bytes_is_read_back_by_range(folder: BlobFolder) -> None:
    assert folder.put_bytes(DATA) == folder.put_bytes(DATA) == DIGEST
    assert folder.has(DIGEST)
    assert folder.size_of(DIGEST) == len(DATA)
    assert folder.read(DIGEST, 1000, 2000) == DATA[1000:2000]
    assert folder.read(DIGEST, len(DATA) - 5, len(DATA) + 5) == DATA[-5:]
    assert folder.digests() == (DIGEST,)
    assert folder.size_bytes() == len(DATA)


@pytest.mark.parametrize("move", [False, True])
def test_put_file_keeps_or_consumes_its_source(folder: BlobFolder, tmp_path: Path, move: bool) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    assert folder.put_file(source, move=move) == DIGEST
    assert folder.path_of(DIGEST).read_bytes() == DATA
    assert source.exists() is not move
    assert list(folder.path.iterdir()) == [folder.path_of(DIGEST)]


def test_put_file_moves_across_filesystems(folder: BlobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, rename = tmp_path / "source", Path.replace
    source.write_bytes(DATA)

    def replace(path: Path, target: Path) -> Path:
        if path == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    assert folder.put_file(source, move=True) == DIGEST
    assert folder.path_of(DIGEST).read_bytes() == DATA
    assert not source.exists()


def test_missing_source_is_named(folder: BlobFolder, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        folder.put_file(tmp_path / "absent")


def test_absent_blob_has_no_size_and_cannot_be_read(folder: BlobFolder) -> None:
    assert not folder.has(DIGEST)
    assert folder.size_of(DIGEST) is None
    with pytest.raises(StorageError, match="No such file"):
        folder.read(DIGEST, 0, 1)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", DIGEST.upper(), DIGEST + "0", DIGEST[:-1] + "\n"])
def test_name_that_is_no_digest_is_refused(folder: BlobFolder, name: str) -> None:
    with pytest.raises(MalformedMessageError, match="not a SHA-256"):
        folder.has(name)


def test_partial_in_any_order_becomes_the_blob(folder: BlobFolder) -> None:
    partial = folder.open_partial(DIGEST, len(DATA))
    assert list(partial.missing()) == list(range(grain_count(len(DATA))))
    fill(partial, *reversed(all_offsets()))
    assert partial.is_complete
    partial.commit()
    assert folder.path_of(DIGEST).read_bytes() == DATA
    assert list(folder.path.iterdir()) == [folder.path_of(DIGEST)]


def test_empty_blob_is_complete_at_once(folder: BlobFolder) -> None:
    folder.open_partial(digest_of(b""), 0).commit()
    assert folder.size_of(digest_of(b"")) == 0


def test_wrong_bytes_are_thrown_away(folder: BlobFolder) -> None:
    partial = folder.open_partial(DIGEST, len(DATA))
    fill(partial, *all_offsets())
    partial.write(MAX_CHUNK_BYTES, bytes(MAX_CHUNK_BYTES))
    with pytest.raises(BlobCorruptError, match="fetch it again"):
        partial.commit()
    assert list(folder.path.iterdir()) == []


def test_bytes_that_changed_after_their_flag_are_found_out(folder: BlobFolder) -> None:
    """Power loss may keep a flag and lose its bytes."""
    with closing(folder.open_partial(DIGEST, len(DATA))) as partial:
        fill(partial, *all_offsets())
    part = folder.path / f"{DIGEST}.part"
    part.write_bytes(DATA[:MAX_CHUNK_BYTES] + bytes(len(DATA) - MAX_CHUNK_BYTES))
    with pytest.raises(BlobCorruptError):
        folder.open_partial(DIGEST, len(DATA)).commit()


@pytest.mark.parametrize("lost", [".part", ".have"])
def test_partial_without_its_other_file_starts_over(folder: BlobFolder, lost: str) -> None:
    with closing(folder.open_partial(DIGEST, len(DATA))) as partial:
        fill(partial, 0)
    (folder.path / f"{DIGEST}{lost}").unlink()
    with closing(folder.open_partial(DIGEST, len(DATA))) as again:
        assert list(again.missing()) == list(range(grain_count(len(DATA))))


def test_partial_that_was_begun_with_a_false_size_does_no_harm(folder: BlobFolder) -> None:
    with closing(folder.open_partial(DIGEST, 9 * len(DATA))) as partial:
        partial.write(20 * MAX_CHUNK_BYTES, b"beyond")
    again = folder.open_partial(DIGEST, len(DATA))
    fill(again, *all_offsets())
    again.commit()
    assert folder.has(DIGEST)


def test_killed_process_is_continued_where_it_was(folder: BlobFolder) -> None:
    """A child stores two chunks and half of a third, and is killed with SIGKILL while it holds the files open."""
    script = (
        "import sys, os\n"
        "from pathlib import Path\n"
        "from edge_sdk.transport.blob_folder import BlobFolder\n"
        "data = bytes(range(256)) * 2000\n"
        "partial = BlobFolder(Path(sys.argv[1])).open_partial(sys.argv[2], len(data))\n"
        "for offset in (0, 2 * 131072): partial.write(offset, data[offset:offset + 131072])\n"
        "os.pwrite(partial._data_file, data[131072:131072 + 5000], 131072)\n"
        "print('stored', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(folder.path), DIGEST]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"stored\n"
        os.kill(child.pid, signal.SIGKILL)
    partial = folder.open_partial(DIGEST, len(DATA))
    grains = MAX_CHUNK_BYTES // GRAIN_BYTES
    assert list(partial.missing()) == [*range(grains, 2 * grains), *range(3 * grains, grain_count(len(DATA)))]
    fill(partial, MAX_CHUNK_BYTES, 3 * MAX_CHUNK_BYTES)
    partial.commit()
    assert folder.path_of(DIGEST).read_bytes() == DATA


def test_flag_is_written_after_its_bytes(folder: BlobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, written, pwrite = folder.open_partial(DIGEST, len(DATA)), [], os.pwrite

    def watched(descriptor: int, data: memoryview, offset: int) -> int:
        written.append(len(data))
        return pwrite(descriptor, data[: max(1, len(data) // 2)], offset)  # short writes must be carried on, too

    monkeypatch.setattr(os, "pwrite", watched)
    fill(partial, 0)
    assert written[0] == MAX_CHUNK_BYTES
    flags = written[written.index(1) + 1 :]
    assert flags[0] == MAX_CHUNK_BYTES // GRAIN_BYTES, "the last of the bytes, then the flags"
    monkeypatch.undo()
    fill(partial, *all_offsets()[1:])
    partial.commit()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_named(folder: BlobFolder, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with closing(folder.open_partial(DIGEST, len(DATA))) as partial:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(DiskFullError, match="no space left"):
            fill(partial, 0)
        assert not partial.is_complete
        with pytest.raises(DiskFullError):
            folder.put_bytes(DATA)
    assert not folder.has(DIGEST)
    assert not list(folder.path.glob("put-*"))


def test_real_full_filesystem_is_named(folder: BlobFolder) -> None:
    """/dev/full refuses every write with ENOSPC."""
    (folder.path / f"{DIGEST}.part").touch()
    with closing(folder.open_partial(DIGEST, len(DATA))) as partial:
        os.close(partial._data_file)
        partial._data_file = os.open("/dev/full", os.O_RDWR)
        with pytest.raises(DiskFullError, match="no space left"):
            fill(partial, 0)


def test_delete_removes_blob_and_partial(folder: BlobFolder) -> None:
    with closing(folder.open_partial(DIGEST, len(DATA))) as partial:
        fill(partial, 0)
    folder.put_bytes(DATA)
    folder.delete(DIGEST)
    folder.delete(DIGEST)
    assert list(folder.path.iterdir()) == []


def test_old_left_overs_are_swept_and_young_ones_kept(folder: BlobFolder) -> None:
    for name, age_s in [("put-old", 7200), ("put-young", 60)]:
        path = folder.path / name
        path.touch()
        os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    BlobFolder(folder.path)
    assert [path.name for path in folder.path.iterdir()] == ["put-young"]


def test_keep_only_leaves_nothing_else_whole_or_half(folder: BlobFolder) -> None:
    other, stranger = folder.put_bytes(b"other"), folder.path / "notes.txt"
    stranger.touch()
    folder.put_bytes(DATA)
    for digest in (digest_of(b"wanted"), digest_of(b"gone")):
        with closing(folder.open_partial(digest, 9)):
            pass
    folder.keep_only({DIGEST, digest_of(b"wanted")})
    assert folder.digests() == (DIGEST,)
    assert other not in folder.digests()
    assert {path.name for path in folder.path.iterdir()} == {
        DIGEST,
        stranger.name,
        f"{digest_of(b'wanted')}.part",
        f"{digest_of(b'wanted')}.have",
    }


def test_who_uses_the_folder_waits_for_the_one_who_deletes_and_keeps_others_from_it(folder: BlobFolder) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def use() -> None:
        with folder.in_use(), folder.in_use():
            entered.set()
            go_on.wait(30)

    user = threading.Thread(target=use)
    with folder.deleting() as is_alone:
        user.start()
        assert is_alone
        assert not entered.wait(0.1)
    assert entered.wait(30)
    with folder.deleting() as is_alone:
        assert not is_alone
    go_on.set()
    user.join(30)
    with folder.deleting() as is_alone:
        assert is_alone
