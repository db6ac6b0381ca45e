"""Metrics of a serving coordinator's process, over HTTP on the loopback interface only, without a token."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from coordinator.metrics.families import counter, gauge
from coordinator.metrics.vitals import Vitals
from edge_sdk.errors import PortInUseError

_HOST = "127.0.0.1"


@contextmanager
def showing(vitals: Callable[[], Vitals], port: int) -> Iterator[None]:
    """Serve the metrics at ``http://127.0.0.1:<port>/metrics`` until the context is left.

    Raises ``PortInUseError`` if the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(VitalsCollector(vitals))
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, _HOST, registry)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        where = f"{_HOST}:{port}"
        raise PortInUseError(
            f"{where} is in use: stop the process that listens there, or choose another --metrics-port"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class VitalsCollector(Collector):
    """Collects the metrics of one coordinator."""

    def __init__(self, vitals: Callable[[], Vitals]) -> None:
        self._vitals = vitals

    def collect(self) -> Iterator[Metric]:
        """The figures that the coordinator's loop noted last."""
        now = self._vitals()
        yield gauge("raffm_last_tick_timestamp_seconds", "When the loop noted this.", {(): now.at_s})
        yield gauge("raffm_broker_connected", "Whether the link to the broker is up.", {(): now.is_connected})
        yield counter("raffm_messages_received_total", "Messages of devices.", _by_type(now.received), "type")
        yield counter(
            "raffm_messages_sent_total", "Messages to devices, handed to the link.", _by_type(now.sent), "type"
        )
        yield counter("raffm_blob_received_bytes_total", "Of blobs from devices.", {(): now.received_bytes})
        yield counter("raffm_blob_sent_bytes_total", "Of blobs to devices.", {(): now.sent_bytes})
        yield gauge("raffm_transfers_in_flight", "Blobs that are fetched or wait for their turn.", {(): now.transfers})
        yield gauge("raffm_unread_messages", "Messages that wait for the loop.", {(): now.unread})
        yield gauge("raffm_pending_work", "Preparing, aggregating, releasing: running or waiting.", {(): now.work})
        yield gauge("raffm_work_refused_by_disk", "Work that is tried again once the disk allows.", {(): now.refused})


def _by_type(counts: Mapping[str, int]) -> dict[tuple[str], int]:
    return {(kind,): count for kind, count in counts.items()}
