"""The state of a serving coordinator, which its loop notes twice a second for whoever asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Vitals:
    """The state at ``at_s``, in seconds since the epoch.

    ``received`` and ``sent`` count messages by type; ``received_bytes`` and ``sent_bytes`` count the chunks of blobs.
    ``transfers`` is the number of blobs being fetched or waiting for their turn, ``unread`` that of messages waiting
    for the loop. ``work`` is the number of heavy jobs that run beside the loop or wait, and ``refused`` that of the
    jobs that wait for space on the disk.
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
