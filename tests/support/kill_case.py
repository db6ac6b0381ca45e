"""One task from its first start to its last receipt: a coordinator that may die once, scripted devices, a judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.store.opening import open_store
from coordinator.store.states import TaskStatus
from edge_sdk.transport.base import Will
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import Broker
from tests.support.checker import Judgement, judge
from tests.support.crash import Crash, Mortal, Serving, points_passed, serve
from tests.support.history import History, Kind, Operation, operations
from tests.support.light_model import light_task
from tests.support.simulator import Fleet

DEVICES = ("a", "b", "c")
TASK = "task"
_PATIENCE_S = 60.0
_POLL_S = 0.03
_SPACE_AFTER_S = 1.5


@dataclass(frozen=True)
class Outcome:
    """What a case's history shows, its last version, when it died if it did, and how long it was until it served again.

    ``passed`` are the named points in the order of passing; ``exit_code`` is that of the first process.
    """

    judgement: Judgement
    digest: str
    seconds: float
    is_killed: bool
    again_s: float
    passed: tuple[str, ...]
    exit_code: int | None = None


class KillCase:
    """Two rounds of three devices in ``folder``, whose name is the fleet's; ``task`` replaces settings of the task."""

    def __init__(
        self, folder: Path, broker: Broker, *, control: str = "", resends: bool = True, **task: object
    ) -> None:
        folder.mkdir()
        self._folder, self._broker = folder, broker
        path = folder / "history"
        self._history = History(path)
        self._coordinator = Mortal(
            serve, Serving(str(folder), str(broker.address), folder.name, str(path), None, control)
        )
        self._store = open_store(folder)
        with self._store.transaction() as tx:
            tx.tasks.add(TASK, msgspec.json.encode(light_task(folder, TASK, **task)), time.time())
        self._fleet = Fleet(DEVICES, self._link, history=self._history, fleet=folder.name, resends=resends)

    def run(
        self, crash: Crash | None = None, kill_after_s: float | None = None, file_limit_bytes: int | None = None
    ) -> Outcome:
        """Die at ``crash``, or so long after the start, or of a full disk, or not at all; then go on to the end.

        A process that lives on a full disk gets space a while later.
        """
        began_s = time.monotonic()
        again_s, code = 0.0, None
        self._coordinator.start(crash=crash, file_limit_bytes=file_limit_bytes)
        with self._fleet:
            is_killed = self._is_killed(began_s, kill_after_s, None if file_limit_bytes is None else _SPACE_AFTER_S)
            if is_killed:
                code = self._coordinator.exit_code
                again_s = self._start_again()
            self._wait(self._is_over)
            self._coordinator.kill()
        seconds = time.monotonic() - began_s
        return Outcome(self._judged(), self._digest(), seconds, is_killed, again_s, points_passed(self._folder), code)

    def _is_killed(self, began_s: float, kill_after_s: float | None, space_after_s: float | None) -> bool:
        """Wait for its death, or for its end without one."""
        while not self._coordinator.is_dead(_POLL_S):
            lived_s = time.monotonic() - began_s
            if kill_after_s is not None and lived_s >= kill_after_s:
                self._coordinator.kill()
                continue
            if space_after_s is not None and lived_s >= space_after_s:
                self._coordinator.give_space()
            if self._is_over():
                return False
        return True

    def _start_again(self) -> float:
        """Seconds until a device heard that it is there."""
        died_s = time.monotonic()
        self._coordinator.start()
        self._wait(lambda: max(device.announced_s for device in self._fleet.devices.values()) > died_s)
        return time.monotonic() - died_s

    def _is_over(self) -> bool:
        with self._store.reading() as tx:
            statuses = {task.status for task in tx.tasks.all()}
        return statuses <= {TaskStatus.DONE, TaskStatus.FAILED} and (self._fleet.is_settled or not self._fleet.resends)

    def _wait(self, holds: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + _PATIENCE_S
        while not holds():
            log = (self._folder / "log").read_text()[-3000:]
            assert not self._coordinator.is_dead(), log
            assert time.monotonic() < give_up_s, log
            time.sleep(_POLL_S)

    def _judged(self) -> Judgement:
        with self._store.reading() as tx:
            for version in tx.versions.all(TASK):
                self._history.add(Operation("version", Kind.OK, "store", version.number, digest=version.digest))
        return judge(operations(self._folder / "history"))

    def _digest(self) -> str:
        with self._store.reading() as tx:
            latest = tx.versions.latest(TASK)
        return "" if latest is None else latest.digest

    def _link(self, name: str, filters: Sequence[str], will: Will) -> MqttTransport:
        return MqttTransport(self._broker.address, f"{self._folder.name}-{name}", filters, will=will)

    def close(self) -> None:
        """Close its files."""
        self._store.close()
        self._history.close()
