"""A round of more updates than a process may have files open at first: 1,024, as Linux has it."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from coordinator import cli
from coordinator.aggregation.coverage import UpdateSource
from edge_sdk.elastic.slicing import Region
from edge_sdk.errors import BrokerUnreachableError, StorageError
from edge_sdk.protocol.tensors import write_tensors
from tests.support.plain_mean import aggregate

BASE = {"bias": np.zeros(4, np.float32)}
FEW = 100


@pytest.fixture(autouse=True)
def few_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(cli, "log_to_stderr", lambda *_: None)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_coordinator_aggregates_a_round_of_more_updates_than_it_could_open(tmp_path: Path) -> None:
    """It tried again every 15 s, for good, and said that blobs cannot be read."""
    path = tmp_path / "update"
    with path.open("wb") as file:
        write_tensors(file, {"bias": np.ones(4, np.float32)})
    slices = {"bias": Region(((range(4),),))}
    updates = [UpdateSource(f"{number:04}", 1.0, slices, path) for number in range(2 * FEW)]
    with pytest.raises(StorageError, match="Too many open files"):
        aggregate(BASE, updates, floor=0.0)
    words = ["serve", "--broker", "mqtt://127.0.0.1:1", "--state-dir", str(tmp_path / "state")]
    assert isinstance(CliRunner().invoke(cli.app, words).exception, BrokerUnreachableError)
    assert aggregate(BASE, updates, floor=0.0)["bias"].tolist() == [1.0] * 4
