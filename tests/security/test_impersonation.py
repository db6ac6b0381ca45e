"""S1: a device that has a good certificate of its own tries to be another one, or the coordinator.

Mosquitto runs with what `coordinator broker config` writes. Each way is tried by the intruder while its victim is
connected and a third device sleeps with a session that the broker keeps. What gets through is seen where it does harm.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_sdk.protocol.messages import Announce, Chunk, Hello, Offline, Ready, Wait, encode
from edge_sdk.protocol.topics import Channel, Topic, coordinator_filters, coordinator_name, device_filters
from edge_sdk.transport.address import BrokerAddress, tls_context
from edge_sdk.transport.base import Incoming, LinkDown, LinkUp
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import mosquitto_broker
from tests.support.secured import SecuredFleet, secured_fleet
from tests.support.simulator import able_device

pytestmark = [pytest.mark.mosquitto, pytest.mark.xdist_group("impersonation")]
FLEET, INTRUDER, VICTIM, SLEEPER = "default", "intruder", "victim", "sleeper"
PATIENCE_S = 10.0
SESSION_S = 300


def topic(device: str, channel: Channel) -> str:
    return str(Topic(FLEET, device, channel))


class Session:
    """A client of MQTT 5 with nothing of the product about it: what an intruder would write."""

    def __init__(
        self, world: World, name: str, *, client_id: str | None = None, keeps: bool = False, **more: Any
    ) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.client = Client(CallbackAPIVersion.VERSION2, client_id or name, protocol=MQTTProtocolVersion.MQTTv5)
        world.show_certificate(self.client, name)
        self.client.on_message = self._on_message
        for say, arguments in more.items():
            getattr(self.client, say)(*arguments)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_S if keeps else 0
        self.client.connect(world.address.host, world.address.port, clean_start=not keeps, properties=properties)
        self.client.loop_start()
        wait(self.client.is_connected)

    def _on_message(self, _: Any, __: Any, message: MQTTMessage) -> None:
        self.heard.append((message.topic, message.payload))

    def say(self, where: str, payload: bytes, *, retain: bool = False) -> None:
        self.client.publish(where, payload, qos=1, retain=retain).wait_for_publish(PATIENCE_S)

    def listen(self, *filters: str) -> None:
        done = threading.Event()
        self.client.on_subscribe = lambda *_: done.set()
        self.client.subscribe([(each, SubscribeOptions(qos=1)) for each in filters])
        assert done.wait(PATIENCE_S)

    def vanish(self) -> None:
        """Without a goodbye: the broker publishes the will."""
        opened = self.client.socket()
        self.client.on_socket_close = None
        if isinstance(opened, socket.socket):
            opened.shutdown(socket.SHUT_RDWR)
        self.client.loop_stop()

    def leave(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class World:
    """A coordinator that only listens, a victim that is there, a device that sleeps, and a broker between them."""

    def __init__(self, address: BrokerAddress, fleet: SecuredFleet | None, ending: ExitStack) -> None:
        self.address, self.fleet = address, fleet
        self.coordinator = self.link(coordinator_name(FLEET), coordinator_filters(FLEET))
        self.victim = self.link(VICTIM, device_filters(FLEET, VICTIM))
        for link in (self.coordinator, self.victim):
            ending.callback(link.close)
            link.connect()
        sleeper = Session(self, SLEEPER, keeps=True)
        sleeper.listen(topic(SLEEPER, Channel.DOWN))
        sleeper.leave()
        self.coordinator.publish(topic(SLEEPER, Channel.DOWN), b"for the sleeper")
        self.marks = 0
        self.pass_mark()

    def link(self, name: str, filters: tuple[str, ...]) -> MqttTransport:
        if self.fleet is None:
            return MqttTransport(self.address, name, filters)
        if name in {VICTIM, SLEEPER, INTRUDER}:
            return self.fleet.link(name, filters)
        return MqttTransport.of(self.fleet.config(), name, filters)

    def show_certificate(self, client: Client, name: str) -> None:
        if self.fleet is not None:
            identity = self.fleet.enrolled(name)
            client.tls_set_context(tls_context(identity.authority_file, identity.file))

    def intruder(self, **more: Any) -> Session:
        return Session(self, INTRUDER, **more)

    # -- what got through

    def pass_mark(self) -> list[object]:
        """Everybody has heard all that was said before: what of it the coordinator and the victim should not have."""
        self.marks += 1
        mark = f"mark {self.marks}".encode()
        passer = Session(self, INTRUDER)
        passer.say(topic(INTRUDER, Channel.UP), mark)
        harm: list[object] = [
            incoming
            for incoming in self._until(self.coordinator, mark)
            if isinstance(incoming, Incoming) and f"/{INTRUDER}/" not in incoming.topic
        ]
        passer.leave()
        self.coordinator.publish(topic(VICTIM, Channel.DOWN), mark)
        return harm + [delivery for delivery in self._until(self.victim, mark) if not isinstance(delivery, LinkUp)]

    def _until(self, link: MqttTransport, mark: bytes) -> Iterator[object]:
        give_up_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_s:
            delivery = link.receive(0.2)
            if isinstance(delivery, Incoming) and delivery.payload == mark:
                return
            if isinstance(delivery, LinkDown):  # the mark is lost with the session
                yield delivery
                return
            if delivery is not None:
                yield delivery
        yield "silence"


@contextmanager
def open_world() -> Iterator[World]:
    """The control: a broker that lets everybody in and lets them do anything."""
    with mosquitto_broker() as broker, ExitStack() as ending:
        yield World(broker.address, None, ending)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with secured_fleet(tmp_path_factory.mktemp("secured")) as fleet, ExitStack() as ending:
        yield World(fleet.broker.address, fleet, ending)


def wait(holds: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


# -- the ways: each returns what the intruder heard that was not for it


def hello(device: str) -> bytes:
    return encode(Hello(device=device, session=99, profile="intruder", agent_version="0"))


def with_the_victim_s_client_id(world: World) -> list[Any]:
    world.intruder(client_id=VICTIM).leave()
    return []


def with_the_victim_s_client_id_and_its_kept_session(world: World) -> list[Any]:
    session = world.intruder(client_id=SLEEPER, keeps=True)
    session.say(topic(INTRUDER, Channel.UP), b"I am here")
    wait_a_round_trip(session)
    session.leave()
    return session.heard


def with_the_victim_s_user_name(world: World) -> list[Any]:
    session = world.intruder(username_pw_set=(VICTIM, "guessed"))
    session.say(topic(VICTIM, Channel.STATE), hello(VICTIM), retain=True)
    session.leave()
    return []


def as_the_victim_s_birth(world: World) -> list[Any]:
    session = world.intruder()
    session.say(topic(VICTIM, Channel.STATE), hello(VICTIM), retain=True)
    session.leave()
    return []


def as_the_victim_s_goodbye(world: World) -> list[Any]:
    session = world.intruder()
    session.say(topic(VICTIM, Channel.STATE), encode(Offline(device=VICTIM, session=99)), retain=True)
    session.leave()
    return []


def as_the_victim_s_last_will(world: World) -> list[Any]:
    will = (topic(VICTIM, Channel.STATE), encode(Offline(device=VICTIM, session=99)), 1, True)
    world.intruder(will_set=will).vanish()
    return []


def asking_for_the_victim_s_work(world: World) -> list[Any]:
    session = world.intruder()
    session.say(topic(VICTIM, Channel.UP), encode(Ready(snapshot=able_device())))
    session.leave()
    return []


def sending_the_victim_s_update(world: World) -> list[Any]:
    session = world.intruder()
    chunk = Chunk(digest="a" * 64, offset=0, data=b"poison", data_digest=b"\0" * 32)
    session.say(topic(VICTIM, Channel.CHUNK_UP), encode(chunk))
    session.leave()
    return []


def overheard(world: World, *filters: str) -> list[Any]:
    """What the intruder hears of what the coordinator tells the victim."""
    session = world.intruder()
    session.listen(*filters)
    world.coordinator.publish(topic(VICTIM, Channel.DOWN), b"for the victim")
    world.coordinator.publish(topic(VICTIM, Channel.CHUNK_DOWN), b"its model")
    for delivery in world._until(world.victim, b"its model"):
        assert delivery == Incoming(topic(VICTIM, Channel.DOWN), b"for the victim")
    wait_a_round_trip(session)
    session.leave()
    return session.heard


def listening_to_the_victim(world: World) -> list[Any]:
    return overheard(world, topic(VICTIM, Channel.DOWN), topic(VICTIM, Channel.CHUNK_DOWN))


def listening_to_everybody(world: World) -> list[Any]:
    return overheard(world, "#", f"raffm/1/{FLEET}/+/down", f"raffm/1/{FLEET}/+/chunk/down")


def listening_as_a_shared_subscriber(world: World) -> list[Any]:
    return overheard(world, f"$share/x/{topic(VICTIM, Channel.DOWN)}")


def as_the_coordinator_to_the_victim(world: World) -> list[Any]:
    session = world.intruder()
    session.say(topic(VICTIM, Channel.DOWN), encode(Wait(retry_after_s=1e9)))
    session.leave()
    return []


def as_the_coordinator_s_announcement(world: World) -> list[Any]:
    session = world.intruder()
    session.say(str(Topic(FLEET)), encode(Announce(session=1)), retain=True)
    session.leave()
    return []


def wait_a_round_trip(session: Session) -> None:
    """All that the broker had for this session has come: it delivers in order."""
    session.listen(topic(INTRUDER, Channel.DOWN))


WAYS = (
    with_the_victim_s_client_id,
    with_the_victim_s_client_id_and_its_kept_session,
    with_the_victim_s_user_name,
    as_the_victim_s_birth,
    as_the_victim_s_goodbye,
    as_the_victim_s_last_will,
    asking_for_the_victim_s_work,
    sending_the_victim_s_update,
    listening_to_the_victim,
    listening_to_everybody,
    listening_as_a_shared_subscriber,
    as_the_coordinator_to_the_victim,
    as_the_coordinator_s_announcement,
)


@pytest.mark.case("S1", "impersonations that get through, or disturb the victim's session")
@pytest.mark.parametrize("way", WAYS)
def test_nobody_becomes_another(secured: World, way: Callable[[World], list[Any]]) -> None:
    overheard = way(secured)
    assert not overheard
    assert not secured.pass_mark()


@pytest.mark.case("S1", "queues of a sleeping device that others have emptied")
def test_what_the_sleeper_was_sent_is_still_its_own(secured: World) -> None:
    """After all the others have tried."""
    for way in WAYS[:2]:
        way(secured)
    sleeper = Session(secured, SLEEPER, keeps=True)
    wait(lambda: bool(sleeper.heard))
    sleeper.leave()
    assert sleeper.heard == [(topic(SLEEPER, Channel.DOWN), b"for the sleeper")]


@pytest.mark.parametrize("way", WAYS)
def test_broker_without_rules_lets_it_happen(way: Callable[[World], list[Any]]) -> None:
    """The control."""
    with open_world() as world:
        assert way(world) or world.pass_mark()
