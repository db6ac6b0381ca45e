"""How a serving coordinator is: what its loop notes of itself twice a second, for whoever asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Vitals:
    """At ``at_s`` on the wall clock. Messages are counted by their type, and blobs in the bytes of their chunks.

    ``transfers`` are fetched or wait for their turn, ``unread`` messages wait for the loop, ``work`` is heavy and runs
    beside it or waits, and ``refused`` of it waits for the disk.
    """

    at_s: float = 0.0
    is_connected: bool = False
    received: Mapping[str, int] = field(default_factory=dict)
    sent: Mapping[str, int] = field(default_factory=dict)
    received_bytes: int = 0
    sent_bytes: int = 0
    transfers: int = 0
    unread: int = 0
    work: int = 0
    refused: int = 0
