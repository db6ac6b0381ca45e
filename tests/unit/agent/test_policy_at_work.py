"""An agent kept to its owner's policy: a real supervisor and training process, a machine whose sensors a test turns."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from edge_sdk.agent.supervisor import Supervisor
from edge_sdk.config import AgentConfig
from edge_sdk.device.machine import Machine
from edge_sdk.device.policy import Policy
from edge_sdk.device.system import System
from edge_sdk.device.watch import STOP_WITHIN_S
from edge_sdk.elastic.submodel import TrainablePart
from edge_sdk.protocol.messages import (
    BlobEntry,
    BlobGone,
    Chunk,
    ChunkRequest,
    Declined,
    Failure,
    Message,
    Offer,
    Part,
    Ready,
    decode_from_device,
    encode,
)
from edge_sdk.protocol.topics import Channel, Topic, coordinator_filters, device_filters
from edge_sdk.training.job import TrainingJob
from edge_sdk.transport.base import Incoming
from edge_sdk.transport.blob_folder import BlobFolder
from edge_sdk.transport.exchange import BlobExchange
from edge_sdk.transport.memory import MemoryHub, MemoryTransport
from tests.support.boards import MIB, modem, write_tool, write_tree
from tests.support.logistic_graph import LABELS, examples, training_job

ZONE = "sys/class/thermal/thermal_zone0/temp"
PATIENCE_S = 30.0


class OneOffer(threading.Thread):
    """A coordinator that answers the first ``Ready`` with an offer, serves its blobs, and listens.

    It takes ``pause_s`` before it serves what it is asked for.
    """

    def __init__(self, hub: MemoryHub, folder: Path, job: TrainingJob, ballast_bytes: int) -> None:
        super().__init__(name="coordinator", daemon=True)
        self.heard: list[Message] = []
        self.stopping = False
        self.pause_s = 0.0
        self._transport = MemoryTransport(hub, coordinator_filters("default"))
        self._blobs = BlobFolder(folder)
        self._exchange = BlobExchange(self._blobs, lambda _, message: self._say(message))
        self._offer = self._an_offer(job, ballast_bytes)
        self._transport.connect()

    def run(self) -> None:
        while not self.stopping:
            delivery = self._transport.receive(0.05)
            if isinstance(delivery, Incoming):
                message = decode_from_device(delivery.payload)
                if isinstance(message, ChunkRequest | Chunk | BlobGone):
                    time.sleep(self.pause_s)
                    self._exchange.handle("device", message, time.monotonic())
                    continue
                if isinstance(message, Ready):
                    self._say(self._offer)
                self.heard.append(message)

    def of(self, kind: type) -> list[Message]:
        return [message for message in self.heard if isinstance(message, kind)]

    @property
    def served_bytes(self) -> int:
        return self._exchange.sent_bytes["device"]

    def _say(self, message: Message) -> None:
        channel = Channel.CHUNK_DOWN if isinstance(message, Chunk) else Channel.DOWN
        self._transport.publish(str(Topic("default", "pi", channel)), encode(message))

    def _an_offer(self, job: TrainingJob, ballast_bytes: int) -> Offer:
        files = {
            Part.WEIGHTS: job.weights,
            Part.FROZEN: job.frozen,
            Part.TRAINING_GRAPH: job.graph,
            Part.TOKENIZER: job.tokenizer,
        }
        blobs = {part: Path(path).read_bytes() for part, path in files.items()}
        if ballast_bytes:
            blobs[Part.MOMENTS] = random.Random(0).randbytes(ballast_bytes)
        entries = (
            BlobEntry(part=part, digest=self._blobs.put_bytes(data), size_bytes=len(data))
            for part, data in blobs.items()
        )
        return Offer(
            task="t",
            round=1,
            base_version="d" * 64,
            architecture=job.architecture,
            submodel=job.submodel,
            part=TrainablePart.NO_EMBEDDINGS,
            labels=LABELS,
            recipe=msgspec.structs.replace(job.recipe, batch_size=1, epochs=1000),  # a quarter of an hour
            deadline_s=600.0,
            predicted_memory_bytes=1,
            manifest=tuple(entries),
        )


@contextmanager
def at_work(folder: Path, policy: Policy, *, ballast_bytes: int = 0) -> Iterator[tuple[Supervisor, OneOffer]]:
    """A supervisor on a machine whose files lie in ``folder/root``, and its coordinator."""
    (folder / "job").mkdir(exist_ok=True)
    hub = MemoryHub()
    coordinator = OneOffer(hub, folder / "served", training_job(folder / "job"), ballast_bytes)
    config = AgentConfig(
        device="pi", broker="mqtt://127.0.0.1", state_dir=folder / "state", policy=policy, ready_interval_s=0.5
    )
    filters = device_filters("default", "pi")
    supervisor = Supervisor(config, examples(40, seed=1), make_transport=lambda *_: MemoryTransport(hub, filters))
    kept = supervisor._outbox.number
    supervisor._machine = Machine(None, policy, config.state_dir, kept=kept, system=System(folder / "root"))
    loop = threading.Thread(target=supervisor.run, name="agent", daemon=True)
    coordinator.start()
    loop.start()
    try:
        yield supervisor, coordinator
    finally:
        supervisor.stop()
        coordinator.stopping = True
        loop.join(10)
        coordinator.join(10)


def wait(holds: Callable[[], object]) -> float:
    """Seconds until it holds."""
    started_s = time.monotonic()
    while not holds():
        assert time.monotonic() - started_s < PATIENCE_S, "it never happened"
        time.sleep(0.01)
    return time.monotonic() - started_s


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def declined(coordinator: OneOffer) -> Declined:
    (message,) = coordinator.of(Declined)
    assert isinstance(message, Declined)
    assert message.failure is Failure.POLICY
    return message


def test_training_ends_within_five_seconds_of_too_much_heat_and_goes_on_once_it_is_cooler(tmp_path: Path) -> None:
    write_tree(tmp_path / "root", {ZONE: "45000"})
    with at_work(tmp_path, Policy(max_temperature_c=75)) as (supervisor, coordinator):
        wait(lambda: supervisor.status.step)
        assert supervisor._training is not None
        pid, stopped_at = supervisor._training.pid, supervisor.status.step or 0
        write_tree(tmp_path / "root", {ZONE: "91000"})
        assert wait(lambda: not is_running(pid)) < STOP_WITHIN_S
        wait(lambda: coordinator.of(Declined))
        assert declined(coordinator).detail == "91 °C, the policy's ceiling is 75 °C"
        said = len(coordinator.of(Ready))
        wait(lambda: "91 °C" in supervisor.status.waiting_for)
        time.sleep(0.7)
        assert len(coordinator.of(Ready)) == said
        write_tree(tmp_path / "root", {ZONE: "50000"})
        wait(lambda: supervisor.status.step)
        assert (supervisor.status.step or 0) > stopped_at, "it goes on from its checkpoint"


def test_fetching_ends_where_the_link_becomes_metered(tmp_path: Path) -> None:
    modem(tmp_path / "root", "no (guessed)")
    with at_work(tmp_path, Policy(unmetered_only=True), ballast_bytes=64 * MIB) as (_, coordinator):
        coordinator.pause_s = 0.1
        wait(lambda: coordinator.served_bytes > MIB)
        modem(tmp_path / "root", "yes")
        assert wait(lambda: coordinator.of(Declined)) < STOP_WITHIN_S
        assert "metered" in declined(coordinator).detail
        time.sleep(0.2)
        served = coordinator.served_bytes
        time.sleep(0.5)
        assert coordinator.served_bytes == served < 64 * MIB


def test_fetching_ends_where_nobody_answers_any_more_what_the_link_costs(tmp_path: Path) -> None:
    modem(tmp_path / "root", "no")
    with at_work(tmp_path, Policy(unmetered_only=True), ballast_bytes=64 * MIB) as (_, coordinator):
        coordinator.pause_s = 0.1
        wait(lambda: coordinator.served_bytes > MIB)
        write_tool(tmp_path / "root", "nmcli", "exec /bin/sleep 60")
        assert wait(lambda: coordinator.of(Declined)) < STOP_WITHIN_S
        assert "the system does not say" in declined(coordinator).detail


def test_byte_budget_ends_fetching_and_holds_after_a_restart(tmp_path: Path) -> None:
    policy = Policy(daily_mib=2)
    with at_work(tmp_path, policy, ballast_bytes=16 * MIB) as (_, coordinator):
        wait(lambda: coordinator.of(Declined))
        assert "MiB moved today, the policy allows 2 MiB" in declined(coordinator).detail
        assert 2 * MIB * 0.9 < coordinator.served_bytes < 4 * MIB, "what is on its way still comes"
    with at_work(tmp_path, policy, ballast_bytes=16 * MIB) as (supervisor, coordinator):
        wait(lambda: "moved today" in supervisor.status.waiting_for)
        assert not coordinator.of(Ready)


def test_energy_budget_ends_training(tmp_path: Path) -> None:
    """At 900 W a watt hour takes four seconds."""
    policy = Policy(daily_energy_wh=1.0, training_watts=900.0)
    with at_work(tmp_path, policy) as (supervisor, coordinator):
        wait(lambda: supervisor.status.step)
        assert wait(lambda: coordinator.of(Declined)) < STOP_WITHIN_S + 4.5
        assert "Wh used today, the policy allows 1 Wh" in declined(coordinator).detail


def test_quiet_hours_ask_for_no_work_at_all_and_say_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with at_work(tmp_path, Policy(quiet_hours=("00:00-24:00",))) as (supervisor, coordinator):
        wait(lambda: "quiet hours" in supervisor.status.waiting_for)
        time.sleep(0.7)
        assert not coordinator.of(Ready)
    (line,) = (line for line in caplog.messages if "asking for no work" in line)
    assert "within the quiet hours 00:00-24:00" in line
