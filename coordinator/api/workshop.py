"""Runs heavy work for the API, one job at a time, each in a process of its own, so that memory is bounded.

A file that a job makes is deleted before it is sent from its open handle, so that nothing of it remains, however the
sending ends.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import msgspec
from fastapi import HTTPException, status
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from coordinator.api.jobs import MADE, Answer, Job
from edge_sdk.disk import disk_errors
from edge_sdk.errors import ConfigurationError, RaffmError

TAR = "application/x-tar"
_PIECE_BYTES = 1 << 20
_TRY_AGAIN_S = 30
_PREFIX = ".work-"
_ABANDONED_S = 86400.0
_answers = msgspec.json.Decoder(Answer)


class Workshop:
    """The heavy work of one API."""

    def __init__(self) -> None:
        self._is_busy = False

    async def perform(self, job: Job) -> bytes:
        """Do ``job`` and return its result as JSON. Answers 409 while another job runs; raises what ``job`` raises."""
        if self._is_busy:
            detail = "another heavy job is running: try again later"
            raise HTTPException(status.HTTP_409_CONFLICT, detail, {"Retry-After": str(_TRY_AGAIN_S)})
        self._is_busy = True
        try:
            return await _done(job)
        finally:
            self._is_busy = False

    async def make(self, state_dir: Path, job_in: Callable[[str], Job]) -> tuple[bytes, IO[bytes]]:
        """Do a job that makes a file; returns its result as JSON, and the open file, which is gone once closed."""
        await run_in_threadpool(_clear_up, state_dir)
        with disk_errors(state_dir), TemporaryDirectory(dir=state_dir, prefix=_PREFIX) as folder:
            result = await self.perform(job_in(folder))
            return result, (Path(folder) / MADE).open("rb")


def _clear_up(state_dir: Path) -> None:
    """Delete what jobs made whose machine lost its power: nothing else leaves it behind."""
    for left_over in state_dir.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):
            if time.time() - left_over.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left_over, ignore_errors=True)


def sent(file: IO[bytes], name: str) -> StreamingResponse:
    """A response that streams ``file`` in pieces and closes it at the end."""
    headers = {
        "Content-Length": str(os.fstat(file.fileno()).st_size),
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
    }
    return StreamingResponse(_pieces(file), media_type=TAR, headers=headers)


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while piece := await run_in_threadpool(file.read, _PIECE_BYTES):
            yield piece


async def _done(job: Job) -> bytes:
    command = (sys.executable, "-m", "coordinator.api.jobs")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a process without its pipes")
        with suppress(BrokenPipeError, ConnectionResetError):  # then its exit code tells more
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            await process.stdin.drain()
        said = await process.stdout.read()
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not said:
        raise RaffmError(f"the job ended with exit code {code} and no message: see the API's log")
    answer = _answers.decode(said)
    if answer.error is not None:
        raise (ConfigurationError if answer.is_asked_wrong else RaffmError)(answer.error)
    return bytes(answer.result)
