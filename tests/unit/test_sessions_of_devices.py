"""What a device says of itself where it is set up anew under its old name, and where an error ends its agent."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.config import AgentConfig
from edge_sdk.errors import StorageError
from edge_sdk.protocol.messages import Hello, Offline, decode_from_device
from edge_sdk.protocol.topics import coordinator_filters
from edge_sdk.transport.base import LinkUp, Transport
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.new_store import new_store


def sessions(state_dir: Path, starts: int) -> list[int]:
    """Of so many starts of an agent, one after the other."""
    found = list[int]()

    def transport(_: AgentConfig, session: int) -> Transport:
        found.append(session)
        return MemoryTransport(MemoryHub(), ())

    config = AgentConfig(device="pi", broker="mqtt://127.0.0.1", state_dir=state_dir)
    for _ in range(starts):
        Supervisor(config, (), make_transport=transport).close()
    return found


def test_last_will_of_a_device_whose_state_is_lost_is_heard(tmp_path: Path) -> None:
    """Its card is written anew: were its sessions counted from one again, it would be taken for online when it dies."""
    before, after = sessions(tmp_path / "card", 3), sessions(tmp_path / "new card", 2)
    assert before == [before[0], before[0] + 1, before[0] + 2]
    store = new_store(tmp_path)
    with store.transaction() as tx:
        for session in (*before, *after):
            tx.devices.hello("pi", "measured", session, time.time())
        assert tx.devices.offline("pi", after[-1])
    store.close()


def test_agent_that_an_error_ends_says_goodbye(tmp_path: Path) -> None:
    """It closes its link, so the broker does not publish its will: the fleet would show it as online for ever."""
    hub = MemoryHub()
    link = MemoryTransport(hub, coordinator_filters("default"))
    link.connect()
    supervisor = Supervisor(
        AgentConfig(device="pi", broker="mqtt://127.0.0.1", state_dir=tmp_path),
        (),
        make_transport=lambda *_: MemoryTransport(hub, ()),
        on_tick=lambda _: supervisor._outbox.close(),
    )
    with pytest.raises(StorageError, match="cannot be used"):
        supervisor.run()
    said = [decode_from_device(found.payload) for found in iter(lambda: link.receive(0), None) if found != LinkUp()]
    assert [type(message) for message in said] == [Hello, Offline]
