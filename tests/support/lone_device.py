"""One agent on a broker in memory, with a coordinator that follows a script: one offer, one receipt, one release.

The agent, its training process, the codec, the blob exchange and the outbox are the real ones; every payload is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.config import AgentConfig
from edge_sdk.data.owned import Owned
from edge_sdk.protocol.messages import (
    BlobGone,
    Chunk,
    ChunkRequest,
    CoordinatorMessage,
    DeviceMessage,
    Hello,
    Ready,
    Receipt,
    UpdateReady,
    Verdict,
    decode_from_device,
    encode,
)
from edge_sdk.protocol.topics import Channel, Topic, coordinator_filters, device_filters
from edge_sdk.transport.base import Incoming
from edge_sdk.transport.exchange import BlobExchange, Fetched
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.goods import TASK, Goods
from tests.support.logistic_graph import LABELS

__all__ = ["DEVICE", "TASK", "LoneDevice", "RecordingHub"]
DEVICE = "lone"
_PATIENCE_S = 60.0


class RecordingHub(MemoryHub):
    """A broker that keeps what passes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.payloads: list[bytes] = []

    def route(self, topic: str, payload: bytes, *, retain: bool) -> None:
        self.payloads.append(payload)
        super().route(topic, payload, retain=retain)


class LoneDevice:
    """An agent with ``examples`` in ``folder``; it runs while the context is open.

    ``said`` is everything that it said, decoded. ``releases_first`` sends the release before any training.
    """

    def __init__(
        self, folder: Path, examples: Owned, *, labels: tuple[str, ...] = LABELS, releases_first: bool = False
    ) -> None:
        self.said: list[DeviceMessage] = []
        self.hub = RecordingHub()
        self._releases_first = releases_first
        self.goods = Goods(folder, DEVICE, labels)
        self.offer, self.release = self.goods.offer(), self.goods.release(1)
        self.state_dir = folder / "device"
        config = AgentConfig(
            device=DEVICE,
            broker="mqtt://127.0.0.1",
            state_dir=self.state_dir,
            root=folder / "root.json",
            held_out_share=0.3,
            ready_interval_s=0.2,
        )
        self._make = lambda: Supervisor(config, examples, make_transport=self._transport)
        self.supervisor = self._make()
        self._link = MemoryTransport(self.hub, coordinator_filters("default"))
        self._exchange = BlobExchange(self.goods.blobs, lambda _, message: self.send(message))
        self._thread = threading.Thread(target=self.supervisor.run, daemon=True)

    def __enter__(self) -> LoneDevice:  # noqa: PYI034 - Self needs Python 3.11
        self._link.connect()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.supervisor.stop()
        self._thread.join(_PATIENCE_S)
        self._exchange.close()
        assert not self._thread.is_alive()

    def restart(self, meanwhile: Callable[[], None]) -> None:
        """End the agent, call ``meanwhile``, forget what was said, and start another agent on the same state."""
        self.supervisor.stop()
        self._thread.join(_PATIENCE_S)
        meanwhile()
        while self._link.receive(0.05) is not None:
            pass
        self.said.clear()
        self._releases_first = False
        self.supervisor = self._make()
        self._thread = threading.Thread(target=self.supervisor.run, daemon=True)
        self._thread.start()

    def run_until(self, holds: Callable[[], object], patience_s: float = _PATIENCE_S) -> None:
        """Play the coordinator until ``holds()``."""
        deadline_s = time.monotonic() + patience_s
        while not holds():
            assert time.monotonic() < deadline_s, self.said
            delivery = self._link.receive(0.05)
            if isinstance(delivery, Incoming):
                self._answer(decode_from_device(delivery.payload))

    def run_for(self, seconds: float) -> None:
        """Play the coordinator for a while."""
        end_s = time.monotonic() + seconds
        self.run_until(lambda: time.monotonic() >= end_s)

    def heard(self, kind: type[DeviceMessage]) -> list[DeviceMessage]:
        """All messages of this kind so far."""
        return [message for message in self.said if isinstance(message, kind)]

    def send(self, message: CoordinatorMessage) -> None:
        """To the device."""
        is_chunk = isinstance(message, Chunk)
        channel = Channel.CHUNK_DOWN if is_chunk else Channel.DOWN
        self._link.publish(str(Topic("default", DEVICE, channel)), encode(message))

    def _answer(self, message: DeviceMessage) -> None:
        self.said.append(message)
        match message:
            case ChunkRequest() | Chunk() | BlobGone():
                outcomes = self._exchange.handle(DEVICE, message, time.monotonic())
                if any(isinstance(outcome, Fetched) for outcome in outcomes):
                    self._settle()
            case Hello() if self._releases_first:
                self.send(self.release)
            case Ready() if not self.heard(UpdateReady):
                self.send(self.offer)
            case UpdateReady(update=update):
                self._exchange.fetch(DEVICE, update.digest, update.size_bytes, time.monotonic())

    def _settle(self) -> None:
        """The update has come whole."""
        update = self.heard(UpdateReady)[-1]
        assert isinstance(update, UpdateReady)
        self.send(Receipt(update_id=update.update_id, verdict=Verdict.ACCEPTED))
        self.send(self.release)

    def _transport(self, config: AgentConfig, _: int) -> MemoryTransport:
        return MemoryTransport(self.hub, device_filters(config.fleet, config.device))
