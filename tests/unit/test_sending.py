"""What a coordinator does not send, and what it does not hear."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.fleet.revocation import revoke_device
from coordinator.rounds.candidates import Candidate
from coordinator.service import Service
from edge_sdk.protocol.messages import MAX_MESSAGE_BYTES, Hello, Offline, Ready, Release, encode
from edge_sdk.protocol.topics import device_filters
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.new_store import new_store
from tests.support.simulator import able_device


def test_message_that_every_receiver_would_drop_is_named_and_not_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub = MemoryHub()
    own, device = (MemoryTransport(hub, filters) for filters in ((), device_filters("default", "pi")))
    for transport in (own, device):
        transport.connect()
        transport.receive(0)
    half = bytes(MAX_MESSAGE_BYTES // 2)
    message = Release(envelope=half, manifest=half)
    with closing(new_store(tmp_path)) as store:
        service = Service(CoordinatorConfig(state_dir=tmp_path, broker=""), store, own)
        assert not service._send("pi", message)
        assert service._send("pi", Release(envelope=half))
    assert (
        f"pi is not sent the release of {len(encode(message))} bytes, at most {MAX_MESSAGE_BYTES} are possible"
        in caplog.text
    )
    assert device.unread() == 1


def test_device_that_a_command_has_just_revoked_does_not_come_online_again(tmp_path: Path) -> None:
    """Nothing took it offline any more, and the next rollout of its task waited for it for good."""
    with closing(new_store(tmp_path)) as store:
        service = Service(CoordinatorConfig(state_dir=tmp_path, broker=""), store, MemoryTransport(MemoryHub(), ()))
        hello = Hello(device="pi", session=1, profile="board", agent_version="1")
        for message in (hello, Ready(snapshot=able_device())):
            service._dispatch("pi", message)
        revoke_device(store, "pi", 1.0, "a test")
        for message in (hello, Ready(snapshot=able_device())):
            service._dispatch("pi", message)
        with store.reading() as tx:
            assert tx.devices.online() == frozenset()


def test_device_that_goes_offline_while_it_waits_for_work_is_not_asked(tmp_path: Path) -> None:
    """Rounds opened with devices that were known to be gone, came to nothing, and five of them failed a task."""
    with closing(new_store(tmp_path)) as store:
        service = Service(CoordinatorConfig(state_dir=tmp_path, broker=""), store, MemoryTransport(MemoryHub(), ()))
        waiting = service._agenda._candidates
        for session in (1, 2):
            service._dispatch("pi", Hello(device="pi", session=session, profile="board", agent_version="1"))
        waiting.ask("pi", Candidate(0.0, able_device(), frozenset({"news"})))
        service._dispatch("pi", Offline(device="pi", session=1))
        assert waiting.of("news").keys() == {"pi"}, "the last will of an earlier session"
        service._dispatch("pi", Offline(device="pi", session=2))
        assert waiting.of("news") == {}
