"""A database server that is away for a while, as in a restart or an upgrade, is waited for where a transaction begins.

Nothing of a transaction has been said to the server by then, so to begin again can lose nothing and count nothing
twice. One that had begun and broke is not begun again: what it did before is gone, but its caller may have acted on
what it read, and where the connection broke in the commit nobody knows whether that holds. It raises, and who asked
decides: a program asks the API again, and a coordinator ends and finds at its next start what the store has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Lock

from edge_sdk.errors import StoreAwayError

_log = logging.getLogger(__name__)
SERVING_PATIENCE_S = 60.0
"""How long a serving coordinator waits for its database: a restart, or a minor upgrade."""
ASKING_PATIENCE_S = 2.0
"""How long a request of the API waits: its thread is one of a few, and who asked can ask again."""
_PAUSE_S = 0.1


class Outage:
    """From when ``answers`` says no until somebody begins a transaction again; all threads of a process share one.

    It lasts ``patience_s`` at most for whoever waits, from when the first of them noticed; ``name`` is the store's.
    """

    def __init__(self, name: str, patience_s: float, answers: Callable[[], bool]) -> None:
        self._name = name
        self._patience_s = patience_s
        self._answers = answers
        self._since_s: float | None = None
        self._lock = Lock()
        self._is_ending = False  # no Event: its lock is not for signal handlers

    def waited(self, why: str) -> bool:
        """Wait until the server answers; whether that took any time.

        Raises ``StoreAwayError`` where it does not in time, or after :meth:`wait_no_more`.
        """
        if self._answers():
            return False
        if self._patience_s == 0.0:
            raise StoreAwayError(f"store {self._name} does not answer: {why}")
        since_s = self._begin(why)
        while time.monotonic() - since_s < self._patience_s and not self._is_ending:
            time.sleep(_PAUSE_S)
            if self._answers():
                return True
        away_s = time.monotonic() - since_s
        raise StoreAwayError(f"store {self._name} has not answered for {away_s:.0f} s ({why}): check its server")

    def over(self) -> None:
        """A transaction has begun."""
        if self._since_s is None:
            return
        with self._lock:
            since_s, self._since_s = self._since_s, None
        if since_s is not None:
            _log.info("store %s answers again, after %.1f s", self._name, time.monotonic() - since_s)

    def wait_no_more(self) -> None:
        """Whoever waits is told at once; may be called from a signal handler."""
        self._is_ending = True

    def _begin(self, why: str) -> float:
        with self._lock:
            if self._since_s is None:
                self._since_s = time.monotonic()
                _log.warning(
                    "store %s does not answer (%s): waiting for up to %.0f s", self._name, why, self._patience_s
                )
            return self._since_s
