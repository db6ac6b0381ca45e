"""A broker and a coordinator on this machine for as long as a program needs them: for first tries and the examples."""

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
    """The coordinator gave a task up."""


@dataclass(frozen=True, slots=True)
class LocalCoordinator:
    """What :func:`local_coordinator` has started. ``broker`` and ``root`` are what an agent has to be told."""

    state_dir: Path
    broker: str
    root: Path
    processes: Processes

    def command(self, *words: str | Path) -> None:
        """Type ``coordinator`` and ``words``, without ``--state-dir``; it prints what it prints in a terminal.

        Raises ``subprocess.CalledProcessError`` where it ends with an error, which it has told by then.
        """
        subprocess.run(
            [sys.executable, "-m", "coordinator.cli", *map(str, words)],
            env=os.environ | {STATE_DIR_VARIABLE: str(self.state_dir)},
            check=True,
        )

    def wait_for(self, task: str, timeout_s: float = _PATIENCE_S) -> None:
        """Return once ``task`` is done, and every device has reported on its release.

        Raises ``TaskFailedError``, ``ProcessDiedError`` where the coordinator has ended, and ``DeadlineError``.
        """
        give_up_s = time.monotonic() + timeout_s
        while not self.is_done(task):
            if time.monotonic() > give_up_s:
                raise DeadlineError(f"task {task} is not done after {timeout_s:.0f} s; see {self.log}")
            time.sleep(_POLL_S)

    def is_done(self, task: str) -> bool:
        """Whether ``task`` has come to its end; raises as :meth:`wait_for`, but no ``DeadlineError``."""
        self.processes.check()
        with self._store() as store, store.reading() as tx:
            known = {record.name: record for record in tx.tasks.all()}
        if task not in known:
            raise ConfigurationError(f"there is no task {task!r}; the tasks are {', '.join(known) or 'none'}")
        if known[task].status is TaskStatus.FAILED:
            raise TaskFailedError(f"task {task} failed: {known[task].failure}; see {self.log}")
        return known[task].status is TaskStatus.DONE

    def rounds(self, task: str) -> list[Row]:
        """What ``coordinator round list`` shows: one row a round."""
        with self._store() as store:
            return round_rows(store, task)

    @property
    def log(self) -> Path:
        """What the coordinator says."""
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
    """The embedded broker and ``coordinator serve``, each a process on loopback; leaving the context ends both.

    All that the coordinator knows is in ``state_dir``, so that another context there goes on where this one ended.
    Use it on the main thread: Ctrl-C and SIGTERM leave through the context.

    Raises what :class:`EmbeddedBroker` raises.
    """
    with interruptible(), EmbeddedBroker(state_dir) as broker, Processes(state_dir) as processes:
        with closing(open_store(state_dir)) as store:
            root = ensure_root(store, state_dir, time.time())
        address = str(broker.address)
        serve = ("serve", "--state-dir", str(state_dir), "--broker", address)
        processes.start("coordinator", "coordinator.cli", serve)
        yield LocalCoordinator(state_dir, address, root, processes)
