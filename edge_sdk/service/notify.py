"""Tells systemd that the agent is ready (once connected), alive (while its loop runs), and what it is doing.

The protocol is one datagram of ``NAME=value`` lines to the socket in ``$NOTIFY_SOCKET``, see sd_notify(3). Without that
variable, nothing is sent. It is implemented here because ``sdnotify`` has not been maintained since 2017 and
``systemd-python`` has to be compiled.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edge_sdk.agent.decisions import Phase
from edge_sdk.agent.supervisor import AgentStatus

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger(__name__)
_PINGS = 4  # per watchdog interval; systemd recommends two


class Notifier:
    """Notifies the service manager at the socket ``address``, which restarts an agent silent for ``watchdog_s``."""

    def __init__(
        self,
        address: str | None,
        watchdog_s: float | None = None,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address, self._now_s = address, now_s
        self._interval_s = None if watchdog_s is None else watchdog_s / _PINGS
        self._pinged_s = float("-inf")
        self._ready = False
        self._said = ""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """The notifier that a process's ``environment`` asks for."""
        watchdog = environment.get("WATCHDOG_USEC", "")
        return cls(environment.get("NOTIFY_SOCKET") or None, int(watchdog) / 1e6 if watchdog.isdigit() else None)

    def tick(self, status: AgentStatus) -> None:
        """Send what is due: readiness at the first connection, a watchdog ping, and the status if it has changed."""
        lines = []
        if status.connected and not self._ready:
            self._ready = True
            lines.append("READY=1")
        if self._interval_s is not None and self._now_s() - self._pinged_s >= self._interval_s:
            self._pinged_s = self._now_s()
            lines.append("WATCHDOG=1")
        if (said := in_words(status)) != self._said:
            self._said = said
            lines.append(f"STATUS={said}")
        self._send(lines)

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._send(["STOPPING=1", "STATUS=stopping"])

    def _send(self, lines: list[str]) -> None:
        """Send ``lines``; if the service manager does not listen, log it and go on."""
        if self._address is None or not lines:
            return
        name = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto("\n".join(lines).encode(), name)
        except OSError as error:
            _log.warning("the service manager at %s cannot be reached: %s", self._address, error)


def in_words(status: AgentStatus) -> str:
    """What an agent is doing, in one line."""
    if not status.connected:
        return "the connection to the broker is lost; reconnecting"
    if status.task is None:
        return f"not training: {status.waiting_for}" if status.waiting_for else "waiting for work"
    steps = f", step {status.step} of {status.steps}" if status.phase is Phase.TRAINING and status.step else ""
    return f"{status.phase.value}, round {status.round} of {status.task}{steps}"
