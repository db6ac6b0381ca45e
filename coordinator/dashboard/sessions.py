"""Who is logged in: for a working day, and no longer than this process lives or the token is good."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from threading import Lock

LASTS_S = 12 * 3600.0
MOST_SESSIONS = 1000


class Sessions:
    """Session ids of 256 random bits, and the digest of the token that each was opened with.

    One session more than ``MOST_SESSIONS`` ends the oldest.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._open: dict[str, tuple[str, float]] = {}

    def open(self, token_digest: str) -> str:
        """A new session; its id is all that opens it."""
        session = secrets.token_urlsafe(32)
        with self._lock:
            if len(self._open) >= MOST_SESSIONS:
                del self._open[next(iter(self._open))]
            self._open[session] = (token_digest, self._clock() + LASTS_S)
        return session

    def token_digest(self, session: str) -> str | None:
        """With which token a session was opened; ``None`` where it is over, or never was."""
        with self._lock:
            digest, ends_s = self._open.get(session, (None, 0.0))
            return digest if self._clock() < ends_s else None

    def close(self, session: str) -> None:
        """The session is over; idempotent."""
        with self._lock:
            self._open.pop(session, None)
