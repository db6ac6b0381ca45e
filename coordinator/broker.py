"""The embedded broker: rumqttd, from the ``iotcore`` wheel, in a process of its own that listens on loopback only.

It is meant for trials and small fleets: it has no access control and keeps its messages in memory. A fleet on a network
uses mosquitto or another full broker.

rumqttd keeps one log per subscription filter, in memory. When a log is full, rumqttd drops its oldest segment,
delivered or not. So even without its oldest segment, a log must be able to hold all that can be in flight at once:

    log of                 in flight at most                                           so it keeps
    <device>/chunk/down    what a device asks for: 2 transfers x 8 chunks x 128 KiB    4 segments of 1 MiB
    +/chunk/up             what the coordinator asks for: 16 x 8 x 128 KiB = 16 MiB    6 segments of 4 MiB
    all others             small messages                                              4 segments of 1 MiB

This memory is never freed: after 16 devices have fetched 20 MB each, the process takes 160 MiB, of which 32 MiB are
Python's.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import TracebackType

from edge_sdk.disk import disk_errors
from edge_sdk.errors import BrokerUnreachableError, PortInUseError
from edge_sdk.protocol.messages import MAX_CHUNK_BYTES
from edge_sdk.transport.address import BrokerAddress
from edge_sdk.transport.mqtt import MqttTransport

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 1.0
_TAKEN = os.strerror(errno.EADDRINUSE)
_CONFIGURATION = f"""\
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = {1 << 20}
max_segment_count = 4

[router.custom_segment.'raffm/1/+/+/chunk/up']
max_segment_size = {4 << 20}
max_segment_count = 6

[v5.1]
name = "loopback"
listen = "{_HOST}:{{port}}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = {MAX_CHUNK_BYTES + 4096}
max_inflight_count = 100
"""


class EmbeddedBroker:
    """A running broker, which ends with the context: ``with EmbeddedBroker(folder) as broker``.

    It writes ``broker.toml`` and ``broker.log`` to ``state_dir``. Port 0 takes any free port. Raises ``PortInUseError``
    if the port is taken, and ``BrokerUnreachableError`` if the broker does not start within 10 seconds.
    """

    def __init__(self, state_dir: Path, port: int = 0) -> None:
        with disk_errors(state_dir):
            state_dir.mkdir(parents=True, exist_ok=True)
        self._log = state_dir / "broker.log"
        for is_last in (port != 0, False, True):
            self.address = BrokerAddress(_HOST, _free_port(port))
            self._process = self._spawn(state_dir / "broker.toml")
            if self._answers_in_time():
                return
            if is_last or _TAKEN not in self._said():
                raise BrokerUnreachableError(
                    f"the embedded broker did not start at {self.address}: {self._said()} ({self._log})"
                )

    def __enter__(self) -> EmbeddedBroker:  # noqa: PYI034 Self needs Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def process_id(self) -> int:
        """The id of the broker's process."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the broker's process is running."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the broker, by force after one second; idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _spawn(self, configuration: Path) -> subprocess.Popen[bytes]:
        with disk_errors(configuration):
            configuration.write_text(_CONFIGURATION.format(port=self.address.port), encoding="utf-8")
        command = [sys.executable, "-m", "coordinator.broker", str(configuration)]
        with self._log.open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def _answers_in_time(self) -> bool:
        """Whether the broker accepts connections in time; if not, it is ended.

        Another program may take the port after it was found to be free and before the broker listens there.
        """
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        while not _answers(self.address):
            if not self.is_running or time.monotonic() > give_up_s:
                self.close()
                return False
            time.sleep(0.05)
        return True

    def _said(self) -> str:
        """The last line of the broker's log."""
        return self._log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2][:400]


def _answers(address: BrokerAddress) -> bool:
    try:
        with closing(MqttTransport(address, "coordinator-start", ())) as probe:
            probe.connect()
    except BrokerUnreachableError:
        return False
    return True


def _free_port(port: int) -> int:
    """``port`` if nobody listens there, or any free port for 0. Raises ``PortInUseError`` otherwise."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port closed a moment ago counts as free
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            msg = f"cannot listen on port {port} of {_HOST} ({error.strerror}): stop what uses it, or choose another"
            raise PortInUseError(msg) from error
        return int(probe.getsockname()[1])


def _serve(configuration: str) -> None:
    """The child process: runs rumqttd until standard input ends, which happens even if the parent is killed."""
    from iotcore import IotCoreBroker  # noqa: PLC0415 the parent does not need the native library

    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)  # its tracing logs every packet as an error
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    IotCoreBroker(config_path=configuration).run_forever()


def _exit_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
