"""One device from an offer to a newer model, with an agent that may die once, and a coordinator that follows a script.

The device has release 1 when a case begins. It is offered round 1 until its update has come, and then gets release 2;
where it reports that it could not install it, it goes on with the old one and gets the next.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.data import write_examples
from edge_sdk.errors import RaffmError
from edge_sdk.inference.slots import Slots
from edge_sdk.protocol.messages import (
    BlobGone,
    Chunk,
    ChunkRequest,
    CoordinatorMessage,
    DeviceMessage,
    Hello,
    Ready,
    Receipt,
    ReleaseReport,
    Standing,
    UpdateReady,
    Verdict,
    decode_from_device,
    encode,
)
from edge_sdk.protocol.topics import Channel, Topic, coordinator_filters
from edge_sdk.transport.base import Incoming
from edge_sdk.transport.exchange import BlobExchange
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import Broker
from tests.support.crash import Crash, Mortal, points_passed
from tests.support.crash_agent import Working, work
from tests.support.goods import Goods
from tests.support.logistic_graph import examples

FLEET = "default"
_PATIENCE_S = 60.0
_OLD = 1


@dataclass(frozen=True)
class Found:
    """What became of a device: its updates of the round, whether it ran a model at each death, and in the end."""

    updates: int
    is_killed: bool
    exit_code: int | None
    had_model: bool
    is_usable: bool
    seconds: float
    passed: tuple[str, ...]


class AgentCase:
    """A device in ``folder``, which also names it; ``before`` is a state folder to begin with.

    ``control`` switches a mechanism off, by its name in :mod:`tests.support.controls`.
    """

    def __init__(self, folder: Path, broker: Broker, before: Path | None = None, control: str = "") -> None:
        self.state_dir = folder / "device"
        folder.mkdir()
        if before is None:
            self.state_dir.mkdir()
        else:
            shutil.copytree(before, self.state_dir)
            (self.state_dir / "points").unlink()
        data = write_examples(folder / "examples.jsonl", examples(40, seed=1))
        self._name, self._goods = folder.name, Goods(folder, folder.name)
        key = str(self._goods.root)
        self._agent = Mortal(
            work, Working(folder.name, str(broker.address), str(self.state_dir), str(data), key, None, control)
        )
        self._link = MqttTransport(broker.address, f"{folder.name}-coordinator", coordinator_filters(FLEET))
        self._link.connect()
        self._exchange = BlobExchange(self._goods.blobs, lambda _, message: self._send(message))
        self._updates: dict[str, UpdateReady] = {}
        self._is_receipted = before is None
        self._release = _OLD if before is None else _OLD + 1
        self._runs = 0

    def first_model(self) -> None:
        """Bring it release 1."""
        assert not self._play()

    def run(self, crash: Crash | None = None, kill_after_s: float | None = None) -> Found:
        """Die at ``crash``, or so long after the start, or not at all; then go on until release 2 runs."""
        began_s = time.monotonic()
        is_killed = self._play(crash, kill_after_s)
        code, had_model = self._agent.exit_code, self._model() is not None
        if is_killed:
            self._play()
        is_usable = self._runs == self._release == self._model()
        seconds, passed = time.monotonic() - began_s, points_passed(self.state_dir)
        return Found(len(self._updates), is_killed, code if is_killed else None, had_model, is_usable, seconds, passed)

    def _play(self, crash: Crash | None = None, kill_after_s: float | None = None) -> bool:
        """Run the agent until it has its release, or patience ends; whether it died before."""
        self._agent.start(crash=crash)
        began_s, is_dead = time.monotonic(), False
        while self._runs != self._release and not is_dead and time.monotonic() - began_s < _PATIENCE_S:
            if kill_after_s is not None and time.monotonic() - began_s >= kill_after_s:
                self._agent.kill()
            delivery = self._link.receive(0.02)
            if isinstance(delivery, Incoming) and f"/{self._name}/" in delivery.topic and delivery.payload:
                self._answer(decode_from_device(delivery.payload))
            self._exchange.tick(time.monotonic())  # what does not come is asked for again
            is_dead = self._agent.is_dead()
        if not is_dead:
            self._agent.kill()
        return is_dead

    def _answer(self, message: DeviceMessage) -> None:
        match message:
            case ChunkRequest() | Chunk() | BlobGone():
                self._exchange.handle(self._name, message, time.monotonic())
                self._receipt_what_came()
            case Hello():  # what was on its way to or from it is lost
                self._exchange.resume(time.monotonic(), self._name)
            case Ready():
                self._send(self._goods.release(self._release) if self._is_receipted else self._goods.offer())
            case UpdateReady(update=update):
                self._updates[message.update_id] = message
                self._exchange.fetch(self._name, update.digest, update.size_bytes, time.monotonic())
                self._receipt_what_came()
            case ReleaseReport(release=self._release, healthy=True):
                self._runs = self._release
            case ReleaseReport(release=self._release, standing=Standing.ROLLED_BACK):
                self._release += 1

    def _receipt_what_came(self) -> None:
        for update in self._updates.values():
            if self._goods.blobs.has(update.update.digest):
                self._is_receipted = True
                self._send(Receipt(update_id=update.update_id, verdict=Verdict.ACCEPTED))

    def _send(self, message: CoordinatorMessage) -> None:
        channel = Channel.CHUNK_DOWN if isinstance(message, Chunk) else Channel.DOWN
        self._link.publish(str(Topic(FLEET, self._name, channel)), encode(message))

    def _model(self) -> int | None:
        """The release that the device would run if it were started now."""
        try:
            slot = Slots(self.state_dir / "slots").current()
        except RaffmError:
            return None
        return None if slot is None else slot.manifest.release

    def close(self) -> None:
        """Close its link and its files."""
        self._exchange.close()
        self._link.close()
