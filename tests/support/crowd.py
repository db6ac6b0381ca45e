"""A thousand devices of a few processes, each with a link of its own, whose updates differ in their last number alone.

    with crowd(broker.address, 1000, architecture) as receipts:
        ...                                  # until a coordinator has sent as many receipts: sum(receipts())

One process has no room for them: paho waits with ``select``, which knows no file above 1023, and a link takes three.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_sdk.elastic.families import family_of
from edge_sdk.elastic.submodel import Architecture, TrainablePart
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.tensors import write_tensors
from edge_sdk.transport import mqtt
from edge_sdk.transport.base import Will
from edge_sdk.transport.mqtt import BrokerAddress, MqttTransport
from tests.support import light_model
from tests.support.simulator import Fleet, MemoryBlobs, Pace

_AS_IN_THE_FIELD = Pace(ready_s=10.0, wait_s=60.0, resend_s=20.0, tick_s=1.0)
_A_PROCESS = 250


class Forgetful(dict[str, bytes]):
    """What devices were sent: nothing of it is kept."""

    def pop(self, *_: Any) -> bytes:
        return b""


class ThinBlobs(MemoryBlobs):
    """A device whose update differs from all others in its last number: a thousand of them in the memory of one.

    It has every model that it is offered already, so that nothing but updates is on the way.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.whole = Forgetful()
        self._body, self._hashed, self._ends = body, hashlib.sha256(body), dict[str, bytes]()

    def has(self, _: str) -> bool:
        return True

    def size_of(self, digest: str) -> int | None:
        return len(self._body) + len(self._ends[digest]) if digest in self._ends else None

    def read(self, digest: str, start: int, stop: int) -> bytes:
        end = self._ends[digest][max(0, start - len(self._body)) : max(0, stop - len(self._body))]
        return self._body[start:stop] + end

    def put_bytes(self, data: bytes) -> str:
        whole = self._hashed.copy()
        whole.update(data)
        self._ends[whole.hexdigest()] = data
        return whole.hexdigest()


def update_body(architecture: Architecture) -> bytes:
    """An update of the whole model but for its last number."""
    light_model.ARCHITECTURE, before = architecture, light_model.ARCHITECTURE
    parameters = light_model._parameters(0)
    light_model.ARCHITECTURE = before
    family, rng, file = family_of(architecture.family), np.random.default_rng(0), io.BytesIO()
    trained = {
        name: rng.normal(0, 0.01, array.shape).astype(np.float32)
        for name, array in parameters.items()
        if family.is_trainable(name, TrainablePart.NO_EMBEDDINGS)
    }
    write_tensors(file, trained)
    return file.getvalue()[:-4]


def last_number(device: str, offer: Offer, _: bytes) -> bytes:
    return np.float32(1e-6 * int(device.partition("-")[2]) + 1e-3 * offer.round).tobytes()


@contextmanager
def crowd(address: BrokerAddress, devices: int, architecture: Architecture) -> Iterator[Callable[[], list[int]]]:
    """The devices, from 0 on, in processes of their own; what is given looks up how many receipts each has by now."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        logs = []
        for first in range(0, devices, _A_PROCESS):
            logs.append(folder / f"{first}.log")
            count = min(_A_PROCESS, devices - first)
            stack.enter_context(_process(logs[-1], str(address), str(first), str(count), architecture))
        yield lambda: [int((log.read_text().split() or ["0"])[-1]) for log in logs]


@contextmanager
def _process(log: Path, broker: str, first: str, count: str, architecture: Architecture) -> Iterator[None]:
    encoded = msgspec.json.encode(architecture).decode()
    command = [sys.executable, "-m", "tests.support.crowd", broker, first, count, encoded]
    with log.open("wb") as out, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out) as process:
        try:
            yield
        finally:
            process.kill()


def main() -> None:
    """Live until killed; every second a line with the number of receipts so far."""
    broker, first, count, encoded = sys.argv[1:]
    body = update_body(msgspec.json.decode(encoded, type=Architecture))
    names = [f"device-{number}" for number in range(int(first), int(first) + int(count))]
    mqtt._CONNECT_TIMEOUT_S = 60.0  # hundreds of them connect at once

    def link(name: str, filters: Sequence[str], will: Will) -> MqttTransport:
        return MqttTransport(BrokerAddress.parse(broker), name, filters, will=will)

    with Fleet(names, link, work=last_number, pace=_AS_IN_THE_FIELD, blobs=lambda: ThinBlobs(body)) as fleet:
        while True:
            print(sum(len(device.settled) for device in fleet.devices.values()), flush=True)
            time.sleep(1.0)


if __name__ == "__main__":
    main()
