"""Examples that arrive one by one, durable before anybody relies on them: a file of JSON lines that is appended to."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from edge_sdk.data.examples import Examples
from edge_sdk.data.rows import lines_of, read_jsonl
from edge_sdk.disk import disk_errors, durable_file, sync

_BLOCK_BYTES = 1 << 20


class ExampleLog:
    """The log at ``path``. Its methods may be called from any thread. A line that a crash left incomplete is dropped.

    Raises ``DiskFullError`` or ``StorageError`` where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                file.truncate(_whole_bytes(file))
            sync(path.parent)

    @property
    def size_bytes(self) -> int:
        """The size of the file, which grows with every example."""
        with disk_errors(self._path):
            return self._path.stat().st_size

    def append(self, examples: Examples) -> None:
        """Add ``examples``; they are durable when this returns, and absent if it raises."""
        lines = b"".join(lines_of(examples))
        with self._lock, disk_errors(self._path), self._path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                while lines:  # a disk that fills up takes a part; a buffer would write the rest when it is closed
                    lines = lines[file.write(lines) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), before)
                raise

    def replace(self, examples: Examples) -> None:
        """Replace the whole content by ``examples``."""
        with self._lock, disk_errors(self._path), durable_file(self._path) as file:
            file.writelines(lines_of(examples))

    def read(self) -> Examples | None:
        """Everything in the log, ``None`` if it is empty; images are kept on the disk beside the file.

        Nobody who appends has to wait until it is read.
        """
        with self._lock:
            size_bytes = self.size_bytes
        return read_jsonl(self._path, scratch=self._path.parent, size_bytes=size_bytes) if size_bytes else None


def _whole_bytes(file: BinaryIO) -> int:
    """The length of ``file`` up to its last complete line, without reading more than its end."""
    stop = file.seek(0, os.SEEK_END)
    while stop > 0:
        start = max(0, stop - _BLOCK_BYTES)
        file.seek(start)
        if (place := file.read(stop - start).rfind(b"\n")) >= 0:
            return start + place + 1
        stop = start
    return 0
