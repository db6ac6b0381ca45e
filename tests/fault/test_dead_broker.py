"""A broker that is killed, keeps nothing, and has acknowledged what it loses: nobody depends on it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.service import mqtt_transport
from coordinator.store.states import Phase
from edge_sdk.protocol.messages import Offer
from edge_sdk.transport import mqtt
from edge_sdk.transport.base import Will
from edge_sdk.transport.mqtt import MqttTransport
from tests.support import light_model
from tests.support.broker import Mosquitto, mosquitto_broker
from tests.support.light_model import light_models, light_task
from tests.support.proof import Proof
from tests.support.served import Served, quick
from tests.support.simulator import Fleet, Work, small_update

pytestmark = pytest.mark.mosquitto
DEVICES = ("a", "b", "c")
KILLS_A_ROUND = 2
_HURRY_S = (0.05, 0.2), (0.5, 1.0)
_PATIENCE_S = 60.0


@pytest.fixture
def broker() -> Iterator[Mosquitto]:
    with mosquitto_broker() as running:
        yield running


@pytest.fixture
def hasty_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links come back within a second of their broker; an update is of 2 MB, so that its upload takes a while."""
    first_s, last_s = _HURRY_S
    monkeypatch.setattr(mqtt, "_RECONNECT_FIRST_S", first_s)
    monkeypatch.setattr(mqtt, "_RECONNECT_LAST_S", last_s)
    monkeypatch.setattr(light_model, "ARCHITECTURE", replace(light_model.ARCHITECTURE, ffn=4096))


def served(folder: Path, broker: Mosquitto, rounds: int) -> Served:
    config = quick(folder, str(broker.address), exit_when_done=False)  # who lost a receipt asks for it
    task = light_task(folder, rounds=rounds, min_devices=len(DEVICES))
    return Served(config, task, mqtt_transport(config))


def fleet_on(broker: Mosquitto, work: Work = small_update, *, resends: bool = True) -> Fleet:
    def link(name: str, filters: Sequence[str], will: Will) -> MqttTransport:
        return MqttTransport(broker.address, name, filters, will=will)

    return Fleet(DEVICES, link, work=work, resends=resends)


def kill_in_mid_upload(
    coordinator: Served, fleet: Fleet, broker: Mosquitto, drawn: random.Random, within_s: float
) -> int:
    """Kill and restart the broker soon after an update was announced; how many updates were on their way."""
    coordinator.wait_until(lambda: not fleet.is_settled or coordinator.status.value == "done")
    time.sleep(drawn.uniform(0, within_s))
    on_their_way = sum(bool(device.outbox) for device in fleet.devices.values())
    broker.kill()
    time.sleep(drawn.uniform(0, 0.3))
    broker.restart()
    return on_their_way


@pytest.mark.usefixtures("hasty_links")
@pytest.mark.timeout(900)
def test_no_update_is_lost_with_the_broker(tmp_path: Path, broker: Mosquitto, proof: Proof) -> None:
    kills, drawn = proof.count(short=2, full=50), random.Random(proof.seed)
    rounds = kills // KILLS_A_ROUND
    with light_models(), served(tmp_path, broker, rounds) as coordinator, fleet_on(broker) as fleet:
        within_s = (0.15 * (number > 0) for number in range(kills))  # the first kill is sure to hit
        hit = sum(kill_in_mid_upload(coordinator, fleet, broker, drawn, span_s) for span_s in within_s)
        coordinator.wait_until(lambda: len(coordinator.decided) == rounds and fleet.is_settled, _PATIENCE_S + kills)
        decided, accepted = coordinator.decided, {update.update_id for update in coordinator.accepted}
        receipts = {identity for device in fleet.devices.values() for identity in device.settled}
        waiting = [update for device in fleet.devices.values() for update in device.outbox]
    assert [known.phase for known in decided] == [Phase.CLOSED] * rounds
    assert hit, "no kill came while an update was on its way: this shows nothing"
    made = len(DEVICES) * rounds
    proof.show(
        "R2", f"updates lost in {kills} kills of the broker, {hit} on their way", made - len(accepted), at_most=0
    )
    proof.show("R2", "updates without a receipt", len(accepted - receipts) + len(waiting), at_most=0)


@pytest.mark.parametrize("resends", [True, False])
@pytest.mark.usefixtures("hasty_links")
def test_update_that_the_broker_acknowledged_and_lost_comes_out_of_the_outbox(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, *, resends: bool
) -> None:
    """The control is a device without an outbox: its update is announced while the coordinator is away, and is gone."""
    killed, done = threading.Event(), threading.Event()

    def work(device: str, offer: Offer, weights: bytes) -> bytes:
        if device == "a":
            killed.set()
            done.wait(_PATIENCE_S)
        return small_update(device, offer, weights)

    fleet = fleet_on(broker, work, resends=resends)
    for name in ("_RECONNECT_FIRST_S", "_RECONNECT_LAST_S"):  # the coordinator comes back last
        monkeypatch.setattr(mqtt, name, (1.5, 1.6))
    with light_models(), served(tmp_path, broker, rounds=1) as coordinator, fleet:
        killed.wait(_PATIENCE_S)
        broker.kill()
        broker.restart()
        time.sleep(0.7)
        done.set()
        assert comes_from("a", coordinator, patience_s=_PATIENCE_S if resends else 4.0) == resends


def comes_from(device: str, coordinator: Served, patience_s: float) -> bool:
    """Whether an update does."""
    give_up_s = time.monotonic() + patience_s
    while time.monotonic() < give_up_s:
        if device in {update.device for update in coordinator.accepted}:
            return True
        time.sleep(0.05)
    return False
