"""The network link: whether it is metered, and how fast it has been."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass

from edge_sdk.background import Background
from edge_sdk.device.system import System, whole

_ENOUGH_BYTES = 1 << 20
_REMEMBERED_S = 60.0
_UP = frozenset("13579BDFbdf")  # RTF_UP is bit 0, so the last hexadecimal digit of the flags is odd
_WAIT_S = 0.2  # for an answer, at a look of every 0.6 s
_PATIENCE_S = 0.5  # after which an answer that is still missing counts as unknown
_IDLE_EVERY_S = 10.0
_DBUS_METERED = {"1": True, "2": False, "3": True, "4": False}


def is_metered(system: System) -> bool | None:
    """Whether NetworkManager considers the link of the default route metered; ``None`` if it does not say.

    If the owner has not set this, NetworkManager guesses it from the kind of link and from the access point, and that
    counts as an answer. It is asked by its own tool ``nmcli``, else over D-Bus by systemd's ``busctl``.
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
    """The interface of the IPv4 default route with the lowest metric; ``None`` if there is no such route."""
    rows = (line.split() for line in (system.text("proc/net/route") or "").splitlines()[1:])
    defaults = (row for row in rows if len(row) > 7 and row[1] == row[7] == "00000000" and row[3][-1:] in _UP)
    metrics = ((whole(row[6]), row[0]) for row in defaults)
    return min(((metric, name) for metric, name in metrics if metric is not None), default=(0, None))[1]


class LinkCost:
    """Asks :func:`is_metered` on a thread of its own, since its tools may take seconds and a caller cannot wait.

    ``now_s`` is a monotonic clock.
    """

    def __init__(self, system: System, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._system, self._now_s = system, now_s
        self._background = Background("link")
        self._asked_s = float("-inf")
        self._asking: Future[bool | None] | None = None
        self._answer: bool | None = None

    def metered(self, *, working: bool) -> bool | None:
        """The newest answer; asks again at each call while ``working``, else every ten seconds.

        The first call waits for its answer, later ones at most 0.2 s. ``None`` if the system does not say, or if a
        question has been open for half a second: then the answer before it may be outdated.
        """
        wait_s = None if self._asked_s == float("-inf") else _WAIT_S
        if self._asking is None and (working or self._now_s() - self._asked_s >= _IDLE_EVERY_S):
            self._asked_s, self._asking = self._now_s(), self._background.submit(lambda: is_metered(self._system))
        if self._asking is not None:
            wait([self._asking], wait_s)
            if self._asking.done():
                self._answer, self._asking = self._asking.result(), None
        return None if self._asking is not None and self._now_s() - self._asked_s > _PATIENCE_S else self._answer


@dataclass(slots=True)
class LinkSpeed:
    """The rate in bytes a second at which blobs arrive, over the time in which something was being fetched.

    It covers roughly the last minute of such time: beyond a minute, both sums are halved.
    """

    received_bytes: float = 0.0
    waited_s: float = 0.0
    heard_s: float = 0.0

    def begin(self, now_s: float) -> None:
        """Something was requested; the time before does not count."""
        self.heard_s = now_s

    def arrived(self, size_bytes: int, now_s: float) -> None:
        """``size_bytes`` of a blob arrived."""
        self.received_bytes += size_bytes
        self.waited_s += now_s - self.heard_s
        self.heard_s = now_s
        if self.waited_s > _REMEMBERED_S:
            self.received_bytes, self.waited_s = self.received_bytes / 2, self.waited_s / 2

    @property
    def bytes_per_s(self) -> float | None:
        """The rate; ``None`` before the first MiB, which depends on the link's latency more than on its speed."""
        return self.received_bytes / self.waited_s if self.received_bytes >= _ENOUGH_BYTES and self.waited_s else None
