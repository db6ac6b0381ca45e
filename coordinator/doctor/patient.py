"""Whom the doctor examines, without changing anything there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from coordinator.fleet.folder import open_fleet
from coordinator.store.database import Transaction
from coordinator.store.opening import look_into
from edge_sdk.transport.address import MqttVersion


@dataclass(frozen=True, slots=True)
class Patient:
    """A state folder, and the broker that its coordinator is to use; ``all_blobs`` reads every one, not a sample."""

    state_dir: Path
    broker: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    allow_plaintext: bool = False
    mqtt_version: MqttVersion = MqttVersion.ANY
    all_blobs: bool = False

    def linked(self) -> Patient:
        """With the broker of a fleet that has an authority, where none is named. Raises ``ConfigurationError``."""
        fleet = None if self.broker is not None else open_fleet(self.state_dir)
        if fleet is None:
            return self
        broker, authority, own = fleet.settings.broker, fleet.authority_file, fleet.coordinator_file
        return replace(self, broker=broker, ca_file=authority, certificate_file=own)

    @property
    def blob_dir(self) -> Path:
        """Where its blobs lie."""
        return self.state_dir / "blobs"

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Its store, of the newest schema. Raises ``ConfigurationError`` where there is none, and ``StorageError``."""
        with closing(look_into(self.state_dir)) as store, store.reading() as tx:
            yield tx
