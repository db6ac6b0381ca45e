"""Tracks unacknowledged messages, and limits the bulk among them, so that small messages need not wait long behind it.

Unacknowledged bulk may lie in the kernel's buffers, where nothing can overtake it. So its limit adapts to the link: a
bulk message that is acknowledged within a second raises the limit by its size; one that takes more than four seconds
halves it, down to one message at a time.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

_FIRST_LIMIT_BYTES = 256 * 1024
_MAX_LIMIT_BYTES = 2 << 20
_MAX_MESSAGES = 16  # of the 20 that may be in flight at once: four places stay for small ones
_PROMPT_S = 1.0
_SLOW_S = 4.0


@dataclass(frozen=True, slots=True)
class _Sent:
    size_bytes: int
    bulk: bool
    at_s: float


class Lane:
    """One connection's outgoing messages. :meth:`sent` and :meth:`acknowledged` are called by different threads.

    ``taken_bytes`` is the size of the largest message that the broker has ever acknowledged.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[int, _Sent] = {}
        self._early: set[int] = set()
        self._limit_bytes = _FIRST_LIMIT_BYTES
        self.taken_bytes = 0
        self._is_full = False

    def has_room(self) -> bool:
        """Whether another bulk message may be sent; if not, :meth:`acknowledged` says when that changes."""
        with self._lock:
            self._is_full = not self._fits()
            return not self._is_full

    def sent(self, message_id: int, size_bytes: int, *, bulk: bool) -> None:
        """A message was handed to paho; its acknowledgement may have arrived before this call."""
        with self._lock:
            if message_id in self._early:
                self._early.remove(message_id)
            else:
                self._sent[message_id] = _Sent(size_bytes, bulk, time.monotonic())

    def acknowledged(self, message_id: int) -> bool:
        """The broker acknowledged a message; whether there is room for bulk again after there was none."""
        with self._lock:
            sent = self._sent.pop(message_id, None)
            if sent is None:
                self._early.add(message_id)
            else:
                self._learn_from(sent)
            is_news = self._is_full and self._fits()
            self._is_full = self._is_full and not is_news
            return is_news

    def forget(self) -> None:
        """The connection is lost, and with it everything in flight."""
        with self._lock:
            self._sent.clear()
            self._early.clear()

    def largest_bytes(self) -> int:
        """The size of the largest message in flight; 0 if there is none."""
        with self._lock:
            return max((sent.size_bytes for sent in self._sent.values()), default=0)

    def _fits(self) -> bool:
        bulk = [sent.size_bytes for sent in self._sent.values() if sent.bulk]
        return sum(bulk) < self._limit_bytes and len(bulk) < _MAX_MESSAGES

    def _learn_from(self, sent: _Sent) -> None:
        self.taken_bytes = max(self.taken_bytes, sent.size_bytes)
        if not sent.bulk:
            return
        took_s = time.monotonic() - sent.at_s
        if took_s < _PROMPT_S:
            self._limit_bytes = min(_MAX_LIMIT_BYTES, self._limit_bytes + sent.size_bytes)
        elif took_s > _SLOW_S:
            self._limit_bytes = max(1, self._limit_bytes // 2)
