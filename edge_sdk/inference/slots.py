"""Two slots for released models: one is current, the other takes the next release and later keeps the previous one.

    a/, b/     one file per part, named after it, and slot.json: a line that describes the model, then its digest
    current    one letter
    report     the report on the release that was assigned last, with its digest like slot.json

1. A release is staged into the slot that is not current: its files first, slot.json last, each made durable.
2. Only :meth:`Slots.switch` changes ``current``, by one rename: after a crash it is the old letter or the new one.
3. A slot is returned only if every file matches its digest in slot.json.
4. The current slot is never written to or removed.
5. The other slot is removed once its release has failed, so that no damage can bring it back.
"""

from __future__ import annotations

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
from edge_sdk.transport.blob_folder import digest_of_file

_V = TypeVar("_V")
_LETTERS = ("a", "b")
_MANIFEST = "slot.json"
_REPORT = "report"


@dataclass(frozen=True, slots=True)
class Slot:
    """A release whose files match their digests."""

    folder: Path
    manifest: ReleasedModel

    def path(self, part: Part) -> Path:
        """The file of ``part``."""
        return self.folder / part.value


class Slots:
    """The slots in ``folder``, which the first release creates. One process at a time may stage and switch.

    Raises ``StorageError`` where the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def current(self) -> Slot | None:
        """What to run, ``None`` before the first release; ``BlobCorruptError`` if the slot is damaged."""
        letter = self._letter()
        if letter is None:
            return None
        if letter not in _LETTERS:
            raise BlobCorruptError(f"{self._folder / 'current'} holds {letter[:20]!r} and names no slot")
        return _load(self._folder / letter)

    def previous(self) -> Slot:
        """What :meth:`rollback` would make current; ``BlobCorruptError`` if there is none, or if it is damaged."""
        return _load(self._folder / self._other())

    def current_release(self) -> int | None:
        """The number of the current slot's release, even if its files are damaged; ``None`` if it cannot be read."""
        return _release_in(self._folder / (self._letter() or ""))

    def may_hold_beside(self, release: int) -> bool:
        """Whether the other slot is of ``release``, or is only half there, so that nobody knows."""
        other = self._folder / self._other()
        return other.exists() and _release_in(other) in {None, release}

    def stage(self, manifest: ReleasedModel, files: Mapping[Part, Path]) -> Slot:
        """Put a release beside the current one. ``files`` are those of the parts in ``manifest``; they stay.

        Raises ``BlobCorruptError`` if a file does not match its digest, ``StorageError`` if it is missing.
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
        """Make the other slot current: the release that was just staged or, called again, the previous one.

        Raises ``BlobCorruptError`` if the other slot is empty or damaged; then nothing changes.
        """
        letter = self._other()
        slot = _load(self._folder / letter)
        try:
            write_durably(self._folder / "current", letter.encode())
        except OSError as error:
            raise StorageError(f"{self._folder / 'current'} cannot be written ({error}); free some space") from error
        return slot

    def rollback(self) -> Slot:
        """Go back to the previous release, after a :meth:`switch`; raises as that does."""
        return self.switch()

    def discard(self) -> None:
        """Empty the slot that is not current."""
        shutil.rmtree(self._folder / self._other(), ignore_errors=True)

    def clear(self) -> None:
        """Make no slot current, as before the first release."""
        with disk_errors(self._folder):
            (self._folder / "current").unlink(missing_ok=True)

    def report(self) -> ReleaseReport | None:
        """What :meth:`keep_report` stored last; ``None`` if there is nothing, or if it is damaged."""
        try:
            return _unsealed((self._folder / _REPORT).read_bytes(), ReleaseReport)
        except (OSError, *UNDECODABLE):
            return None

    def keep_report(self, report: ReleaseReport | None) -> None:
        """Store ``report`` durably; ``None`` removes the stored one."""
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            if report is None:
                (self._folder / _REPORT).unlink(missing_ok=True)
            else:
                write_durably(self._folder / _REPORT, _sealed(report))

    def _letter(self) -> str | None:
        """The content of ``current``, which damage may have changed to anything; ``None`` if it does not exist."""
        with suppress(FileNotFoundError):
            return (self._folder / "current").read_text(encoding="ascii", errors="replace")
        return None

    def _other(self) -> str:
        return "b" if self._letter() == "a" else "a"


def _load(folder: Path) -> Slot:
    """The slot in ``folder``, after checking every digest. Raises ``BlobCorruptError``."""
    try:
        manifest = _unsealed((folder / _MANIFEST).read_bytes(), ReleasedModel)
        broken = [entry.part.value for entry in manifest.manifest if not _holds(folder / entry.part.value, entry)]
    except (OSError, *UNDECODABLE) as error:
        raise BlobCorruptError(f"slot {folder} cannot be read ({error}); a new release replaces it") from error
    if broken:
        raise BlobCorruptError(f"slot {folder} has damaged files: {', '.join(broken)}; a new release replaces it")
    return Slot(folder, manifest)


def _release_in(folder: Path) -> int | None:
    """The number of the release in the slot ``folder``; ``None`` if it cannot be read."""
    try:
        return _unsealed((folder / _MANIFEST).read_bytes(), ReleasedModel).release
    except (OSError, *UNDECODABLE):
        return None


def _sealed(value: ReleasedModel | ReleaseReport) -> bytes:
    """A line of JSON and its digest, which reveals damage to a label or number as other digests do for files."""
    line = msgspec.json.encode(value)
    return b"%b\n%b" % (line, digest_of(line).encode())


def _unsealed(data: bytes, kind: type[_V]) -> _V:
    """The value that :func:`_sealed` encoded. Raises one of ``UNDECODABLE`` if it is damaged."""
    line, _, digest = data.partition(b"\n")
    if digest.decode("ascii", "replace") != digest_of(line):
        raise msgspec.DecodeError("its digest is another one")
    return msgspec.json.decode(line, type=kind)


def _holds(path: Path, entry: BlobEntry) -> bool:
    return digest_of_file(path) == entry.digest


def _place(source: Path, target: Path) -> None:
    """Put ``source`` at ``target``, as a hard link if the file system can, so that it takes room once, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    sync(target)
