"""Processes that end by SIGKILL at a named point; nothing of it is in the product, whose functions are wrapped here.

A point is what is about to be made durable, or said: ``commit offers+updates`` is the transaction that wrote these two
tables, ``rename``, ``fsync`` and ``send Receipt`` are what they say. A process dies before or after its n-th passing
of one, and notes each passing in a file, so that a run which is left alone tells what points there are.

    python -m tests.support.crash '{"state_dir": …}'      a coordinator, as :class:`Serving` says

Tests start it by fork from a process that has imported all of it, see :class:`Mortal`.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import pytest
from sqlalchemy.engine.default import DefaultDialect

from coordinator import service
from coordinator.config import CoordinatorConfig
from coordinator.service import Service, mqtt_transport
from coordinator.store.opening import open_store
from coordinator.store.repository import Repository
from edge_sdk.errors import DiskFullError, RaffmError
from edge_sdk.protocol.messages import Chunk
from edge_sdk.transport.blob_folder import BlobFolder, Partial
from tests.support import light_model
from tests.support.controls import CONTROLS
from tests.support.history import History, Kind, Operation


class Crash(msgspec.Struct, frozen=True):
    """Die at the ``nth`` passing of ``point``, before what it does or after; or see the disk refuse it."""

    point: str
    nth: int = 1
    is_after: bool = False
    is_error: bool = False

    def __str__(self) -> str:
        return f"{'error at' if self.is_error else 'after' if self.is_after else 'before'} {self.point} {self.nth}"


class Serving(msgspec.Struct, frozen=True):
    """A coordinator on the broker at ``broker`` for ``fleet``; what it aggregates is noted in ``history``.

    ``control`` switches a mechanism off, by its name in :mod:`tests.support.controls`. No file gets larger than
    ``file_limit_bytes``.
    """

    state_dir: str
    broker: str
    fleet: str
    history: str
    crash: Crash | None = None
    control: str = ""
    file_limit_bytes: int | None = None


_OF_SYSTEM = ("fsync", "rename")
_REFUSED = OSError(errno.EIO, os.strerror(errno.EIO))


class Points:
    """Counts passings, writes them down, and ends this process at the one that is named."""

    def __init__(self, crash: Crash | None, noted: Path) -> None:
        self._crash = crash
        self._passed = Counter[str]()
        self._lock = threading.Lock()
        self._noted = os.open(noted, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    @contextmanager
    def passing(self, point: str) -> Iterator[None]:
        """Around what the point does."""
        with self._lock:
            self._passed[point] += 1
            crash = Crash(point, self._passed[point])
        os.write(self._noted, f"{point}\n".encode())
        self._die_at(crash)
        yield
        self._die_at(msgspec.structs.replace(crash, is_after=True))

    def wrap(self, owner: Any, name: str, point: Callable[..., str]) -> None:
        """Make each call of ``owner.name`` a passing of what ``point`` says of its arguments; nothing: none."""
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            named = point(*arguments)
            if not named:
                return original(*arguments, **options)
            with self.passing(named):
                return original(*arguments, **options)

        setattr(owner, name, wrapped)

    def _die_at(self, crash: Crash) -> None:
        if crash == self._crash:
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._crash == msgspec.structs.replace(crash, is_error=True):
            raise DiskFullError(f"no space left at {crash.point}") if crash.point not in _OF_SYSTEM else _REFUSED


def points_passed(state_dir: Path) -> tuple[str, ...]:
    """Every passing in the order of time."""
    noted = state_dir / "points"
    return tuple(noted.read_text().splitlines()) if noted.exists() else ()


def wrap_coordinator(points: Points) -> None:
    """Every place where a coordinator makes something durable, or tells a device."""
    written = threading.local()

    def note(repository: Repository[Any], *_: object) -> str:
        written.tables = {*getattr(written, "tables", ()), repository.table.name}
        return ""

    def committed(*_: object) -> str:
        tables, written.tables = getattr(written, "tables", ()), set[str]()
        return f"commit {'+'.join(sorted(tables))}" if tables else ""

    points.wrap(Repository, "_insert", note)
    points.wrap(Repository, "_update", note)
    points.wrap(DefaultDialect, "do_commit", committed)
    points.wrap(os, "fsync", lambda *_: "fsync")
    points.wrap(Path, "replace", lambda *_: "rename")
    points.wrap(Partial, "write", lambda *_: "chunk")
    points.wrap(BlobFolder, "delete", lambda *_: "delete blob")
    points.wrap(Service, "_send", lambda _, __, it: "" if isinstance(it, Chunk) else f"send {type(it).__name__}")


def note_aggregations(run: Any, history: History) -> None:
    """Write down what becomes of which updates, as the model's side sees it."""
    aggregate = run.Run.aggregate

    def noted(self: Any, version: Any, number: int, updates: Any) -> Any:
        made = aggregate(self, version, number, updates)
        parts = tuple(source.update_id for source in updates)
        history.add(Operation("aggregate", Kind.OK, "coordinator", number, updates=parts, digest=made.digest))
        return made

    run.Run.aggregate = noted


def serve(settings: Serving) -> None:
    """Serve until killed, or until a named error, whose exit code it ends with. It says what it says in its log."""
    folder = Path(settings.state_dir)
    with (folder / "log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    note_aggregations(light_model.install(), History(Path(settings.history)))
    if settings.control:
        CONTROLS[settings.control](pytest.MonkeyPatch())
    if settings.file_limit_bytes is None:
        wrap_coordinator(Points(settings.crash, folder / "points"))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (settings.file_limit_bytes, resource.RLIM_INFINITY))
    config = hurried(folder, settings.broker, settings.fleet)
    try:
        Service(config, open_store(folder), mqtt_transport(config)).run()
    except RaffmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)


def hurried(folder: Path, broker: str, fleet: str) -> CoordinatorConfig:
    """Settings for a round in a tenth of a second."""
    service._TICK_S = 0.02
    service._DISK_PAUSE_S = 0.2
    return CoordinatorConfig(
        state_dir=folder, broker=broker, fleet=fleet, threads=1, retry_after_s=0.1, receive_timeout_s=0.02
    )


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    return context


_S = TypeVar("_S", bound=msgspec.Struct)


def _while_tested(run: Callable[[_S], None], settings: _S) -> None:
    """Run for as long as there is a test to run for: one that is killed ends nobody by itself."""
    test = multiprocessing.parent_process()
    assert test is not None

    def follow() -> None:
        test.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    run(settings)


class Mortal(Generic[_S]):
    """``run(settings)`` as a process that is started again and again, each time with changes to its settings."""

    def __init__(self, run: Callable[[_S], None], settings: _S) -> None:
        self._run, self._settings = run, settings
        self._process: ForkServerProcess | None = None

    def start(self, **changes: object) -> None:
        """Begin (again)."""
        settings = msgspec.structs.replace(self._settings, **changes)
        self._process = _context().Process(target=_while_tested, args=(self._run, settings))
        self._process.start()

    def is_dead(self, within_s: float = 0.0) -> bool:
        """Whether it has ended, at the latest after a while."""
        assert self._process is not None
        self._process.join(within_s)
        return self._process.exitcode is not None

    @property
    def exit_code(self) -> int | None:
        """As it ended; below 0 the signal that ended it."""
        return None if self._process is None else self._process.exitcode

    def give_space(self) -> None:
        """Files may grow again."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            resource.prlimit(self._process.pid or 0, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.join()


if __name__ == "__main__":
    serve(msgspec.json.decode(sys.argv[1], type=Serving))
