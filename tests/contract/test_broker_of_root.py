"""mosquitto as `broker config` sets it up for root, who hands it to a user that owns next to nothing."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.fleet.mosquitto import write_configuration
from coordinator.store.database import Store
from edge_sdk.errors import ConfigurationError
from edge_sdk.transport.address import BrokerAddress
from tests.support.broker import ConfiguredMosquitto, free_port
from tests.support.new_store import new_store
from tests.support.secured import new_fleet

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away"),
]
USER = "nobody"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """That every user can enter, as those of pytest cannot be."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = new_store(tmp_path)
    yield opened
    opened.close()


def test_mosquitto_starts_as_its_own_user_and_names_its_process(open_folder: Path, store: Store) -> None:
    port = free_port()
    file = write_configuration(store, new_fleet(open_folder, port), USER, "127.0.0.1")
    broker = ConfiguredMosquitto(file, BrokerAddress("127.0.0.1", port, tls=True))
    try:
        assert file.with_name("server.key").owner() == USER
        assert int(file.with_name("mosquitto.pid").read_text()) == broker.process_id
        assert Path(f"/proc/{broker.process_id}").stat().st_uid == pwd.getpwnam(USER).pw_uid
    finally:
        broker.kill()


def test_folder_that_its_user_cannot_enter_is_refused(open_folder: Path, store: Store) -> None:
    (open_folder / "of-root").mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match=r"run as nobody, who cannot enter .*/of-root: use another folder"):
        write_configuration(store, new_fleet(open_folder / "of-root" / "fleet"), USER)
