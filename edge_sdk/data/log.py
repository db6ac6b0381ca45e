"""Examples that came one by one, on disk before anybody relies on them: JSON lines that are only ever appended to."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock

import msgspec

from edge_sdk.data.examples import Examples
from edge_sdk.data.rows import read_jsonl, rows_of
from edge_sdk.disk import disk_errors, sync, write_durably


class ExampleLog:
    """The file at ``path``, whose methods may be called from any thread; what a crash left half written is dropped.

    Raises ``DiskFullError`` or ``StorageError`` where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                file.truncate(_whole_bytes(file.name))
            sync(path.parent)

    @property
    def size_bytes(self) -> int:
        """Grows with every example."""
        with disk_errors(self._path):
            return self._path.stat().st_size

    def append(self, examples: Examples) -> None:
        """Add ``examples``; durable when this returns, and not there at all where it raises."""
        lines = _lines_of(examples)
        with self._lock, disk_errors(self._path), self._path.open("ab") as file:
            before = file.tell()
            try:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), before)
                raise

    def replace(self, examples: Examples) -> None:
        """Keep ``examples`` instead of all that was added."""
        with self._lock, disk_errors(self._path):
            write_durably(self._path, _lines_of(examples))

    def read(self) -> Examples | None:
        """All that was ever added, images on the disk beside the file; ``None`` where nothing was."""
        with self._lock:
            return read_jsonl(self._path, scratch=self._path.parent) if self.size_bytes else None


def _lines_of(examples: Examples) -> bytes:
    return msgspec.json.Encoder().encode_lines(rows_of(examples))


def _whole_bytes(path: str) -> int:
    """How much of the file is whole lines."""
    data = Path(path).read_bytes()
    return data.rfind(b"\n") + 1
