"""Either side of a transfer is killed with SIGKILL and started again on its folder: only what is missing comes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from edge_sdk.transport.blob_folder import BlobFolder
from tests.support.broker import mosquitto_broker
from tests.support.exchange_node import wait
from tests.support.throttle import throttled

pytestmark = pytest.mark.mosquitto
SIZE_BYTES = 6_000_000
BYTES_PER_S = 1_500_000  # slow enough to be killed in the middle


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.exchange_node", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("receiver", ["device", pytest.param("coordinator", marks=pytest.mark.long)])
@pytest.mark.parametrize("victim", ["receiver", pytest.param("sender", marks=pytest.mark.long)])
def test_killed_side_goes_on_where_it_was(tmp_path: Path, receiver: str, victim: str) -> None:
    sender = "coordinator" if receiver == "device" else "device"
    data = os.urandom(SIZE_BYTES)
    digest = BlobFolder(tmp_path / sender).put_bytes(data)
    flags = tmp_path / receiver / f"{digest}.have"
    with mosquitto_broker() as broker, throttled(broker.address, BYTES_PER_S) as slow, ExitStack() as stack:

        def start(side: str, *wanted: str) -> subprocess.Popen[str]:
            address, name = (str(slow), "device") if side == "device" else (str(broker.address), "")
            return stack.enter_context(started(address, name, str(tmp_path / side), *wanted))

        receiving, sending = start(receiver, digest, str(SIZE_BYTES)), start(sender)
        wait(lambda: flags.exists() and sum(flags.read_bytes()) > len(flags.read_bytes()) // 4)
        (receiving if victim == "receiver" else sending).kill()
        (receiving if victim == "receiver" else sending).wait()
        kept_bytes = sum(flags.read_bytes()) * 16384
        if victim == "receiver":
            receiving = start(receiver, digest, str(SIZE_BYTES))
        else:
            start(sender)
        came_bytes = int(receiving.communicate(timeout=60)[0])
    assert BlobFolder(tmp_path / receiver).path_of(digest).read_bytes() == data
    expected_bytes = SIZE_BYTES - (kept_bytes if victim == "receiver" else 0)
    assert expected_bytes <= came_bytes <= expected_bytes + (1 << 20), "no more than a window comes twice"
