"""A coordinator that runs for long: its memory, its open files and its folder do not grow with the rounds behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from edge_sdk.transport.address import BrokerAddress
from edge_sdk.transport.base import Will
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import mosquitto_broker
from tests.support.light_model import light_task
from tests.support.proof import Proof
from tests.support.served import LEAK, ServedApart, quick
from tests.support.simulator import Fleet, MakeLink

pytestmark = pytest.mark.mosquitto
MIB = 1 << 20


class Sample(NamedTuple):
    """A coordinator after so many rounds."""

    rounds: int
    memory_bytes: int
    open_files: int
    blob_bytes: int
    store_bytes: int


@dataclass
class Watched:
    """Samples of one run, and what they say."""

    warm_up: int
    samples: list[Sample] = field(default_factory=list)

    def look(self, coordinator: ServedApart, rounds: int) -> None:
        state, process = coordinator.config.state_dir, coordinator.memory
        blobs, store = _sizes(coordinator.config.blob_dir.glob("*")), _sizes(state.glob("*.sqlite"))
        memory_bytes, files = process.memory_info().rss, process.num_fds()
        self.samples.append(Sample(rounds, memory_bytes, files, sum(blobs), sum(store)))

    @property
    def warm(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.rounds >= self.warm_up]

    @property
    def memory_mib_a_round(self) -> float:
        rounds, memory = zip(*((sample.rounds, sample.memory_bytes / MIB) for sample in self.warm), strict=True)
        return float(np.polyfit(rounds, memory, 1)[0])

    def growth(self, what: str) -> int:
        """Of the least that is held at a time, from the first to the last third: transfers come and go."""
        figures = [getattr(sample, what) for sample in self.warm]
        third = len(figures) // 3
        return int(min(figures[-third:]) - min(figures[:third]))


def _sizes(files: Iterable[Path]) -> Iterator[int]:
    """In bytes, of files that come and go."""
    for path in files:
        with suppress(FileNotFoundError):
            yield path.stat().st_size


def watch(folder: Path, devices: int, rounds: int, warm_up: int) -> Watched:
    """A coordinator of its own process, looked at all the time: what it holds at least is told by the quiet moments."""
    watched = Watched(warm_up)
    names = [f"device-{number}" for number in range(devices)]
    with mosquitto_broker() as broker:
        task = light_task(folder, rounds=rounds, min_devices=devices, quorum=devices)
        config = quick(folder, str(broker.address))
        with ServedApart(config, task) as coordinator, Fleet(names, _links(broker.address)):
            for number in range(1, rounds):
                coordinator.wait_until(lambda n=number: watched.look(coordinator, n) or coordinator.has_decided(n))
            coordinator.wait_for_end()
    return watched


def _links(address: BrokerAddress) -> MakeLink:
    def link(name: str, filters: Sequence[str], will: Will) -> MqttTransport:
        return MqttTransport(address, name, filters, will=will)

    return link


@pytest.mark.timeout(2400)
def test_coordinator_does_not_grow_with_its_rounds(memory_path: Path, proof: Proof) -> None:
    devices, rounds, warm_up = (proof.count(*pair) for pair in ((5, 50), (15, 500), (6, 50)))
    watched = watch(memory_path, devices, rounds, warm_up)
    told = f"in {rounds} rounds of {devices} devices"
    a_device_bytes = watched.growth("store_bytes") / devices / (2 / 3 * (rounds - warm_up))
    proof.show("R12", f"MiB of memory a round, {told}", watched.memory_mib_a_round, at_most=0.1 if proof.is_full else 1)
    proof.show("R12", f"more open files, {told}", watched.growth("open_files"), at_most=0 if proof.is_full else devices)
    proof.show("R12", f"more bytes of blobs, {told}", watched.growth("blob_bytes"), at_most=0)
    proof.show("R12", "bytes of history in the store for each update", a_device_bytes, at_most=4096)


@pytest.mark.long
def test_coordinator_that_forgets_nothing_is_found_out(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: blobs are not collected, and a MiB is kept at every round."""
    monkeypatch.setenv(LEAK, str(MIB))
    watched = watch(memory_path, devices=2, rounds=9, warm_up=2)
    assert watched.memory_mib_a_round > 0.1
    assert watched.growth("blob_bytes") > 0
