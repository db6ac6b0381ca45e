"""Where a coordinator says that its blobs may be had on the web."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.resources import Resources
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import BlobEntry, Part

CONFIG = CoordinatorConfig(state_dir=Path(), broker="mqtt://127.0.0.1")
ENTRIES = (BlobEntry(part=Part.WEIGHTS, digest="a" * 64, size_bytes=1),)


@pytest.mark.parametrize("base", ["https://blobs.example/fleet", "https://blobs.example/fleet/", "http://127.0.0.1:80"])
def test_blobs_lie_under_the_address_by_digest(base: str) -> None:
    settings = dataclasses.replace(CONFIG, blob_url=base)
    [entry] = Resources.addressed(SimpleNamespace(settings=settings), ENTRIES)
    assert entry.address == f"{base.rstrip('/')}/{'a' * 64}"


def test_blobs_without_a_web_server_have_no_address() -> None:
    assert Resources.addressed(SimpleNamespace(settings=CONFIG), ENTRIES) == ENTRIES


@pytest.mark.parametrize("base", ["http://blobs.example", "ftp://blobs.example", "blobs"])
def test_address_that_devices_would_not_use_is_refused_at_once(base: str) -> None:
    with pytest.raises(ConfigurationError, match="use https://"):
        dataclasses.replace(CONFIG, blob_url=base)
