"""The outbox: a message survives everything until it is resolved, and is due with growing pauses."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edge_sdk.errors import DiskFullError, StorageError
from edge_sdk.storage.outbox import Outbox

WRITER = """
import sys, time
from pathlib import Path
from edge_sdk.storage.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]), first_pause_s=2, max_pause_s=60)
outbox.put("update-1", bytes(range(256)))
outbox.put("update-2", b"second")
outbox.resolve("update-2")
outbox.set_number("session", 7)
print("written", flush=True)
time.sleep(600)
"""


def open_outbox(path: Path) -> Outbox:
    return Outbox(path, first_pause_s=2.0, max_pause_s=10.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outbox.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    outbox = open_outbox(path)
    yield outbox
    outbox.close()


def test_message_of_a_killed_process_is_there_after_it(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "written\n"
        finally:
            writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    survivor = open_outbox(path)
    assert survivor.pending() == [("update-1", bytes(range(256)))]
    assert survivor.due(-5.0) == [("update-1", bytes(range(256)))], "whatever the clock says"
    assert survivor.number("session") == 7
    survivor.close()


def test_same_key_again_changes_nothing(outbox: Outbox) -> None:
    outbox.put("a", b"first")
    outbox.due(0)
    outbox.put("a", b"second")
    assert outbox.pending() == [("a", b"first")]
    assert outbox.due(0) == []


def test_messages_are_due_oldest_first(outbox: Outbox) -> None:
    for key in ("c", "a", "b"):
        outbox.put(key, key.encode())
    outbox.resolve("a")
    outbox.put("a", b"a")
    assert [key for key, _ in outbox.due(0)] == ["c", "b", "a"]


def test_pauses_double_up_to_the_longest(outbox: Outbox) -> None:
    outbox.put("a", b"")
    now_s, pauses_s = 50.0, []
    for _ in range(5):
        assert len(outbox.due(now_s)) == 1
        pauses_s.append(outbox._due_s["a"] - now_s)
        assert outbox.due(now_s + pauses_s[-1] - 0.1) == []
        now_s += pauses_s[-1]
    assert pauses_s == [2, 4, 8, 10, 10]


def test_message_unanswered_for_days_still_pauses_no_longer_than_the_longest(outbox: Outbox) -> None:
    outbox.put("a", b"")
    for attempt in range(5000):
        assert len(outbox.due(10.0 * attempt)) == 1
    assert outbox.due(49_999.9) == []
    assert len(outbox.due(50_000.0)) == 1


def test_attempts_write_nothing(outbox: Outbox) -> None:
    """So they go on where the disk is full, or has become read-only, and wear out no memory card."""
    outbox.put("a", b"")
    outbox._run("PRAGMA query_only = ON")
    for now_s in (0.0, 2.0, 6.0):
        assert len(outbox.due(now_s)) == 1
    outbox.hurry()
    assert len(outbox.due(6.0)) == 1


def test_hurry_makes_all_due_and_pauses_short_again(outbox: Outbox) -> None:
    outbox.put("a", b"")
    for now_s in (1000.0, 1002.0, 1006.0):
        assert len(outbox.due(now_s)) == 1
    outbox.hurry()
    assert len(outbox.due(0)) == 1
    assert len(outbox.due(2.0)) == 1


def test_message_that_is_put_again_after_its_receipt_is_due_at_once(outbox: Outbox) -> None:
    for _ in range(2):
        outbox.put("a", b"")
        assert len(outbox.due(5.0)) == 1
        outbox.resolve("a")


def test_resolved_message_is_gone_once(outbox: Outbox) -> None:
    outbox.put("a", b"")
    assert outbox.resolve("a")
    assert not outbox.resolve("a")
    assert outbox.pending() == []
    assert outbox.due(1e9) == []


def test_number_is_kept_over_a_restart(path: Path) -> None:
    first = open_outbox(path)
    assert first.number("release") is None
    first.set_number("release", 3)
    first.set_number("release", 4)
    first.close()
    second = open_outbox(path)
    assert second.number("release") == 4
    second.close()


def test_numbers_set_together_are_kept_over_a_restart(path: Path) -> None:
    first = open_outbox(path)
    first.set_numbers({"day_bytes": 7.0, "battery_wh": 1.5})
    first.set_numbers({"day_bytes": 8.0})
    first.close()
    second = open_outbox(path)
    assert (second.number("day_bytes"), second.number("battery_wh")) == (8.0, 1.5)
    second.close()


def test_full_disk_says_so_and_keeps_what_was_there(outbox: Outbox, path: Path) -> None:
    outbox.put("kept", b"small")
    pages = outbox._run("PRAGMA page_count")[0][0]
    outbox._run(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFullError, match=f"no space left for {path}: free some"):
        outbox.put("large", bytes(1 << 20))
    assert outbox.pending() == [("kept", b"small")]


def test_read_only_file_is_a_storage_error_and_not_a_full_disk(outbox: Outbox, path: Path) -> None:
    outbox._run("PRAGMA query_only = ON")
    with pytest.raises(StorageError, match=f"outbox {path} cannot be used: .*readonly") as raised:
        outbox.put("a", b"")
    assert not isinstance(raised.value, DiskFullError)


@pytest.mark.parametrize(
    ("code", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False), (errno.EROFS, False)]
)
def test_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, full: bool
) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="carefully") as raised:
        open_outbox(tmp_path / "carefully" / "outbox.db")
    assert isinstance(raised.value, DiskFullError) is full


def test_word_full_in_a_path_is_not_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file where the folder should be", encoding="ascii")
    with pytest.raises(StorageError) as raised:
        open_outbox(tmp_path / "full" / "outbox.db")
    assert not isinstance(raised.value, DiskFullError)


def test_closed_outbox_refuses_and_closes_again(path: Path) -> None:
    outbox = open_outbox(path)
    outbox.close()
    outbox.close()
    with pytest.raises(StorageError, match="cannot be used"):
        outbox.put("a", b"")


@pytest.mark.parametrize("where", [slice(0, 100), slice(4096, 8192), slice(3 * 4096, 5 * 4096)])
def test_damaged_file_is_set_aside_and_another_begins(
    path: Path, caplog: pytest.LogCaptureFixture, where: slice
) -> None:
    for _ in range(2):  # the second time it replaces what was set aside before
        with closing(open_outbox(path)) as outbox:
            for number in range(50):
                outbox.put(str(number), bytes(500))
        damaged = bytearray(path.read_bytes())
        damaged[where] = b"\xa5" * len(damaged[where])
        path.write_bytes(damaged)
        caplog.clear()
        with closing(open_outbox(path)) as outbox:
            assert not outbox.pending()
            outbox.set_number("session", 7)
        assert "is damaged" in caplog.text
        assert f"was set aside as {path.name}.damaged" in caplog.text
        assert path.with_name(f"{path.name}.damaged").read_bytes() == damaged
        with closing(open_outbox(path)) as outbox:
            assert outbox.number("session") == 7


def test_file_that_is_damaged_while_it_is_used_says_what_to_do(path: Path) -> None:
    with closing(open_outbox(path)) as outbox:
        for number in range(30):  # more than SQLite keeps in memory
            outbox.put(str(number), bytes(200_000))
    with closing(open_outbox(path)) as outbox:
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * 6_000_000)
        with pytest.raises(StorageError, match="malformed; start the agent again, which sets it aside"):
            outbox.pending()
