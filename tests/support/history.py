"""What happened, as it happened: one JSON line an operation, which outlives the process that wrote it.

``kind`` is as in Jepsen's histories: an operation is invoked, and ends ``ok``, or ``fail`` where it surely had no
effect; one without an end is unknown. What a history means is :mod:`tests.support.checker`'s business alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import msgspec


class Kind(str, Enum):
    """Where in its life an operation is."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line.

    ``update``: a device hands in an update, and gets its receipt (``ok``: accepted). ``aggregate``: ``updates`` become
    version ``digest``. ``version``: that version is the task's.
    """

    what: str
    kind: Kind
    process: str
    round: int = 0
    update: str = ""
    updates: tuple[str, ...] = ()
    digest: str = ""
    at_s: float = 0.0


class History:
    """The file at ``path``; several processes may write to it, each line in one piece."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._lock = threading.Lock()

    def add(self, operation: Operation) -> None:
        """Append; in the kernel once this returns, so that SIGKILL does not lose it."""
        line = msgspec.json.encode(msgspec.structs.replace(operation, at_s=time.time())) + b"\n"
        with self._lock:
            os.write(self._file, line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def operations(path: Path) -> Iterator[Operation]:
    """What was written to a history, in order."""
    with path.open("rb") as lines:
        for line in lines:
            yield msgspec.json.decode(line, type=Operation)
