"""Limits on what an unauthenticated client can hold of the API's process: memory per request, and time per connection.

The framework reads a whole request before it checks the token, and the server waits as long as a client takes. So the
size of a body is limited, and a connection is closed if no whole request has come within ``PATIENCE_S``, or if an
answer is not read. Beyond ``MAX_CONNECTIONS``, or half of the files that the process may open, a new connection closes
the one that has waited longest, so that a newcomer is always served.
"""

from __future__ import annotations

import asyncio
import resource

from fastapi import HTTPException, status
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_BODY_BYTES = 1 << 20
"""The largest body of a request, 1 MiB: several times the largest manifest or task."""
MAX_CONNECTIONS = 1000
PATIENCE_S, READING_S = 30.0, 600.0
"""How long to wait for a whole request, and for the client to read the end of an answer."""


class BodyLimit:
    """Middleware that reads at most ``MAX_BODY_BYTES`` of a request's body, and answers 413 if there is more."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count the bytes of its body as they are read."""
        left_bytes = MAX_BODY_BYTES

        async def counted() -> Message:
            nonlocal left_bytes
            message = await receive()
            left_bytes -= len(message.get("body", b""))
            if left_bytes < 0:
                detail = f"a request body has at most {MAX_BODY_BYTES} bytes: send less"
                raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, detail)
            return message

        await self._app(scope, counted, send)


class Connection(H11Protocol):
    """One connection, which is ended where nothing comes of it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request; if there are too many connections, close the one that has waited longest."""
        super().connection_made(transport)
        self._wait()
        known = [it for it in self.connections if isinstance(it, Connection) and not it.transport.is_closing()]
        if len(known) > _most_connections():
            min((it for it in known if not it.is_answered), key=lambda it: it.since_s).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the client to read the rest of the answer, and for its next request."""
        super().on_response_complete()
        self._timer.cancel()
        self._wait()

    @property
    def is_answered(self) -> bool:
        """Whether a whole request has come, and its answer is being made."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _wait(self) -> None:
        self.since_s = self.loop.time()
        self._timer = self.loop.call_later(PATIENCE_S, self._end_or_wait, READING_S)

    def _end_or_wait(self, left_s: float) -> None:
        if self.is_answered:
            self._wait()
        elif self.transport.get_write_buffer_size() and left_s > 0:
            self._timer = self.loop.call_later(PATIENCE_S, self._end_or_wait, left_s - PATIENCE_S)
        else:
            self.transport.abort()


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MAX_CONNECTIONS, files // 2) if files != resource.RLIM_INFINITY else MAX_CONNECTIONS
