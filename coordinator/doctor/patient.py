"""What the doctor examines. It changes nothing there."""

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
    """A state folder, and the broker that its coordinator is to use.

    With ``all_blobs`` every blob is read, otherwise a sample. The broker is asked for a session only with
    ``may_log_in``.
    """

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
    may_log_in: bool = True

    def linked(self) -> Patient:
        """The same, with the broker of the fleet that has an authority here, if no broker is named.

        Then ``may_log_in`` is off: a session under the coordinator's name would end the coordinator's own. Raises
        ``ConfigurationError`` if the fleet's settings cannot be read.
        """
        fleet = None if self.broker is not None else open_fleet(self.state_dir)
        if fleet is None:
            return self
        settings = fleet.settings
        return replace(
            self,
            broker=settings.broker,
            ca_file=fleet.authority_file,
            certificate_file=None if settings.is_open else fleet.coordinator_file,
            allow_plaintext=settings.allow_plaintext,
            may_log_in=False,
        )

    @property
    def blob_dir(self) -> Path:
        """The folder of its blobs."""
        return self.state_dir / "blobs"

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A read transaction on its store, without upgrading the schema.

        Raises ``ConfigurationError`` if there is no store, ``StorageError`` if it cannot be read.
        """
        with closing(look_into(self.state_dir)) as store, store.reading() as tx:
            yield tx
