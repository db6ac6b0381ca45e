"""Calls that take seconds, one after the other, on a daemon thread: a caller that cannot wait gets a future.

An executor's threads would not do inside an application: it takes no more calls once the main thread has ended, though
other threads of the application go on and need the agent, and then holds up the exit until the last call has returned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from threading import Lock, Thread
from types import TracebackType
from typing import Any, TypeVar

_T = TypeVar("_T")


class Background:
    """Runs calls in order, one at a time, on a thread called ``name``, which is there only while there are calls."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = Lock()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._thread: Thread | None = None

    def submit(self, call: Callable[[], _T]) -> Future[_T]:
        """Have ``call`` run; its outcome."""
        future: Future[_T] = Future()
        with self._lock:
            self._waiting.append((future, call))
            if self._thread is None:
                self._thread = Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        return future

    def close(self) -> None:
        """Wait for the call that is running, and cancel those that have not begun."""
        with self._lock:
            thread = self._thread
            for future, _ in self._waiting:
                future.cancel()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while (following := self._next()) is not None:
            future, call = following
            if future.set_running_or_notify_cancel():
                with ExitStack() as ending:
                    ending.push(partial(_note_failure, future))
                    future.set_result(call())

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._thread = None
            return None


def _note_failure(
    future: Future[Any], _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
) -> bool:
    """Keep the error for whoever asks ``future`` for its result."""
    if error is not None:
        future.set_exception(error)
    return error is not None
