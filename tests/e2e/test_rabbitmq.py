"""The main job over RabbitMQ, which speaks MQTT 3.1.1 alone, hangs up on MQTT 5, and retains little."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.store.states import AssignmentStatus, Phase
from edge_sdk.transport.address import MqttVersion
from edge_sdk.transport.base import LinkUp
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.rabbitmq import rabbitmq_broker
from tests.support.small_fleet import SmallFleet

pytestmark = pytest.mark.long


def test_fleet_on_rabbitmq_trains_and_gets_its_release_also_where_the_coordinator_is_killed(
    tmp_path: Path, small_model: Path, template_cache: dict[str, str]
) -> None:
    with (
        rabbitmq_broker() as broker,
        SmallFleet(tmp_path, small_model, str(broker.address), template_cache) as fleet,
    ):
        with closing(MqttTransport(broker.address, "probe", ("a/b",))) as link:
            link.connect()
            assert link.receive(5) == LinkUp()
            assert link.spoken is MqttVersion.V311
        fleet.create_task("news", "--rounds", "2", "--min-devices", "2")
        fleet.serve()
        for device in ("a", "b"):
            fleet.agent(device, 400)
        fleet.wait_until(lambda: fleet.read(lambda tx: tx.rounds.collecting("news")), "an open round")
        fleet.kill("coordinator", signal.SIGKILL)
        fleet.serve()
        fleet.finish()

        rounds = fleet.read(lambda tx: tx.rounds.all("news"))
        assert [known.phase for known in rounds] == [Phase.CLOSED] * 2
        for number in (1, 2):
            assert len(fleet.read(lambda tx, n=number: tx.updates.accepted("news", n))) == 2
        assert fleet.read(lambda tx: tx.assignments.tally("news")) == {AssignmentStatus.HEALTHY: 2}, fleet.story()
