"""What a coordinator does not send."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.service import Service
from edge_sdk.protocol.messages import MAX_MESSAGE_BYTES, Release, encode
from edge_sdk.protocol.topics import device_filters
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.new_store import new_store


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
        assert service._send("pi", message)
        assert not service._send("pi", Release(envelope=half))
    assert (
        f"pi is not sent the release of {len(encode(message))} bytes, at most {MAX_MESSAGE_BYTES} are possible"
        in caplog.text
    )
    assert device.unread() == 1
