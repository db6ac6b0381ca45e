"""What `coordinator device list` shows of the devices in a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.listing import device_rows, show_devices
from coordinator.store.database import Store
from edge_sdk.elastic.runtimes import MIB, Runtime
from edge_sdk.protocol.messages import Snapshot

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


def test_no_device_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    show_devices([])
    assert capsys.readouterr().out == "nothing yet\n"
