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


@contextmanager
def postgres_server() -> Iterator[str]:
    """The address of its database; skips with the reason where there is no PostgreSQL, or nobody to run it as.

    It writes no file for good: nothing of a test needs to survive a loss of power.
    """
    programs, user = _programs(), _user()
    folder = Path(tempfile.mkdtemp(prefix="raffm-pg-"))  # short: a socket's path has at most 107 bytes
    try:
        if user:
            shutil.chown(folder, _OWNER, _OWNER)
        data = str(folder / "data")
        made = ("--pgdata", data, "--auth=trust", f"--username={_OWNER}", "--no-sync", "--encoding=UTF8", "--locale=C")
        subprocess.run([programs / "initdb", *made], check=True, capture_output=True, **user)
        with (folder / "log").open("wb") as log:
            settings = ("-D", data, "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off")
            server = subprocess.Popen([programs / "postgres", *settings], stdout=log, stderr=log, **user)
        try:
            _wait(folder, server)
            yield f"postgresql://{_OWNER}@/{_OWNER}?host={folder}"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait()
    finally:
        shutil.rmtree(folder)


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
