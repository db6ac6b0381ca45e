"""Backs up all of a coordinator's state in one file: its store, the blobs that the store records, and its keys.

    coordinator.sqlite   the store, whatever database it was in
    round.key, …         secret: whoever has the file can sign in the coordinator's name
    fleet.json, ca/      secret, if the fleet has an authority: whoever has these can issue device certificates
    blobs/<digest>       newest versions, releases, and updates that are not aggregated yet

A backup may be taken while a coordinator serves. A restored coordinator continues from that moment: devices send again
what they have no receipt for, and are told again what they had been told since.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from coordinator.delivery.keys import key_file
from coordinator.fleet.folder import FLEET_FILES
from coordinator.rounds.recovery import recorded_blobs
from coordinator.store.database import Store
from coordinator.store.opening import SQLITE_FILE, is_new, open_store, sole_user
from edge_sdk.disk import disk_errors, durable_file, sync, write_durably
from edge_sdk.errors import ConfigurationError, DataFormatError
from edge_sdk.protocol.signing import Role
from edge_sdk.transport.blob_folder import BlobFolder

_BLOBS = "blobs"
_KEYS = frozenset(key_file(Path(), role).name for role in Role) | FLEET_FILES
_MAX_KEY_BYTES = 16 * 1024
_RELEASES_SINCE = 1_000_000


def back_up(state_dir: Path, file: Path) -> int:
    """Write all of ``state_dir`` to ``file``, which only its owner can read; returns the number of blobs in it.

    Raises ``ConfigurationError`` if there is nothing to back up or ``file`` exists, ``StorageError`` if the disk
    refuses.
    """
    if is_new(state_dir):
        raise ConfigurationError(f"state folder {state_dir} has no store: there is nothing to back up")
    if file.exists():
        raise ConfigurationError(f"{file} exists already: choose another file")
    folder, blobs = file.absolute().parent, BlobFolder(state_dir / _BLOBS)
    with ExitStack() as held:
        held.enter_context(disk_errors(folder))
        copy = Path(held.enter_context(TemporaryDirectory(dir=folder))) / SQLITE_FILE
        store = held.enter_context(closing(open_store(state_dir)))
        held.enter_context(blobs.in_use())  # what the copy records is not deleted before it is packed
        needed = _copied(store, copy)
        _pack(file, state_dir, copy, {digest: blobs.path_of(digest) for digest in needed})
    return len(needed)


def restore(file: Path, state_dir: Path) -> int:
    """Restore ``state_dir`` to its state when ``file`` was written; returns the number of blobs.

    The next release gets a number above any that was used since, because devices refuse a number that is not newer. An
    interrupted restoration is completed by the next. Raises ``ConfigurationError`` if the folder has a store or other
    keys, ``DataFormatError`` for a file that is damaged or no backup, ``StateInUseError`` while the folder is in use,
    and ``StorageError`` if the disk refuses.
    """
    with sole_user(state_dir):
        if not is_new(state_dir):
            raise ConfigurationError(f"state folder {state_dir} has a store: restore into another one")
        try:
            with disk_errors(file), tarfile.open(file, "r:") as archive:  # uncompressed only: others may be bombs
                return _unpack(archive, file, state_dir)
        except (tarfile.TarError, EOFError, ValueError) as error:  # ValueError: an invalid number in a header
            raise DataFormatError(f"{file} is not a backup of a coordinator, or is truncated ({error})") from error


def _copied(store: Store, copy: Path) -> set[str]:
    """Copy one consistent state of ``store`` to the file ``copy``; returns the digests of the blobs that it records."""
    with closing(_store_in(copy)) as other:
        store.copy_to(other)
        with other.reading() as tx:
            return recorded_blobs(tx)


def _pack(file: Path, state_dir: Path, copy: Path, blobs: Mapping[str, Path]) -> None:
    with durable_file(file) as out, tarfile.open(fileobj=out, mode="w", dereference=True) as archive:
        os.fchmod(out.fileno(), 0o600)
        archive.add(copy, SQLITE_FILE)
        for key in sorted(name for name in _KEYS if (state_dir / name).exists()):
            archive.add(state_dir / key, key)
        for digest, blob in sorted(blobs.items()):
            archive.add(blob, f"{_BLOBS}/{digest}")


def _unpack(archive: tarfile.TarFile, file: Path, state_dir: Path) -> int:
    """Unpack the archive. The store is put in place last, in one step: until then the folder counts as new."""
    blobs, digests, keys = BlobFolder(state_dir / _BLOBS), set[str](), dict[str, bytes]()
    with TemporaryDirectory(dir=state_dir) as scratch:
        part, copy = Path(scratch) / "part", Path(scratch) / SQLITE_FILE
        for member in archive:
            name, content = member.name.removeprefix(f"{_BLOBS}/"), _content(archive, member, file)
            if member.name in _KEYS:
                keys[member.name] = content.read(_MAX_KEY_BYTES)
            elif member.name == SQLITE_FILE:
                _write(content, copy)
            else:
                _write(content, part)
                if blobs.put_file(part, move=True) != name:
                    raise DataFormatError(f"{file} is damaged: blob {name[:16]} does not match its digest")
                digests.add(name)
        if key_file(Path(), Role.ROUND).name not in keys:
            raise DataFormatError(f"{file} is not a backup of a coordinator: it has no key for rounds")
        _check_store(copy, digests, file)
        for name, key in keys.items():
            _put_key(state_dir / name, key)
        for suffix in ("-wal", "-shm"):  # of a store that was removed: SQLite would add them to this one
            (state_dir / f"{SQLITE_FILE}{suffix}").unlink(missing_ok=True)
        copy.replace(state_dir / SQLITE_FILE)
        sync(state_dir)
    return len(digests)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> IO[bytes]:
    """The content of a plain file with one of a backup's names; raises ``DataFormatError`` for anything else."""
    is_known = member.name in {SQLITE_FILE, *_KEYS} or member.name.rpartition("/")[0] == _BLOBS
    content = archive.extractfile(member) if is_known and member.isreg() and not member.issparse() else None
    if content is None:
        raise DataFormatError(f"{file} is not a backup of a coordinator: it has {member.name[:80]!r}")
    return content


def _put_key(path: Path, key: bytes) -> None:
    if path.exists() and path.read_bytes() != key:
        raise ConfigurationError(f"{path} is not the backup's key: restore into another folder")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_durably(path, key, secret=True)


def _write(content: IO[bytes], path: Path) -> None:
    with path.open("wb") as out:
        shutil.copyfileobj(content, out)


def _check_store(copy: Path, digests: set[str], file: Path) -> None:
    if not copy.exists():
        raise DataFormatError(f"{file} is not a backup of a coordinator: it has no store")
    with closing(_store_in(copy)) as store:
        try:
            with store.reading() as tx:
                lacking = recorded_blobs(tx) - digests
        except TypeError as error:  # NULL in a column that never has it
            raise DataFormatError(f"{file} is damaged: its store cannot be read ({error})") from error
        if lacking:
            raise DataFormatError(f"{file} is damaged: {len(lacking)} blobs that its store records are not in it")
        store.skip_numbers(_RELEASES_SINCE)


def _store_in(path: Path) -> Store:
    return Store(f"sqlite:///{path}")
