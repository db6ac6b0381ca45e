"""What a stranger may hold of the API's process: so much memory for a request, and a connection for so long.

The framework reads a request to its end before it looks at the token, and the server waits for as long as a client
takes. So a body has a limit, and a connection ends where no whole request has come within ``PATIENCE_S``, or an answer
is not read. Where there are more connections than ``MOST_CONNECTIONS``, or than half of the files
that the process may open, a new one ends the one that has waited longest, so that whoever comes is heard.
"""

from __future__ import annotations

import asyncio
import resource

from fastapi import HTTPException, status
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_BODY_BYTES = 1 << 20
"""Of a request: several times the largest manifest or task."""
MOST_CONNECTIONS = 1000
PATIENCE_S, READING_S = 30.0, 600.0
"""For a request to come, and for the end of an answer to be read."""
_MOST_FILES = 65536


class BodyLimit:
    """An app that reads no more than ``MOST_BODY_BYTES`` of any request: else it answers 413."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting what is read of it."""
        left_bytes = MOST_BODY_BYTES

        async def counted() -> Message:
            nonlocal left_bytes
            message = await receive()
            left_bytes -= len(message.get("body", b""))
            if left_bytes < 0:
                detail = f"a request has at most {MOST_BODY_BYTES} bytes: send less"
                raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, detail)
            return message

        await self._app(scope, counted, send)


class Connection(H11Protocol):
    """One connection, which is ended where nothing comes of it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait, in the place of whoever has waited longest where there are too many."""
        super().connection_made(transport)
        self._wait()
        known = [it for it in self.connections if isinstance(it, Connection) and not it.transport.is_closing()]
        if len(known) > _most_connections():
            min((it for it in known if not it.is_answered), key=lambda it: it.since_s).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for what is left of the answer to be read, and for the next request."""
        super().on_response_complete()
        self._timer.cancel()
        self._wait()

    @property
    def is_answered(self) -> bool:
        """Whether a whole request has come, whose answer is being made."""
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


def raise_file_limit() -> None:
    """As far as the system lets this process: a connection is a file, also one that has not got through TLS yet."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MOST_CONNECTIONS, files // 2) if files != resource.RLIM_INFINITY else MOST_CONNECTIONS
