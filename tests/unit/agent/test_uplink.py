"""What comes down a device's link and is none of its business, and a link on which nobody answers."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edge_sdk.agent.uplink import Uplink
from edge_sdk.config import AgentConfig
from edge_sdk.protocol.messages import Announce, Ready, Snapshot, Wait, encode
from edge_sdk.transport.base import Incoming
from edge_sdk.transport.memory import MemoryHub, MemoryTransport

READY = Ready(
    snapshot=Snapshot(
        memory_total_bytes=4,
        memory_available_bytes=3,
        training_memory_bytes=2,
        inference_memory_bytes=1,
        threads=1,
    )
)


@pytest.fixture
def uplink(tmp_path: Path) -> Uplink:
    config = AgentConfig(device="pi", broker="mqtt://127.0.0.1", state_dir=tmp_path)
    return Uplink(config, MemoryTransport(MemoryHub(), ()), lambda _: None)


@pytest.mark.parametrize("topic", ["raffm/1/default/pi/down", "raffm/1/default/pi/chunk/down"])
def test_message_to_this_device_is_read(uplink: Uplink, topic: str) -> None:
    assert uplink.read(Incoming(topic, encode(Wait(retry_after_s=1)))) == Wait(retry_after_s=1)
    assert uplink.read(Incoming("raffm/1/default/announce", encode(Announce(session=1)))) == Announce(session=1)


@pytest.mark.parametrize(
    "topic",
    ["raffm/1/default/pi-2/down", "raffm/1/other/announce", "raffm/1/default/pi/up", "RAFFM/1/default/pi/down", "x"],
)
def test_message_on_another_topic_is_dropped(uplink: Uplink, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    assert uplink.read(Incoming(topic, encode(Wait(retry_after_s=1)))) is None
    assert f"dropped a message on {topic}" in caplog.text


def test_empty_payload_is_no_message_and_nothing_to_talk_about(
    uplink: Uplink, caplog: pytest.LogCaptureFixture
) -> None:
    assert uplink.read(Incoming("raffm/1/default/announce", b"")) is None
    assert caplog.text == ""


def test_device_that_nobody_answers_says_so_once(uplink: Uplink, caplog: pytest.LogCaptureFixture) -> None:
    """A fleet's name is misspelt, or the broker grants a subscription and delivers nothing, as mosquitto does."""
    caplog.set_level(logging.WARNING)
    for _ in range(5):
        uplink.ask(READY, is_heard=False)
    uplink.ask(READY, is_heard=True)
    for _ in range(5):
        uplink.ask(READY, is_heard=False)
    assert caplog.text == ""
    for _ in range(20):
        uplink.ask(READY, is_heard=False)
    assert caplog.text.count("no coordinator of fleet default answers pi") == 1
    assert "raffm/1/default/pi/down" in caplog.text
