"""Two slots for released models: one is current, the other takes the next release and then keeps the one before.

    a/, b/     one file a part, named as the part, and slot.json: what the model is, then the digest of that line
    current    one letter
    report     how the last release did that was assigned, sealed in the same way

1. A release is staged into the slot that is not current: the files first, slot.json last, each made durable.
2. Only :meth:`Slots.switch` moves ``current``, by one rename: after a crash it is the old letter or the new one.
3. A slot is read only after every file matched the digest in slot.json; one that does not hold is never handed out.
4. The current slot is never written to or removed.
5. The other one is removed once its release is not to stay, so that no damage brings it back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_sdk.decoding import UNDECODABLE
from edge_sdk.disk import disk_errors, sync, write_durably
from edge_sdk.errors import BlobCorruptError, StorageError
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import BlobEntry, Part, ReleaseReport
from edge_sdk.protocol.releases import ReleasedModel

_V = TypeVar("_V")
_LETTERS = ("a", "b")
_MANIFEST = "slot.json"
_REPORT = "report"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Slot:
    """A release whose files were found whole."""

    folder: Path
    manifest: ReleasedModel

    def path(self, part: Part) -> Path:
        """The file of ``part``."""
        return self.folder / part.value


class Slots:
    """The slots in ``folder``, made with the first release; one process at a time may stage and switch.

    Raises ``StorageError`` where the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def current(self) -> Slot | None:
        """What to run, ``None`` before the first release; ``BlobCorruptError`` where its files do not hold."""
        letter = self._letter()
        if letter is None:
            return None
        if letter not in _LETTERS:
            raise BlobCorruptError(f"{self._folder / 'current'} holds {letter[:20]!r} and names no slot")
        return _load(self._folder / letter)

    def current_release(self) -> int | None:
        """The number of the current slot's release, whether or not its files hold; ``None`` where it cannot be read."""
        try:
            return _unsealed((self._folder / (self._letter() or "") / _MANIFEST).read_bytes(), ReleasedModel).release
        except (OSError, *UNDECODABLE):
            return None

    def stage(self, manifest: ReleasedModel, files: Mapping[Part, Path]) -> Slot:
        """Put a release beside the current one; ``files`` hold the parts that ``manifest`` names, and are kept.

        Raises ``BlobCorruptError`` where a file does not match its digest, and ``StorageError`` where it is missing.
        """
        folder = self._folder / self._other()
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for entry in manifest.manifest:
                _place(files[entry.part], folder / entry.part.value)
            write_durably(folder / _MANIFEST, _sealed(manifest))
        except OSError as error:
            raise StorageError(f"release {manifest.release} cannot be stored in {folder} ({error})") from error
        return _load(folder)

    def switch(self) -> Slot:
        """Make the other slot current: a release just staged, or, called again, the one before.

        Raises ``BlobCorruptError`` where the other slot is empty or does not hold; then nothing changes.
        """
        letter = self._other()
        slot = _load(self._folder / letter)
        try:
            write_durably(self._folder / "current", letter.encode())
        except OSError as error:
            raise StorageError(f"{self._folder / 'current'} cannot be written ({error}); free some space") from error
        return slot

    def rollback(self) -> Slot:
        """Go back to the release before; called only after :meth:`switch`, and raises as it does."""
        return self.switch()

    def discard(self) -> None:
        """Empty the slot that is not current."""
        shutil.rmtree(self._folder / self._other(), ignore_errors=True)

    def clear(self) -> None:
        """No slot is current: the first release is not to stay."""
        with disk_errors(self._folder):
            (self._folder / "current").unlink(missing_ok=True)

    def report(self) -> ReleaseReport | None:
        """What :meth:`keep_report` has kept last; ``None`` where nothing is, or damage has made it something else."""
        try:
            return _unsealed((self._folder / _REPORT).read_bytes(), ReleaseReport)
        except (OSError, *UNDECODABLE):
            return None

    def keep_report(self, report: ReleaseReport | None) -> None:
        """Keep it durably before anybody is told; or forget it."""
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            if report is None:
                (self._folder / _REPORT).unlink(missing_ok=True)
            else:
                write_durably(self._folder / _REPORT, _sealed(report))

    def _letter(self) -> str | None:
        """What ``current`` holds, which damage may have made anything; ``None`` where there is none."""
        with suppress(FileNotFoundError):
            return (self._folder / "current").read_text(encoding="ascii", errors="replace")
        return None

    def _other(self) -> str:
        return "b" if self._letter() == "a" else "a"


def _load(folder: Path) -> Slot:
    """The slot in ``folder``, every digest compared."""
    try:
        manifest = _unsealed((folder / _MANIFEST).read_bytes(), ReleasedModel)
        broken = [entry.part.value for entry in manifest.manifest if not _holds(folder / entry.part.value, entry)]
    except (OSError, *UNDECODABLE) as error:
        raise BlobCorruptError(f"slot {folder} cannot be read ({error}); a new release replaces it") from error
    if broken:
        raise BlobCorruptError(f"slot {folder} has damaged files: {', '.join(broken)}; a new release replaces it")
    return Slot(folder, manifest)


def _sealed(value: ReleasedModel | ReleaseReport) -> bytes:
    """A line of JSON, and its digest, so that a label or a number that was damaged is found out as a file is."""
    line = msgspec.json.encode(value)
    return b"%b\n%b" % (line, digest_of(line).encode())


def _unsealed(data: bytes, kind: type[_V]) -> _V:
    """What :func:`_sealed` has made. Raises one of ``UNDECODABLE`` where it was damaged."""
    line, _, digest = data.partition(b"\n")
    if digest.decode("ascii", "replace") != digest_of(line):
        raise msgspec.DecodeError("its digest is another one")
    return msgspec.json.decode(line, type=kind)


def _holds(path: Path, entry: BlobEntry) -> bool:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest() == entry.digest


def _place(source: Path, target: Path) -> None:
    """Link where the file system can, so that a model lies on the disk once; copy where it cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    sync(target)
