"""Processes of this installation, which are started and watched together, and always ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edge_sdk.errors import RaffmError

if TYPE_CHECKING:
    from typing_extensions import Self

GRACE_S = 3.0


class ProcessDiedError(RaffmError):
    """A process ended although it was still needed."""


class Interrupted(SystemExit):
    """Ctrl-C or SIGTERM has asked the program to end."""


class Processes:
    """Runs commands of this installation, each in its own session, with its output in ``<folder>/<name>.log``.

    Leaving the context ends all of them: by SIGTERM first, by SIGKILL after ``GRACE_S`` seconds.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, module: str, arguments: Sequence[str]) -> None:
        """Start ``python -m module arguments`` under ``name``."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self.log_of(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )

    def log_of(self, name: str) -> Path:
        """The file with a process's output."""
        return self._folder / f"{name}.log"

    def check(self) -> None:
        """Raise ``ProcessDiedError``, with the last line of its output, if a process has ended with an error."""
        for name, process in self._running.items():
            if process.poll():
                said = last_line(self.log_of(name))
                raise ProcessDiedError(f"{name} ended with exit code {process.returncode}: {said}")

    def ended(self, name: str) -> bool:
        """Whether the process has ended."""
        return self._running[name].poll() is not None

    def stop(self) -> None:
        """End every process; idempotent."""
        for process in self._running.values():
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in self._running.values():
            _signal_group(process, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def last_line(log: Path) -> str:
    """The last line of a process's output, at most 300 characters."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["(it said nothing)"]
    return lines[-1][:300]


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the process's whole session, if it still exists, so that nothing that it has started outlives it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM raise :class:`Interrupted`, so that the contexts end every process.

    Further ones are ignored. Works on the main thread only, as Python's signal handlers do.
    """

    def leave(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted(130)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
