"""A device or a coordinator that does nothing but move blobs, over a real broker, on a thread of its own."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_sdk.protocol.messages import BlobMessage, Chunk, Message, decode_from_coordinator, decode_from_device, encode
from edge_sdk.protocol.topics import Channel, Topic, coordinator_filters, device_filters, parse
from edge_sdk.transport.address import BrokerAddress, MqttVersion
from edge_sdk.transport.base import BulkRoom, Incoming, LinkDown, LinkUp
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.exchange import BlobExchange, Outcome
from edge_sdk.transport.mqtt import MqttTransport


class Node(threading.Thread):
    """One device, or the coordinator where ``name`` is empty: a receive loop around an exchange.

    ``heard`` is what else came, and when; ``cuts`` are the ends of its link.
    """

    def __init__(
        self, address: BrokerAddress, name: str, folder: Path, *, version: MqttVersion = MqttVersion.ANY
    ) -> None:
        super().__init__(name=name or "coordinator")
        self.device, self.outcomes = name, list[Outcome]()
        self.heard: list[tuple[float, Message]] = []
        self.cuts: list[str] = []
        self.folder = BlobFolder(folder)
        filters = device_filters("fleet", name) if name else coordinator_filters("fleet")
        self.transport = MqttTransport(address, self.name, filters, version=version)
        self.exchange = BlobExchange(
            self.folder, self.send, max_transfers=2 if name else 16, room=self.transport.bulk_room
        )
        self.transport.connect()

    def send(self, peer: str, message: Message) -> None:
        bulk, small = (Channel.CHUNK_UP, Channel.UP) if self.device else (Channel.CHUNK_DOWN, Channel.DOWN)
        is_bulk = isinstance(message, Chunk)
        topic = str(Topic("fleet", self.device or peer, bulk if is_bulk else small))
        self.transport.publish(topic, encode(message), bulk=is_bulk)

    def fetch(self, peer: str, digest: str, size_bytes: int) -> None:
        """From any thread."""
        self.transport.inject((peer, digest, size_bytes))

    def run(self) -> None:
        ticked_s = time.monotonic()
        while (delivery := self.transport.receive(0.5)) != "stop":
            now_s = time.monotonic()
            if isinstance(delivery, tuple):
                self.outcomes += self.exchange.fetch(*delivery, now_s)
            elif isinstance(delivery, LinkUp):
                self.exchange.resume(now_s)
            elif isinstance(delivery, LinkDown):
                self.cuts.append(delivery.reason)
            elif isinstance(delivery, BulkRoom):
                self.exchange.send_more()
            elif isinstance(delivery, Incoming):
                decode = decode_from_coordinator if self.device else decode_from_device
                peer = parse(delivery.topic).device if not self.device else "coordinator"
                message = decode(delivery.payload)
                if isinstance(message, BlobMessage):
                    self.outcomes += self.exchange.handle(peer, message, now_s)
                else:
                    self.heard.append((now_s, message))
            if now_s - ticked_s > 1:
                self.outcomes, ticked_s = self.outcomes + self.exchange.tick(now_s), now_s

    def stop(self) -> None:
        self.transport.inject("stop")
        self.join()
        self.exchange.close()
        self.transport.close()


def wait(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, "timed out"
        time.sleep(0.005)


def main() -> None:
    """``ADDRESS NAME FOLDER [DIGEST SIZE]``: serve the folder's blobs until killed, or end with that one fetched.

    Prints how many bytes of blobs came.
    """
    address, name, folder, *wanted = sys.argv[1:]
    node = Node(BrokerAddress.parse(address), name, Path(folder))
    node.start()
    if wanted:
        node.fetch("coordinator" if name else "device", wanted[0], int(wanted[1]))
        wait(lambda: bool(node.outcomes))
        print(sum(node.exchange.received_bytes.values()))
        node.stop()


if __name__ == "__main__":
    main()
