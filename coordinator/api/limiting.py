"""Rate limits: how often a client may ask, and how often it may guess a token. Their memory is bounded.

A client is an IPv4 address, or the /64 network of an IPv6 address, which usually belongs to one customer. Each has a
bucket that holds a minute's worth and refills as time passes: the generic cell rate algorithm (ITU-T I.371), which
stores one number per client. Beyond a maximal number of clients, further ones share one bucket, so that many addresses
are no way around a limit.

A wrong secret counts against its sender and against the secret itself. When either has used up its guesses, no secret
is checked, not even a right one, until a guess is available again.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from fastapi import HTTPException, Request, status
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.fleet.secret import digest_of
from edge_sdk.errors import ConfigurationError

_log = logging.getLogger(__name__)
_MINUTE_S = 60.0
_MOST = 10_000
_SWEEP_S = 1.0
_CROWD = "everybody else"
_CLIENT_PREFIX = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits per minute: requests of one client or with one token, and wrong secrets; 0 means no limit.

    Raises ``ConfigurationError`` for a negative limit.
    """

    requests_per_minute: int = 1200
    failures_per_minute: int = 10

    def __post_init__(self) -> None:
        if self.requests_per_minute < 0 or self.failures_per_minute < 0:
            raise ConfigurationError(f"a limit per minute cannot be negative: {self}; 0 means no limit")


class Limiter:
    """Allows ``per_minute`` events for each name; 0 is no limit. At most ``most`` names have their own buckets."""

    def __init__(self, per_minute: int, most: int = _MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = _MINUTE_S / per_minute if per_minute else 0.0
        self._most, self._clock, self._lock = most, clock, Lock()
        self._full_at_s: dict[str, float] = {}
        self._swept_s = -math.inf

    def __len__(self) -> int:
        return len(self._full_at_s)

    def wait_s(self, name: str) -> float:
        """Seconds until one more is allowed; 0 if it is now."""
        with self._lock:
            now_s = self._clock()
            full_at_s = self._full_at_s.get(self._known(name, now_s), now_s)
            return max(0.0, full_at_s - now_s - (_MINUTE_S - self._interval_s)) if self._interval_s else 0.0

    def count(self, name: str) -> None:
        """Count one more."""
        if not self._interval_s:
            return
        with self._lock:
            now_s = self._clock()
            known = self._known(name, now_s)
            self._full_at_s[known] = max(now_s, self._full_at_s.get(known, now_s)) + self._interval_s

    def take_s(self, name: str) -> float:
        """Count one more and return 0 if it is allowed; otherwise return the seconds to wait."""
        waiting_s = self.wait_s(name)
        if not waiting_s:
            self.count(name)
        return waiting_s

    def _known(self, name: str, now_s: float) -> str:
        """``name``, or the shared bucket's if there is no space; names whose buckets are full again are forgotten."""
        if name in self._full_at_s or len(self._full_at_s) < self._most:
            return name
        if now_s >= self._swept_s + _SWEEP_S:
            self._swept_s = now_s
            self._full_at_s = {other: at_s for other, at_s in self._full_at_s.items() if at_s > now_s}
        return name if len(self._full_at_s) < self._most else _CROWD


class Guard:
    """Decides who has to wait, for one API together with its dashboard."""

    def __init__(self, limits: Limits) -> None:
        self._requests = Limiter(limits.requests_per_minute)
        self._failures = Limiter(limits.failures_per_minute)

    def came(self, client: str) -> float:
        """Count a request; returns the seconds that its sender has to wait, 0 if it may be served."""
        return self._requests.take_s(f"from {client}")

    def require_guess(self, request: Request, secret: str) -> None:
        """Answer 429 if this sender, or this secret, has been wrong too often."""
        _require(max(map(self._failures.wait_s, _names(request, secret))), "too many wrong tokens")

    def missed(self, request: Request, secret: str) -> None:
        """Count a wrong secret."""
        for name in _names(request, secret):
            self._failures.count(name)
        _log.warning("%s sent a token that is unknown, revoked or expired", client_of(request.scope))

    def require_rate(self, request: Request, token: str) -> None:
        """Answer 429 if the token with this name is used too often, from anywhere; counts each request once."""
        if not getattr(request.state, "is_counted", False):
            request.state.is_counted = True
            _require(self._requests.take_s(f"token {token}"), f"too many requests with token {token!r}")


class Throttle:
    """Outermost middleware of an app: tells a client that asks too often to wait."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 429."""
        waiting_s = self._guard.came(client_of(scope)) if scope["type"] == "http" else 0.0
        if not waiting_s:
            await self._app(scope, receive, send)
            return
        error = _too_many(waiting_s, "too many requests")
        answer = JSONResponse({"error": error.detail}, error.status_code, error.headers)
        await answer(scope, receive, send)


def client_of(scope: Scope) -> str:
    """The client that a request counts against: its IPv4 address or IPv6 /64 network."""
    host = (scope.get("client") or ("unknown",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if address.version == 4:
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(address), _CLIENT_PREFIX), strict=False))


def _names(request: Request, secret: str) -> tuple[str, str]:
    return f"from {client_of(request.scope)}", f"with {digest_of(secret)}"


def _require(waiting_s: float, what: str) -> None:
    if waiting_s:
        raise _too_many(waiting_s, what)


def _too_many(waiting_s: float, what: str) -> HTTPException:
    seconds = math.ceil(waiting_s)
    detail = f"{what}: try again in {seconds} s"
    return HTTPException(status.HTTP_429_TOO_MANY_REQUESTS, detail, {"Retry-After": str(seconds)})
