"""What a task's conductor works with: the service's hands."""

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
    """Run ``work`` beside the loop and hand its result to ``then`` on the loop, or tell ``fail`` of a named error.

    Work that the disk refused is done again until it does not.
    """

    def __call__(self, work: Callable[[], Any], then: Callable[[Any], None], fail: Callable[[str], None]) -> None:
        """Return at once."""


@dataclass(frozen=True, slots=True)
class Resources:
    """``send(device, message)`` publishes, or says that the message is too large to be sent.

    ``fetch(device, digest, size_bytes)`` pulls a blob from a device, ``cancel(digest)`` pulls it no longer. ``sweep()``
    deletes what nobody needs, once nothing is in the making. ``key`` signs in the role ``round``.
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
        """Where compiled templates are kept for the next start."""
        return self.settings.template_cache

    def addressed(self, entries: Iterable[BlobEntry]) -> tuple[BlobEntry, ...]:
        """These blobs with their addresses on the web, where a web server shows them."""
        base = self.settings.blob_url
        if base is None:
            return tuple(entries)
        return tuple(msgspec.structs.replace(entry, address=f"{base.rstrip('/')}/{entry.digest}") for entry in entries)
