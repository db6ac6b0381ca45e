"""A slow link to a broker: bytes pass both ways at a given rate, in order, with next to nothing in between."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from edge_sdk.transport.address import BrokerAddress

_PIECE_BYTES = 1024
_BUFFER_BYTES = 4096  # the kernel at least doubles it


@contextmanager
def throttled(target: BrokerAddress, bytes_per_s: float) -> Iterator[BrokerAddress]:
    """An address whose connections lead to ``target``, each with ``bytes_per_s`` each way."""
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=_accept, args=(listener, target, bytes_per_s), daemon=True).start()
        yield BrokerAddress("127.0.0.1", listener.getsockname()[1])


def _accept(listener: socket.socket, target: BrokerAddress, bytes_per_s: float) -> None:
    with suppress(OSError):
        while True:
            near, _ = listener.accept()
            far = socket.socket()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            far.connect((target.host, target.port))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=carry, args=(*pair, bytes_per_s), daemon=True).start()


def carry(source: socket.socket, sink: socket.socket, bytes_per_s: float) -> None:
    """Carry all that comes until one end closes.

    What is late is made up for, so that a busy machine does not make the link slower than it says.
    """
    sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    free_s = time.monotonic()
    with suppress(OSError):
        while data := source.recv(_PIECE_BYTES):
            free_s = max(free_s, time.monotonic() - 0.1) + len(data) / bytes_per_s
            time.sleep(max(0.0, free_s - time.monotonic()))
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
