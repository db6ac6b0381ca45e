"""What `coordinator device list` shows of the devices in a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.fleet.enrolment import make_enrolment
from coordinator.listing import (
    certificate_rows,
    device_rows,
    enrolment_rows,
    fleet_rows,
    round_rows,
    show,
    show_devices,
    version_rows,
)
from coordinator.store.database import Store
from coordinator.store.offers import Offers
from coordinator.store.records import EvaluationRecord, VersionRecord
from coordinator.store.states import AssignmentStatus
from coordinator.store.updates import Updates
from edge_sdk.elastic.runtimes import MIB, Runtime
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.messages import Snapshot
from edge_sdk.security.identity import Identity
from tests.support.filled_store import TASK, fill_state
from tests.support.secured import keep_certificate, new_fleet

SNAPSHOT = Snapshot(
    memory_total_bytes=8192 * MIB,
    memory_available_bytes=6000 * MIB,
    training_memory_bytes=4096 * MIB,
    inference_memory_bytes=1024 * MIB,
    threads=4,
    battery_share=0.824,
    charging=False,
    temperature_c=71.4,
    gflops=1234.567,
    runtime=Runtime.TORCH,
    accelerator="NVIDIA Jetson Orin NX",
    throttled=True,
    link_bytes_per_s=12_345_678.9,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Of a device that has said all of itself, one that could read nothing, and one that has only said hello."""
    opened = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    with opened.transaction() as tx:
        for name, profile in (("greenhouse-west", "raspberry-pi-zero-2-w"), ("new", "pi"), ("silent", "pi")):
            tx.devices.hello(name, profile, 1, 100.0)
        tx.devices.seen("greenhouse-west", 100.0, SNAPSHOT)
        tx.devices.seen(
            "silent",
            100.0,
            Snapshot(
                memory_total_bytes=1,
                memory_available_bytes=1,
                training_memory_bytes=1,
                inference_memory_bytes=1,
                threads=1,
            ),
        )
    yield opened
    opened.close()


def test_device_that_is_revoked_is_shown_as_such(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with store.transaction() as tx:
        tx.devices.revoke("new", 200.0)
    rows = device_rows(store, 86_500.0)
    assert [row["revoked"] for row in rows] == [False, True, False]
    show_devices(rows)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("new")]
    assert "revoked" in line.split()


def test_identities_are_shown_without_their_secrets(store: Store, tmp_path: Path) -> None:
    fleet = new_fleet(tmp_path)
    secret = make_enrolment(store, device="pi-5", group="canary", hours=1, now_s=100.0, who="ann")
    keep_certificate(store, fleet, Identity.of(tmp_path / "pi-6"), "pi-6")
    unused, used = enrolment_rows(store)
    assert (unused["device"], unused["group"], unused["used"]) == ("pi-5", "canary", None)
    assert (used["used_by"], used["device"]) == ("pi-6", "pi-6")
    assert secret not in str(unused)
    (certificate,) = certificate_rows(store, "pi-6")
    assert certificate["revoked"] is None
    with pytest.raises(ConfigurationError, match="there is no device 'pi-7'; `coordinator device list` shows"):
        certificate_rows(store, "pi-7")
    (shown,) = fleet_rows(fleet)
    assert (shown["fleet"], shown["authority"]) == ("default", fleet.authority.fingerprint)


def test_row_of_a_device_says_how_it_does(store: Store) -> None:
    west, new, silent = device_rows(store, 86_500.0)
    told = {
        "runtime": "torch",
        "training_memory_mib": 4096,
        "battery": 0.824,
        "charging": False,
        "temperature_c": 71.4,
        "throttled": True,
        "gflops": 1234.57,
        "accelerator": "NVIDIA Jetson Orin NX",
        "link_kb_per_s": 12345.68,
    }
    assert told.items() <= west.items()
    assert west["group"] == "default"
    assert list(west) == list(new) == list(silent)
    assert {new[name] for name in told} == {None}
    assert (silent["runtime"], silent["temperature_c"], silent["throttled"]) == ("onnx", None, None)


def test_devices_are_shown_whole_in_100_columns(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    show_devices(device_rows(store, 86_500.0))
    shown = capsys.readouterr().out
    west = next(line for line in shown.splitlines() if line.startswith("greenhouse-west"))
    for cell in ("raspberry-pi", "yes", "86400", "torch", "4096", "82%", "71", "1234.6", "12346"):
        assert cell in west, shown
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.count("…") <= 1, shown  # the profile's


def test_what_no_device_can_say_takes_no_room(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what is known, `release` stays: that no device runs one is told by it."""
    monkeypatch.setenv("COLUMNS", "80")
    rows = [row | {"profile": "raspberry-pi-zero-2-w"} for row in device_rows(store, 86_500.0)]
    show_devices([row for row in rows if row["device"] != "greenhouse-west"])
    shown = capsys.readouterr().out
    assert "raspberry-pi-zero-2-w" in shown
    assert "release" in shown
    assert "°C" not in shown


def test_accuracies_are_as_short_wherever_they_are_listed(store: Store) -> None:
    with store.transaction() as tx:
        tx.tasks.add("news", b"{}", 1.0)
        tx.versions.add(VersionRecord("news", 1, "1" * 64, (), 1.0))
        tx.evaluations.put(EvaluationRecord("news", 1, "full", 10, 304 / 333, 1.0, 333))
    assert version_rows(store, "news") == [{"version": 1, "full": 0.9129}]


@pytest.mark.parametrize("columns", ["40", "80", "120"])
def test_words_of_a_table_are_whole_in_any_terminal(
    columns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    fleet = new_fleet(tmp_path)
    show([row | {"of": "two words"} for row in (*fleet_rows(fleet), *fleet_rows(fleet))], as_json=False)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "".join(shown.split()).count(fleet.authority.fingerprint) == 2
    assert max(map(len, shown.splitlines())) <= int(columns)


def test_short_rows_are_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show([{"task": "news", "rounds": 2}, {"task": "motion", "rounds": None}], as_json=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["task", "rounds"],
        ["news", "2"],
        ["motion", "-"],
    ]


def test_rounds_are_counted_by_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 rounds of 1,000 devices a million offers and updates were read, to be counted."""
    filled = fill_state(tmp_path, devices=20, rounds=3)
    with filled.reading() as tx:
        offers = [tx.offers.of_round(TASK, number) for number in (1, 2, 3)]
        updates = [tx.updates.accepted(TASK, number) for number in (1, 2, 3)]
        judged = [{one.width: one.accuracy for one in tx.evaluations.of_round(TASK, number)} for number in (1, 2, 3)]
    for repository in (Offers, Updates):
        monkeypatch.setattr(repository, "_read", lambda *_: pytest.fail("a record is read"))
    rows = round_rows(filled, None)
    filled.close()
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert [row["offers"] for row in rows] == [len(found) for found in offers]
    assert [row["updates"] for row in rows] == [len(found) for found in updates]
    assert [row["uploaded_mib"] for row in rows] == [
        round(sum(one.size_bytes for one in found) / MIB, 2) for found in updates
    ]
    assert [row["full"] for row in rows] == [round(found["full"], 4) if "full" in found else None for found in judged]


def test_release_of_a_device_is_the_one_that_it_runs(tmp_path: Path) -> None:
    """It was the newest that it was to get, also where it went back from that."""
    filled = fill_state(tmp_path, devices=200, rounds=1)
    with filled.reading() as tx:
        status = {known.device: known.status for known in tx.assignments.of_task(TASK)}
    rows = device_rows(filled, 0.0)
    filled.close()
    assert len({*status.values()}) > 1
    assert {row["device"]: row["release"] for row in rows} == {
        str(row["device"]): 1 if status.get(str(row["device"])) is AssignmentStatus.HEALTHY else None for row in rows
    }


def test_no_device_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    show_devices([])
    assert capsys.readouterr().out == "nothing yet\n"
