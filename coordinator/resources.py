"""What a task's conductor uses of the service."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.config import CoordinatorConfig
from coordinator.store.database import Store
from edge_sdk.protocol.messages import BlobEntry, CoordinatorMessage
from edge_sdk.transport.blob_folder import BlobFolder


class Submit(Protocol):
    """Run ``work`` beside the loop, then call ``then`` with its result, or ``fail`` with an error in one line.

    Both are called on the loop. Work that fails because the disk refuses is repeated until it succeeds.
    """

    def __call__(self, work: Callable[[], Any], then: Callable[[Any], None], fail: Callable[[str], None]) -> None:
        """Queue the work and return at once."""


@dataclass(frozen=True, slots=True)
class Resources:
    """The service's functions, for the conductors of tasks.

    ``send(device, message)`` publishes a message; it returns ``False`` if that is too large to be sent.
    ``fetch(device, digest, size_bytes)`` pulls a blob from a device, and ``cancel(digest)`` stops that. ``sweep()``
    deletes blobs that nothing needs, as soon as no heavy work is running. ``key`` signs in the role ``round``.
    """

    settings: CoordinatorConfig
    store: Store
    blobs: BlobFolder
    key: Ed25519PrivateKey
    send: Callable[[str, CoordinatorMessage], bool]
    fetch: Callable[[str, str, int], None]
    cancel: Callable[[str], None]
    submit: Submit
    sweep: Callable[[], None]

    @property
    def template_cache(self) -> Path:
        """The folder where compiled templates are kept for the next start."""
        return self.settings.template_cache

    def addressed(self, entries: Iterable[BlobEntry]) -> tuple[BlobEntry, ...]:
        """These blobs with their HTTPS addresses, if a web server offers them."""
        base = self.settings.blob_url
        if base is None:
            return tuple(entries)
        return tuple(msgspec.structs.replace(entry, address=f"{base.rstrip('/')}/{entry.digest}") for entry in entries)
