"""A broker and a coordinator on this machine, for as long as a program needs them: for first tries and the examples."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.broker import EmbeddedBroker
from coordinator.config import STATE_DIR_VARIABLE
from coordinator.delivery.roots import ensure_root
from coordinator.listing import Row, round_rows
from coordinator.processes import Processes, interruptible
from coordinator.store.database import Store
from coordinator.store.opening import open_store
from coordinator.store.states import TaskStatus
from edge_sdk.errors import ConfigurationError, DeadlineError, RaffmError

_POLL_S = 0.2
_PATIENCE_S = 600.0


class TaskFailedError(RaffmError):
    """The task failed."""


@dataclass(frozen=True, slots=True)
class LocalCoordinator:
    """What :func:`local_coordinator` has started; agents need the address ``broker`` and the file ``root``."""

    state_dir: Path
    broker: str
    root: Path
    processes: Processes

    def command(self, *words: str | Path) -> None:
        """Run ``coordinator`` with ``words``, without ``--state-dir``; it prints as in a terminal.

        Raises ``subprocess.CalledProcessError`` if it fails; by then it has printed why.
        """
        subprocess.run(
            [sys.executable, "-m", "coordinator.cli", *map(str, words)],
            env=os.environ | {STATE_DIR_VARIABLE: str(self.state_dir)},
            check=True,
        )

    def wait_for(self, task: str, timeout_s: float = _PATIENCE_S) -> None:
        """Return once ``task`` is done, and every device has reported on its release.

        Raises ``TaskFailedError``, ``ProcessDiedError`` if the coordinator has ended with an error, ``DeadlineError``
        after ``timeout_s``, and ``ConfigurationError`` if there is no such task.
        """
        give_up_s = time.monotonic() + timeout_s
        while not self.is_done(task):
            if time.monotonic() > give_up_s:
                raise DeadlineError(f"task {task} is not done after {timeout_s:.0f} s; see {self.log}")
            time.sleep(_POLL_S)

    def is_done(self, task: str) -> bool:
        """Whether ``task`` is done. Raises as :meth:`wait_for`, except ``DeadlineError``."""
        self.processes.check()
        with self._store() as store, store.reading() as tx:
            known = {record.name: record for record in tx.tasks.all()}
        if task not in known:
            raise ConfigurationError(f"there is no task {task!r}; the tasks are {', '.join(known) or 'none'}")
        if known[task].status is TaskStatus.FAILED:
            raise TaskFailedError(f"task {task} failed: {known[task].failure}; see {self.log}")
        return known[task].status is TaskStatus.DONE

    def rounds(self, task: str) -> list[Row]:
        """The rows of ``coordinator round list``: one per round. ``ConfigurationError`` if there is no such task."""
        with self._store() as store:
            return round_rows(store, task)

    @property
    def log(self) -> Path:
        """The file with the coordinator's output."""
        return self.processes.log_of("coordinator")

    @contextmanager
    def _store(self) -> Iterator[Store]:
        store = open_store(self.state_dir)
        try:
            yield store
        finally:
            store.close()


@contextmanager
def local_coordinator(state_dir: Path) -> Iterator[LocalCoordinator]:
    """Run the embedded broker and ``coordinator serve``, each as a process on loopback; leaving the context ends both.

    All state is in ``state_dir``, so that a later context there continues where this one ended. Use it on the main
    thread: Ctrl-C and SIGTERM leave through the context.

    Raises as :class:`EmbeddedBroker`.
    """
    with interruptible(), EmbeddedBroker(state_dir) as broker, Processes(state_dir) as processes:
        with closing(open_store(state_dir)) as store:
            root = ensure_root(store, state_dir, time.time())
        address = str(broker.address)
        serve = ("serve", "--state-dir", str(state_dir), "--broker", address)
        processes.start("coordinator", "coordinator.cli", serve)
        yield LocalCoordinator(state_dir, address, root, processes)
