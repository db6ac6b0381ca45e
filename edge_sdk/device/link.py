"""The link: whether its bytes cost money, and how fast it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from edge_sdk.device.system import System, whole

_ENOUGH_BYTES = 1 << 20
_REMEMBERED_S = 60.0
_UP = frozenset("13579BDFbdf")  # the last digit of flags in hexadecimal
_WAIT_S = 0.2
_PATIENCE_S = 0.5
_IDLE_EVERY_S = 10.0
_DBUS_METERED = {"1": True, "2": False, "3": True, "4": False}


def is_metered(system: System) -> bool | None:
    """Whether NetworkManager counts the link of the default route as metered; ``None`` where nobody says so.

    Where its owner has not said, NetworkManager infers it from the kind of link and from what the access point says,
    which counts as an answer. Asked by its own tool, else over D-Bus by systemd's.
    """
    interface = default_interface(system)
    if interface is not None:
        said = system.output("nmcli", "-t", "-f", "GENERAL.METERED", "device", "show", interface) or ""
        word = said.partition(":")[2].split(" ")[0]
        if word in {"yes", "no"}:
            return word == "yes"
    name = "org.freedesktop.NetworkManager"
    answer = system.output("busctl", "get-property", name, f"/{name.replace('.', '/')}", name, "Metered") or ""
    return _DBUS_METERED.get(answer.removeprefix("u "))


def default_interface(system: System) -> str | None:
    """The interface of the IPv4 default route with the least metric."""
    rows = (line.split() for line in (system.text("proc/net/route") or "").splitlines()[1:])
    defaults = (row for row in rows if len(row) > 7 and row[1] == row[7] == "00000000" and row[3][-1:] in _UP)
    metrics = ((whole(row[6]), row[0]) for row in defaults)
    return min(((metric, name) for metric, name in metrics if metric is not None), default=(0, None))[1]


class LinkCost:
    """:func:`is_metered` asked on a thread of its own: its tools may take seconds, and a look may not.

    ``now_s`` is a monotonic clock.
    """

    def __init__(self, system: System, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._system, self._now_s = system, now_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="link")
        self._asked_s = float("-inf")
        self._asking: Future[bool | None] | None = None
        self._answer: bool | None = None

    def metered(self, *, working: bool) -> bool | None:
        """The last answer; asks again at each call while ``working``, else every ten seconds.

        Waits 0.2 s at most, but for the first answer. ``None`` where nobody says so, and where a question has been open
        for half a second: the answer before it may hold no more.
        """
        wait_s = None if self._asked_s == float("-inf") else _WAIT_S
        if self._asking is None and (working or self._now_s() - self._asked_s >= _IDLE_EVERY_S):
            self._asked_s, self._asking = self._now_s(), self._thread.submit(is_metered, self._system)
        if self._asking is not None:
            wait([self._asking], wait_s)
            if self._asking.done():
                self._answer, self._asking = self._asking.result(), None
        return None if self._asking is not None and self._now_s() - self._asked_s > _PATIENCE_S else self._answer


@dataclass(slots=True)
class LinkSpeed:
    """Bytes a second from the coordinator, over the time in which something was being fetched.

    Of the last minute of such time, roughly: beyond it, half of what is remembered is forgotten.
    """

    received_bytes: float = 0.0
    waited_s: float = 0.0
    heard_s: float = 0.0

    def begin(self, now_s: float) -> None:
        """Something was asked for; what came before does not count as waiting."""
        self.heard_s = now_s

    def arrived(self, size_bytes: int, now_s: float) -> None:
        """A chunk came."""
        self.received_bytes += size_bytes
        self.waited_s += now_s - self.heard_s
        self.heard_s = now_s
        if self.waited_s > _REMEMBERED_S:
            self.received_bytes, self.waited_s = self.received_bytes / 2, self.waited_s / 2

    @property
    def bytes_per_s(self) -> float | None:
        """``None`` before a MiB has come: less tells of delay, not of speed."""
        return self.received_bytes / self.waited_s if self.received_bytes >= _ENOUGH_BYTES and self.waited_s else None
