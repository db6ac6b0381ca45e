"""Blobs as files named by their SHA-256, and partial blobs that survive a kill in mid-transfer.

    <digest>        a complete blob: verified, synced, then renamed, so that a file of this name has these bytes
    <digest>.part   the bytes of a blob that is being fetched
    <digest>.have   one byte per grain: 1 once the grain's bytes are in the .part file
    put-*           a blob that is being copied in
    in-use          locked by whoever makes or reads blobs that no record names, and by who deletes what none names

A grain's flag is written after its bytes. A killed process loses neither, since both are in the kernel. Power loss may
keep a flag but lose its bytes; the digest of the whole reveals that before the blob gets its name. Only one process at
a time may fetch into a folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from edge_sdk.disk import disk_errors, one_of_users, sole_user
from edge_sdk.errors import BlobCorruptError, MalformedMessageError, StateInUseError, StorageError
from edge_sdk.protocol.blobs import digest_of, grain_count, missing_grains
from edge_sdk.protocol.messages import GRAIN_BYTES

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOCK = "in-use"
_COPY_BYTES = 1 << 20
_ABANDONED_S = 3600.0


def is_digest(name: str) -> bool:
    """Whether ``name`` is one that a blob can have: a SHA-256 in lower-case hexadecimal."""
    return _DIGEST.fullmatch(name) is not None


def is_sound(path: Path) -> bool:
    """Whether the bytes of a complete blob match its name. Reads all of it; what the disk cannot read is not sound."""
    try:
        return digest_of_file(path) == path.name
    except OSError:
        return False


def digest_of_file(path: Path) -> str:
    """The SHA-256 of a file in lower-case hexadecimal, without reading all of it into memory. Raises ``OSError``."""
    with _opened(path, os.O_RDONLY) as descriptor:
        return _digest_of_open_file(descriptor)


class BlobFolder:
    """A folder of blobs. Every method raises ``DiskFullError`` or another ``StorageError`` where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            for left_over in path.glob("put-*"):
                if time.time() - left_over.stat().st_mtime > _ABANDONED_S:
                    left_over.unlink(missing_ok=True)

    def has(self, digest: str) -> bool:
        """Whether the complete blob is here."""
        return self.path_of(digest).exists()

    def path_of(self, digest: str) -> Path:
        """The path of the blob, whether it exists or not; ``MalformedMessageError`` for a malformed ``digest``."""
        if not is_digest(digest):
            msg = f"blob name {digest[:80]!r} is not a SHA-256 in lower-case hexadecimal"
            raise MalformedMessageError(msg)
        return self.path / digest

    def size_of(self, digest: str) -> int | None:
        """The blob's size in bytes, ``None`` if it is not here."""
        path = self.path_of(digest)
        with disk_errors(path), suppress(FileNotFoundError):
            return path.stat().st_size
        return None

    def read(self, digest: str, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of a complete blob."""
        path = self.path_of(digest)
        with disk_errors(path), _opened(path, os.O_RDONLY) as descriptor:
            return os.pread(descriptor, stop - start, start)

    def put_bytes(self, data: bytes) -> str:
        """Store ``data``; its digest."""
        digest = digest_of(data)
        if not self.has(digest):
            with disk_errors(self.path), self._temporary() as (descriptor, temporary):
                _write_all(descriptor, data, 0)
                _seal(descriptor, temporary, self.path_of(digest))
        return digest

    def put_file(self, source: Path, *, move: bool = False) -> str:
        """Store the bytes of ``source``; their digest.

        With ``move``, ``source`` is gone afterwards; on the same file system it is renamed instead of copied.
        """
        with disk_errors(source), _opened(source, os.O_RDONLY) as descriptor:
            digest = self._take_over(descriptor, source) if move else self._copy_in(descriptor)
        if move:
            source.unlink(missing_ok=True)
        return digest

    def open_partial(self, digest: str, size_bytes: int) -> Partial:
        """Begin to fetch a blob, or resume what an earlier process began."""
        return Partial(self.path_of(digest), digest, size_bytes)

    def digests(self) -> tuple[str, ...]:
        """The names of all complete blobs, sorted."""
        with disk_errors(self.path):
            return tuple(sorted(path.name for path in self.path.iterdir() if is_digest(path.name)))

    def size_bytes(self) -> int:
        """The total size of all files here, partial ones included."""
        with disk_errors(self.path):
            return sum(entry.stat().st_size for entry in os.scandir(self.path) if entry.is_file())

    def delete(self, digest: str) -> None:
        """Remove a blob, complete or partial; no error if it is not here."""
        path = self.path_of(digest)
        with disk_errors(path):
            for name in (path, *_partial_paths(path)):
                name.unlink(missing_ok=True)

    def in_use(self) -> AbstractContextManager[None]:
        """While this is open, no process deletes blobs that no record names; one that does so now is waited for."""
        return one_of_users(self.path / _LOCK, "process", waits=True)

    @contextmanager
    def deleting(self) -> Iterator[bool]:
        """Whether nobody has this folder in use; if so, nobody else will while this is open."""
        is_alone = True
        with ExitStack() as held:
            try:
                held.enter_context(sole_user(self.path / _LOCK, "process"))
            except StateInUseError:
                is_alone = False
            yield is_alone

    def keep_only(self, digests: AbstractSet[str]) -> None:
        """Remove every other blob, complete or partial."""
        with disk_errors(self.path):
            for path in tuple(self.path.iterdir()):
                digest = path.name.partition(".")[0]
                if is_digest(digest) and digest not in digests:
                    path.unlink(missing_ok=True)

    def _take_over(self, descriptor: int, source: Path) -> str:
        digest = _digest_of_open_file(descriptor)
        try:
            _seal(descriptor, source, self.path_of(digest))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return self._copy_in(descriptor)
        return digest

    def _copy_in(self, source: int) -> str:
        with self._temporary() as (descriptor, temporary):
            hasher, offset = hashlib.sha256(), 0
            while data := os.pread(source, _COPY_BYTES, offset):
                hasher.update(data)
                _write_all(descriptor, data, offset)
                offset += len(data)
            digest = hasher.hexdigest()
            _seal(descriptor, temporary, self.path_of(digest))
        return digest

    @contextmanager
    def _temporary(self) -> Iterator[tuple[int, Path]]:
        descriptor, name = tempfile.mkstemp(prefix="put-", dir=self.path)
        try:
            yield descriptor, Path(name)
        finally:
            os.close(descriptor)
            Path(name).unlink(missing_ok=True)


class Partial:
    """A blob that is being fetched, with a flag for each grain that is here. Made by ``open_partial``."""

    def __init__(self, path: Path, digest: str, size_bytes: int) -> None:
        self.digest = digest
        self.size_bytes = size_bytes
        self._path = path
        self._part, self._have = _partial_paths(path)
        self._data_file = self._flag_file = -1
        try:
            with disk_errors(path):
                self._open()
        except StorageError:
            self.close()
            raise

    @property
    def is_complete(self) -> bool:
        """Whether every grain is here; :meth:`commit` then verifies the whole."""
        return 0 not in self._flags

    def missing(self) -> Iterator[int]:
        """The indices of the grains that are not here yet, ascending."""
        return missing_grains(self._flags)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Store the whole grains that start at ``offset``."""
        index, count = offset // GRAIN_BYTES, grain_count(len(data))
        flags = b"\x01" * count
        with disk_errors(self._part):
            _write_all(self._data_file, data, offset)
            _write_all(self._flag_file, flags, index)
        self._flags[index : index + count] = flags

    def commit(self) -> None:
        """Verify the whole, and name it. Raises ``BlobCorruptError`` if the digest differs; then nothing is kept."""
        with disk_errors(self._path):
            found = _digest_of_open_file(self._data_file)
            if found == self.digest:
                _seal(self._data_file, self._part, self._path)
        self.discard()
        if found != self.digest:
            msg = f"blob {self.digest[:16]} came with the bytes of {found[:16]}: thrown away, fetch it again"
            raise BlobCorruptError(msg)

    def discard(self) -> None:
        """Delete what was fetched."""
        self.close()
        with disk_errors(self._path):
            self._have.unlink(missing_ok=True)
            self._part.unlink(missing_ok=True)

    def close(self) -> None:
        """Keep what was fetched for later, and close the files; idempotent."""
        for descriptor in (self._data_file, self._flag_file):
            if descriptor >= 0:
                os.close(descriptor)
        self._data_file = self._flag_file = -1

    def _open(self) -> None:
        self._flags = self._earlier_flags() or bytearray(grain_count(self.size_bytes))
        self._data_file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._flag_file = os.open(self._have, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._data_file, self.size_bytes)
        os.ftruncate(self._flag_file, len(self._flags))
        _write_all(self._flag_file, self._flags, 0)

    def _earlier_flags(self) -> bytearray | None:
        """The flags of an earlier process; ``None`` if there are none, or if they are for another size."""
        if not (self._part.exists() and self._have.exists()):
            return None
        flags = bytearray(flag == 1 for flag in self._have.read_bytes())
        return flags if len(flags) == grain_count(self.size_bytes) else None


def _partial_paths(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.have")


def _seal(descriptor: int, source: Path, target: Path) -> None:
    """Sync the bytes, rename the file, sync the folder: after this, a power loss cannot undo any of it."""
    os.fsync(descriptor)
    source.replace(target)
    with _opened(target.parent, os.O_RDONLY) as folder:
        os.fsync(folder)


def _digest_of_open_file(descriptor: int) -> str:
    hasher, offset = hashlib.sha256(), 0
    while data := os.pread(descriptor, _COPY_BYTES, offset):
        hasher.update(data)
        offset += len(data)
    return hasher.hexdigest()


def _write_all(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; a disk that fills up first writes less than asked, and then refuses."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
