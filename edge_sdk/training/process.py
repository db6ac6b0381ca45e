"""The agent's side of a training process: starts it, receives its events, stops it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import msgspec

from edge_sdk.decoding import UNDECODABLE
from edge_sdk.disk import disk_errors
from edge_sdk.errors import TrainingError, TrainingMemoryError
from edge_sdk.protocol.messages import Failure
from edge_sdk.training.job import Failed, Finished, Noted, TrainingEvent, TrainingJob

_log = logging.getLogger(__name__)
_GRACE_S = 2.0  # after SIGTERM, for the end of a step and a checkpoint
STOP_S = _GRACE_S + 0.5  # with the time that SIGKILL takes
_DETAIL_BYTES = 400
# C++, Rust and OpenBLAS, Python, and glibc where there was no room for the library that ends a thread
_NO_MEMORY = (b"bad_alloc", b"emory allocation", b"MemoryError", b"libgcc_s.so.1 must be installed")
_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*): ")
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # each thread of a BLAS takes a stack and a buffer, and numpy's part needs none
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",  # a fixed threshold, so that freed arrays are returned to the system
}
# where the application imports from, and not the current folder first, as after -m: a random.py there would be taken
_START = (
    "import sys; sys.path[:] = sys.argv[2:]; import runpy; "
    "runpy.run_module('edge_sdk.training.worker', run_name='__main__', alter_sys=True)"
)
_events: msgspec.json.Decoder[TrainingEvent] = msgspec.json.Decoder(TrainingEvent)


class TrainingProcess:
    """One training run, in a process and a session of its own.

    ``on_event`` is called on a thread of this object: with any number of ``Progress``, then one ``Finished`` or
    ``Failed``, however the process ends. After :meth:`stop` it is not called any more.
    Raises ``StorageError`` if the job cannot be written, ``TrainingError`` if no process can be started.
    """

    def __init__(self, job: TrainingJob, on_event: Callable[[TrainingEvent], None]) -> None:
        self._on_event = on_event
        self._stopped = False
        self._job_file = Path(f"{job.update}.job.json")
        with disk_errors(self._job_file):
            self._job_file.write_bytes(msgspec.json.encode(job))
            self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the reader closes it
        with contextlib.ExitStack() as undo:
            undo.callback(self._errors.close)
            undo.callback(self._job_file.unlink, missing_ok=True)
            self._process = _started(self._job_file, self._errors)
            undo.pop_all()
        self._output = cast("IO[bytes]", self._process.stdout)
        self._reader = threading.Thread(target=self._read, name="training-events", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the process has ended and its last event was delivered; whether it did within ``timeout_s``."""
        self._reader.join(timeout_s)
        return not self._reader.is_alive()

    def stop(self) -> None:
        """End the process within ``STOP_S`` seconds; with a checkpoint, if its step ends in time. Idempotent."""
        self._stopped = True
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
                self._reader.join(_GRACE_S)  # it removes the job file, whose name the next process uses again
                return

    def _read(self) -> None:
        has_said_how = False
        with self._output, self._errors:
            for line in self._output:
                if (event := _parse(line)) is not None:
                    has_said_how = has_said_how or isinstance(event, (Finished, Failed))
                    self._tell(event)
            status = self._process.wait()
            if not has_said_how:
                self._tell(_death(status, _tail(self._errors)))
        self._job_file.unlink(missing_ok=True)

    def _tell(self, event: TrainingEvent) -> None:
        if isinstance(event, Noted):
            _log.log(event.level, "%s", event.text)
        elif not self._stopped:
            self._on_event(event)


def _started(job_file: Path, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _START, str(job_file), *sys.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,
        )
    except OSError as error:
        kind = TrainingMemoryError if error.errno == errno.ENOMEM else TrainingError
        raise kind(f"the training process cannot be started: {error.strerror}") from error


def _parse(line: bytes) -> TrainingEvent | None:
    """The event in a line; ``None`` if the process died within the line, or a library wrote it."""
    try:
        return _events.decode(line)
    except UNDECODABLE:
        return None


def _death(status: int, errors: bytes) -> Failed:
    """The failure of a process that ended without reporting one.

    The kernel kills processes that take too much memory by SIGKILL, and native code that is refused memory dies by
    SIGSEGV. So both count as out of memory, and the device will be offered a smaller submodel. So does the status 0,
    which no such process has: Python says it where the application ignores SIGCHLD, or waits for any child itself.
    """
    cause = f"signal {_signal_name(-status)}" if status < 0 else f"exit status {status}"
    starved = status in {0, -signal.SIGKILL, -signal.SIGSEGV} or any(sign in errors for sign in _NO_MEMORY)
    failure = Failure.OUT_OF_MEMORY if starved else Failure.TRAINING
    last_line = errors.strip().rpartition(b"\n")[2].decode(errors="replace")
    exception = _EXCEPTION.match(last_line)  # only its type is quoted, since its text may contain an example
    return Failed(failure, f"the training process ended by {cause} {exception[1] if exception else last_line}".strip())


def _signal_name(number: int) -> str:
    """Its name, or its number where it has none: of the real-time signals the first and the last alone have one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _tail(file: IO[bytes]) -> bytes:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _DETAIL_BYTES))
    return file.read()
