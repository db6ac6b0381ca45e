"""What a coordinator asks of the kernel, in order: strace sees what was synced before what was sent."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import pytest

from coordinator.store.database import Store
from coordinator.store.opening import open_store
from coordinator.store.states import TaskStatus
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import Broker
from tests.support.crash import Serving
from tests.support.light_model import light_task
from tests.support.simulator import Fleet, Pace

TASK = "task"
_CALLS = "trace=fsync,fdatasync,pwrite64,sendto,rename"
_LONGEST_BYTES = 6000  # a page of the store is shown whole
_PATIENCE_S = 900.0
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>")
_RECEIPT = re.compile(r"receipt.*?update_id\\331@([0-9a-f]{64})")
_ID = re.compile(r"[0-9a-f]{64}")
_ANY_ID = re.compile(r"(?=([0-9a-f]{64}))")  # also behind the digits of an escaped byte


@dataclass(frozen=True)
class Call:
    """A system call that ended well; ``begun`` and ``ended`` are lines of the trace."""

    name: str
    arguments: str
    begun: int
    ended: int


def traced_run(folder: Path, broker: Broker, *, devices: int, rounds: int, control: str = "") -> Path:
    """The trace of a coordinator that gives ``devices`` times ``rounds`` receipts; skips the test without strace."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    folder.mkdir()
    names = [f"device-{number}" for number in range(devices)]
    serving = Serving(str(folder), str(broker.address), folder.name, str(folder / "history"), control=control)
    watch = (strace, "-f", "--seccomp-bpf", "-y", "-s", str(_LONGEST_BYTES), "-e", _CALLS, "-o", str(folder / "trace"))
    serve = (sys.executable, "-m", "tests.support.crash", msgspec.json.encode(serving).decode())
    store = open_store(folder)
    with store.transaction() as tx:
        task = light_task(folder, TASK, rounds=rounds, min_devices=devices, quorum=devices)
        tx.tasks.add(TASK, msgspec.json.encode(task), time.time())
    fleet = Fleet(
        names,
        lambda name, filters, will: MqttTransport(broker.address, name, filters, will=will),
        pace=Pace(ready_s=1.0, resend_s=5.0),
        fleet=folder.name,
    )
    with fleet, (folder / "strace.log").open("wb") as log, ending(subprocess.Popen([*watch, *serve], stderr=log)) as it:
        give_up_s = time.monotonic() + _PATIENCE_S
        while not _is_over(store, fleet):
            if it.poll() is not None:
                pytest.skip(f"strace does not work here: {(folder / 'strace.log').read_text()[-200:]}")
            assert time.monotonic() < give_up_s
            time.sleep(0.1)
    store.close()
    return folder / "trace"


@contextmanager
def ending(strace: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """It ends with what it watches, and with nothing else."""
    try:
        yield strace
    finally:
        with suppress(psutil.NoSuchProcess):
            for watched in psutil.Process(strace.pid).children():
                watched.kill()
        strace.wait(10)


def _is_over(store: Store, fleet: Fleet) -> bool:
    with store.reading() as tx:
        return tx.tasks.all()[0].status is TaskStatus.DONE and fleet.is_settled


def calls_in(trace: Path) -> Iterator[Call]:
    """Every call that ended well, in the order of their ends."""
    open_calls: dict[str, tuple[str, str, int]] = {}
    with trace.open(errors="replace") as lines:
        for number, line in enumerate(lines):
            begun, resumed = _BEGUN.match(line), _RESUMED.match(line)
            if begun and "<unfinished ...>" in line:
                open_calls[begun[1]] = (begun[2], begun[3], number)
            elif begun and not line.rstrip().endswith(")") and ") = -1 " not in line:
                yield Call(begun[2], begun[3], number, number)
            elif resumed and resumed[1] in open_calls and " = -1 " not in line:
                yield Call(*open_calls.pop(resumed[1]), number)


@dataclass(frozen=True)
class Order:
    """``receipts`` that were sent, and those that were sent before their commit, or their blob, was on the disk."""

    receipts: int
    before_commit: int
    before_blob: int


def order_in(trace: Path, digests: dict[str, str]) -> Order:
    """Judge a trace; ``digests`` maps the ids of updates to their blobs."""
    sent: dict[str, int] = {}
    written: dict[str, int] = {}
    durable: dict[str, int] = {}
    synced: dict[str, list[Call]] = defaultdict(list)
    names: dict[str, int] = {}
    for call in calls_in(trace):
        if call.name == "sendto" and (receipt := _RECEIPT.search(call.arguments)):
            sent.setdefault(receipt[1], call.begun)
        elif call.name == "pwrite64" and "sqlite-wal>" in call.arguments:
            for update in {*_ANY_ID.findall(call.arguments)} & digests.keys():
                written.setdefault(update, call.ended)
        elif call.name == "fdatasync" and "sqlite-wal>" in call.arguments:
            for update in [update for update, ended in written.items() if ended < call.begun]:
                durable.setdefault(update, call.ended)
        elif call.name == "fsync":
            for digest in _ID.findall(call.arguments) or ["folder"]:
                synced[digest].append(call)
        elif call.name == "rename":
            names[_ID.findall(call.arguments)[-1] if _ID.search(call.arguments) else ""] = call.ended
    late = sum(durable.get(update, sent[update]) >= sent[update] for update in sent)
    torn = sum(not _is_kept(digests.get(update, ""), sent[update], synced, names) for update in sent)
    return Order(len(sent), late, torn)


def _is_kept(digest: str, sent: int, synced: dict[str, list[Call]], names: dict[str, int]) -> bool:
    """Bytes, then name, then the folder's entry, and only then the receipt."""
    named = names.get(digest, sent)
    has_bytes = any(call.ended < named for call in synced[digest])
    return has_bytes and any(named < call.begun and call.ended < sent for call in synced["folder"])
