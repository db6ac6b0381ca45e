"""Whatever a device says, the coordinator goes on; whatever a coordinator says, the device does."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random

import msgspec
import pytest

from edge_sdk.errors import MalformedMessageError
from edge_sdk.protocol.blobs import update_id
from edge_sdk.protocol.messages import (
    ChunkRequest,
    UpdateReady,
    decode_from_coordinator,
    decode_from_device,
    encode,
)
from edge_sdk.protocol.topics import Channel, Topic, parse
from edge_sdk.transport.base import Incoming
from tests.support import mutation
from tests.support.light_model import light_models, light_task
from tests.support.memory import memory_folder
from tests.support.new_store import new_store
from tests.support.proof import Proof
from tests.support.stepped import Clock, SteppedFleet, ticking

TURNS, MOST_TRIES = 150, 60
TO_DEVICE = {None, Channel.DOWN, Channel.CHUNK_DOWN}


@contextmanager
def fleet_of_two() -> Iterator[SteppedFleet]:
    """A coordinator with a task of three rounds, and two devices."""
    clock = Clock()
    with memory_folder() as folder, light_models(), ticking(clock):
        (folder / "coordinator").mkdir()
        task = light_task(folder, rounds=3, min_devices=2, quorum=2, round_deadline_s=60.0, release=True)
        store = new_store(folder / "coordinator")
        with store.transaction() as tx:
            tx.tasks.add(task.name, msgspec.json.encode(task), clock.time())
        store.close()
        fleet = SteppedFleet(folder, ("a", "b"), clock)
        try:
            yield fleet
        finally:
            fleet.close()


def lie_about(incoming: Incoming, chance: Random) -> tuple[str, Incoming] | None:
    """Another message of the closed set, made of this one, after its type's name.

    Where it names an update its id fits, so that the lie is not found out by that.
    """
    topic = parse(incoming.topic)
    decode = decode_from_coordinator if topic.channel in TO_DEVICE else decode_from_device
    for _ in range(MOST_TRIES):
        payload = mutation.msgpack_or_torn(incoming.payload, chance)
        with suppress(MalformedMessageError):
            message = decode(payload)
            if isinstance(message, UpdateReady) and topic.device is not None:
                named = (message.task, message.round, message.base_version, message.update.digest)
                message = msgspec.structs.replace(message, update_id=update_id(topic.device, *named))
                payload = encode(message)
            if payload != incoming.payload:
                return type(message).__name__, Incoming(incoming.topic, payload)
    return None


def tell(fleet: SteppedFleet, incoming: Incoming) -> None:
    topic: Topic = parse(incoming.topic)
    if topic.channel not in TO_DEVICE:
        fleet.service.hear(incoming)
        return
    for name, device in fleet.devices.items():
        if topic.device in {None, name}:
            device.hear(incoming)


def play(seed: int, lies: Counter[str]) -> None:
    """Rounds in which devices and the coordinator also say what is made of their messages: ``lies``, by type."""
    chance = Random(seed)
    with fleet_of_two() as fleet:
        for _ in range(TURNS):
            turn = chance.random()
            if fleet.wire.flying and turn < 0.3:
                incoming = chance.choice(fleet.wire.flying)
                lie = lie_about(incoming, chance)
                if lie is not None:
                    lies[lie[0]] += 1
                    tell(fleet, lie[1])
            elif fleet.wire.flying and turn < 0.8:
                fleet.carry(0)
            elif turn < 0.9:
                for device in fleet.devices.values():
                    device.finish()
            else:
                fleet.let_time_pass(chance.choice((0.5, 2.0, 10.0)))


def has_ended(seed: int, lies: Counter[str]) -> bool:
    """Whether one of the lies ends who hears it; how is printed."""
    try:
        play(seed, lies)
    except Exception:  # noqa: BLE001 - whatever it is, it is counted
        print(f"--seed {seed}\n{traceback.format_exc()}")
        return True
    return False


def test_neither_side_ends_by_what_the_other_says(proof: Proof) -> None:
    lies = Counter[str]()
    ended = sum([has_ended(seed, lies) for seed in proof.seeds(short=3, full=300)])
    print(dict(lies))
    often = {"Chunk", "ChunkRequest"}
    assert (often | {"Hello", "Ready", "Offer"} if proof.is_full else often) <= {*lies}  # a few seeds may miss a type
    proof.show("S6", f"messages of {lies.total()} that ended a coordinator or an agent", ended, at_most=0)


def test_message_that_is_not_looked_at_before_it_is_used_ends_the_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: names of blobs that are let through unchecked, as a line feed at their end once was."""
    monkeypatch.setattr("coordinator.service.decode_from_device", unchecked)
    payload = msgspec.msgpack.encode({"type": "chunk-request", "digest": "0" * 64 + "\n", "ranges": []})
    said = Incoming(str(Topic("default", "a", Channel.UP)), payload)
    with fleet_of_two() as fleet, pytest.raises(MalformedMessageError, match="is not a SHA-256"):
        fleet.service.hear(said)


def unchecked(payload: bytes) -> object:
    said = msgspec.msgpack.decode(payload)
    return ChunkRequest(digest=said["digest"], ranges=())
