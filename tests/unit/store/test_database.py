"""What a store on disk does: survive, be read beside its writer, and refuse in one line."""

import re
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coordinator.store.database import Store
from edge_sdk.errors import DiskFullError, StorageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def address(path: Path) -> str:
    return f"sqlite:///{path}"


def test_store_opened_again_has_what_was_committed(path: Path) -> None:
    store = Store(address(path))
    with store.transaction() as tx:
        tx.tasks.add("news", b"config", 1.0)
    store.close()
    again = Store(address(path))
    with again.reading() as tx:
        assert tx.tasks.get("news").config == b"config"
    again.close()


def test_committed_transaction_survives_a_killed_process(path: Path) -> None:
    program = f"""
import os
from coordinator.store.database import Store
store = Store({address(path)!r})
with store.transaction() as tx:
    tx.tasks.add("committed", b"", 1.0)
with store.transaction() as tx:
    tx.tasks.add("open", b"", 1.0)
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    store = Store(address(path))
    with store.reading() as tx:
        assert [task.name for task in tx.tasks.all()] == ["committed"]
    store.close()


def test_store_that_another_process_is_making_is_waited_for(path: Path) -> None:
    """SQLite itself waits for no one who writes when it is to begin a write-ahead log."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.3, other.close)
    done.start()
    Store(address(path)).close()
    done.join()


def test_stores_that_threads_make_at_once_are_all_made(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(lambda number: Store(address(tmp_path / f"{number}.sqlite")), range(16)))
    for store in stores:
        with store.reading() as tx:
            assert tx.tasks.all() == ()
        store.close()


def test_store_is_durable_and_guarded(path: Path) -> None:
    store = Store(address(path))
    with store._engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    store.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_reader_sees_the_last_commit_while_a_writer_works(path: Path) -> None:
    writer, reader = Store(address(path)), Store(address(path))
    with writer.transaction() as tx:
        tx.tasks.add("first", b"", 1.0)
    with writer.transaction() as tx:
        tx.tasks.add("second", b"", 2.0)
        with reader.reading() as other:
            assert [task.name for task in other.tasks.all()] == ["first"]
    with reader.reading() as other:
        assert len(other.tasks.all()) == 2
    writer.close()
    reader.close()


def test_reading_never_writes(path: Path) -> None:
    store = Store(address(path))
    with sqlite3.connect(path) as other:
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        with store.reading() as tx:  # a writer holds the lock, so waiting for it would take the whole timeout
            assert tx.tasks.all() == ()
        other.execute("ROLLBACK")
    other.close()
    store.close()


def test_store_of_a_newer_coordinator_is_refused(path: Path) -> None:
    Store(address(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '99'")
    connection.close()
    with pytest.raises(StorageError, match=r"version 99.*update the coordinator"):
        Store(address(path))


def test_full_disk_is_named_and_leaves_the_store_usable(path: Path) -> None:
    store = Store(address(path))
    with store._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFullError, match=r"free some space") as caught, store.transaction() as tx:
        tx.tasks.add("large", bytes(100_000), 1.0)
    assert "\n" not in str(caught.value)
    with store.reading() as tx:
        assert tx.tasks.all() == ()
    store.close()


def test_value_that_is_not_of_its_type_is_a_storage_error(path: Path) -> None:
    store = Store(address(path))
    with store.transaction() as tx:
        tx.devices.hello("pi-4", "board", 1, 1.0)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE devices SET snapshot = '{}'")
    connection.close()
    with pytest.raises(StorageError, match="cannot be read"), store.reading() as tx:
        tx.devices.all()
    store.close()


def test_damaged_store_whose_words_are_no_text_is_one_line(path: Path) -> None:
    """SQLite quotes what it cannot read, and Python cannot decode that."""
    Store(address(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    whole = path.read_bytes()
    named, made = b"tabletaskstasks", b"CREATE TABLE tasks ("
    assert (whole.count(named), whole.count(made)) == (1, 1)
    path.write_bytes(whole.replace(named, b"tablet\xa0skstasks").replace(made, b"CREATE TABXE tasks ("))
    with pytest.raises(StorageError, match=re.escape(str(path))) as caught:
        Store(address(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"this is no database" * 100])
def test_store_that_cannot_be_opened_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "missing" / "store.sqlite"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    with pytest.raises(StorageError, match=re.escape(str(path))) as caught:
        Store(address(path))
    assert "\n" not in str(caught.value)
