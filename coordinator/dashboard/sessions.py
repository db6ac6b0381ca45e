"""The sessions of logged-in visitors: each lasts at most 12 hours, and ends with its token or with this process."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from threading import Lock

LASTS_S = 12 * 3600.0
MAX_SESSIONS = 1000


class Sessions:
    """Session ids of 256 random bits, each with the digest of the token that opened it.

    When there are ``MAX_SESSIONS``, a new session ends the oldest.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._open: dict[str, tuple[str, float]] = {}

    def open(self, token_digest: str) -> str:
        """Open a session and return its id, which alone gives access to it."""
        session = secrets.token_urlsafe(32)
        with self._lock:
            if len(self._open) >= MAX_SESSIONS:
                del self._open[next(iter(self._open))]
            self._open[session] = (token_digest, self._clock() + LASTS_S)
        return session

    def token_digest(self, session: str) -> str | None:
        """The digest of the token that opened a session; ``None`` if the session has ended or never existed."""
        with self._lock:
            digest, ends_s = self._open.get(session, (None, 0.0))
            return digest if self._clock() < ends_s else None

    def close(self, session: str) -> None:
        """End a session; idempotent."""
        with self._lock:
            self._open.pop(session, None)
