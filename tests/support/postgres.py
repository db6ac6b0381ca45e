"""A real PostgreSQL server of a test's own: in a temporary folder, on a socket there, gone with the test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

_PATIENCE_S = 30.0
_OWNER = "postgres"


class PostgresServer:
    """It writes no file for good: nothing of a test needs to survive a loss of power."""

    def __init__(self, folder: Path) -> None:
        self.address = f"postgresql://{_OWNER}@/{_OWNER}?host={folder}"
        self._folder, self._data, self._user = folder, str(folder / "data"), _user()
        if self._user:
            shutil.chown(folder, _OWNER, _OWNER)
        made = ("--auth=trust", f"--username={_OWNER}", "--no-sync", "--encoding=UTF8", "--locale=C")
        initdb = (_programs() / "initdb", "--pgdata", self._data, *made)
        subprocess.run(initdb, check=True, capture_output=True, **self._user)
        self.start()

    def start(self) -> None:
        """It takes connections by then."""
        with (self._folder / "log").open("wb") as log:
            settings = ("-D", self._data, "-k", str(self._folder), "-c", "listen_addresses=", "-c", "fsync=off")
            program = _programs() / "postgres"
            self._process = subprocess.Popen([program, *settings], stdout=log, stderr=log, **self._user)
        _wait(self._folder, self._process)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """As a restart ends it: no connection survives."""
        self._process.send_signal(how)
        self._process.wait()


@contextmanager
def restartable_postgres() -> Iterator[PostgresServer]:
    """A server; skips with the reason where there is no PostgreSQL, or nobody to run it as."""
    _programs(), _user()
    folder = Path(tempfile.mkdtemp(prefix="raffm-pg-"))  # short: a socket's path has at most 107 bytes
    try:
        server = PostgresServer(folder)
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder)


@contextmanager
def postgres_server() -> Iterator[str]:
    """The address of the database of a :func:`restartable_postgres`."""
    with restartable_postgres() as server:
        yield server.address


def emptied(address: str) -> str:
    """The same database with nothing in it."""
    import psycopg
    from sqlalchemy import make_url

    url = make_url(address)
    with psycopg.connect(host=str(url.query["host"]), user=url.username, dbname=url.database) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return address


@cache
def _programs() -> Path:
    """Where the server's programs are; Debian puts them beside the path, a folder a version."""
    found = shutil.which("initdb") or next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))[-1:]), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    return Path(found).parent


def _user() -> Mapping[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    with suppress(KeyError):
        owner = pwd.getpwnam(_OWNER)
        return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    pytest.skip(f"PostgreSQL does not run as root, and there is no user {_OWNER!r} to run it as")


def _wait(folder: Path, server: subprocess.Popen[bytes]) -> None:
    give_up_s = time.monotonic() + _PATIENCE_S
    while not (folder / ".s.PGSQL.5432").exists() or b"ready to accept" not in (folder / "log").read_bytes():
        assert server.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < give_up_s, (folder / "log").read_text()
        time.sleep(0.02)
