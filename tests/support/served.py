"""A real coordinator's service with a played model side: on a thread, or as a process of its own to measure or kill.

with light_models(), Served(folder, light_task(folder, rounds=3), transport) as served:
    served.wait_until(lambda: served.is_done)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

from coordinator.config import CoordinatorConfig, TaskConfig
from coordinator.service import Service, mqtt_transport
from coordinator.store.database import Store, Transaction
from coordinator.store.opening import open_store
from coordinator.store.records import RoundRecord, UpdateRecord
from coordinator.store.states import Phase, TaskStatus
from edge_sdk.elastic.submodel import Architecture
from edge_sdk.transport.base import Transport
from edge_sdk.transport.blob_folder import BlobFolder
from tests.support import light_model

_PATIENCE_S = 120.0
_ARCHITECTURE = "RAFFM_TEST_ARCHITECTURE"
LEAK = "RAFFM_TEST_LEAK"
"""Of the environment of a coordinator's process: it keeps every blob, and so many bytes more after each round."""
_T = TypeVar("_T")


def quick(folder: Path, broker: str = "", **settings: Any) -> CoordinatorConfig:
    """A coordinator that waits for nobody for long."""
    own = {"gather_s": 0.5, "retry_after_s": 0.2, "receive_timeout_s": 0.05, "exit_when_done": True}
    return CoordinatorConfig(state_dir=folder, broker=broker, **own | settings)


class _Coordinator:
    """What a test asks of a coordinator in ``state_dir``: its rounds and updates, as the store has them."""

    def __init__(self, config: CoordinatorConfig, task: TaskConfig) -> None:
        self.config, self.task = config, task
        config.state_dir.mkdir(parents=True, exist_ok=True)
        self.store: Store = open_store(config.state_dir)
        with self.store.transaction() as tx:
            tx.tasks.add(task.name, msgspec.json.encode(task), time.time())

    @property
    def is_running(self) -> bool:
        raise NotImplementedError

    @property
    def status(self) -> TaskStatus:
        return self.read(lambda tx: tx.tasks.all()[0].status)

    @property
    def decided(self) -> list[RoundRecord]:
        """The rounds that are closed or abandoned."""
        rounds = self.read(lambda tx: tx.rounds.all(self.task.name))
        return [known for known in rounds if known.phase is not Phase.COLLECTING]

    def has_decided(self, number: int) -> bool:
        """Whether this round is closed or abandoned: asking so costs the same in the last of many as in the first."""
        known = self.read(lambda tx: tx.rounds.get(self.task.name, number))
        return known is not None and known.phase is not Phase.COLLECTING

    @property
    def accepted(self) -> list[UpdateRecord]:
        """Every update that was admitted, in any round."""
        rounds = self.read(lambda tx: tx.rounds.all(self.task.name))
        return [update for known in rounds for update in self._accepted_in(known.number)]

    def read(self, what: Callable[[Transaction], _T]) -> _T:
        with self.store.reading() as tx:
            return what(tx)

    def wait_until(self, holds: Callable[[], object], patience_s: float = _PATIENCE_S) -> float:
        """How long it took; fails where it takes longer, or where the coordinator ends before."""
        began_s = time.monotonic()
        while not holds():
            assert time.monotonic() < began_s + patience_s, "patience is over"
            assert self.is_running or holds(), "the coordinator has ended"
            time.sleep(0.03)
        return time.monotonic() - began_s

    def wait_for_end(self, patience_s: float = _PATIENCE_S) -> float:
        """Until the task is done and the coordinator with it."""
        return self.wait_until(lambda: not self.is_running, patience_s)

    def _accepted_in(self, number: int) -> tuple[UpdateRecord, ...]:
        return self.read(lambda tx: tx.updates.accepted(self.task.name, number))


class Served(_Coordinator):
    """On a thread of this process; use it within :func:`tests.support.light_model.light_models`."""

    def __init__(self, config: CoordinatorConfig, task: TaskConfig, transport: Transport) -> None:
        super().__init__(config, task)
        self.service = Service(config, self.store, transport)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> Served:  # noqa: PYI034 - Self needs Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.service.stop()
        self._thread.join(_PATIENCE_S)
        assert not self._thread.is_alive(), "the coordinator hangs"
        self.store.close()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            self.service.run()
        except BaseException as error:  # noqa: BLE001 - raised again by the test's thread
            self.error = error


class ServedApart(_Coordinator):
    """As a process, over the broker that ``config`` names; ``architecture`` is the played model's."""

    def __init__(
        self, config: CoordinatorConfig, task: TaskConfig, architecture: Architecture = light_model.ARCHITECTURE
    ) -> None:
        super().__init__(config, task)
        self.log = config.state_dir / "coordinator.log"
        self._environment = os.environ | {_ARCHITECTURE: msgspec.json.encode(architecture).decode()}

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def memory(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def __enter__(self) -> ServedApart:  # noqa: PYI034 - Self needs Python 3.11
        settings = msgspec.json.encode(self.config, enc_hook=str).decode()
        command = [sys.executable, "-m", "tests.support.served", settings]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.store.close()


def main() -> None:
    """Serve as the first argument says, until the tasks are done."""
    config = msgspec.json.decode(sys.argv[1], type=CoordinatorConfig, dec_hook=lambda kind, text: kind(text))
    light_model.ARCHITECTURE = msgspec.json.decode(os.environ[_ARCHITECTURE], type=Architecture)
    light_model.install()
    if LEAK in os.environ:
        _leak(int(os.environ[LEAK]))
    service = Service(config, open_store(config.state_dir), mqtt_transport(config))
    signal.signal(signal.SIGTERM, lambda *_: service.stop())
    service.run()


def _leak(size_bytes: int) -> None:
    kept: list[bytes] = []
    BlobFolder.keep_only = lambda *_: kept.append(b"\x01" * size_bytes)  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
