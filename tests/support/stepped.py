"""A coordinator and agents that move when told: what they say waits on a wire until it is delivered, dropped or copied.

The service, its store, the supervisor, its outbox and its cache are the real ones. Played are the link, the clock, and
training, which ends when the test says so and never gives the same update twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import coordinator.delivery.desk
import coordinator.delivery.releases
import coordinator.rounds.agenda
import coordinator.rounds.closing
import coordinator.rounds.conductor
import coordinator.rounds.intake
import coordinator.service
import edge_sdk.agent.sources
import edge_sdk.agent.supervisor
from coordinator.config import CoordinatorConfig
from coordinator.service import Service, WorkDone
from coordinator.store.database import Store
from coordinator.store.opening import open_store
from edge_sdk.agent import decisions
from edge_sdk.agent.supervisor import Supervisor, TrainingSaid
from edge_sdk.config import AgentConfig
from edge_sdk.device.machine import Machine
from edge_sdk.errors import RaffmError
from edge_sdk.protocol.messages import MAX_PAYLOAD_BYTES, Offer, Offline, Part, Verdict, encode
from edge_sdk.protocol.topics import Channel, Topic, parse
from edge_sdk.training.job import Finished, TrainingResult
from edge_sdk.transport.base import Incoming, LinkUp
from tests.support.history import Kind, Operation
from tests.support.logistic_graph import examples
from tests.support.simulator import able_device, small_update

FLEET = "default"
_RESULT = TrainingResult(samples=7, steps=1, loss_first=1.0, loss_last=0.5, seconds=0.1, peak_memory_bytes=1)
_TICKING = (
    coordinator.delivery.desk,
    coordinator.delivery.releases,
    coordinator.rounds.agenda,
    coordinator.rounds.closing,
    coordinator.rounds.conductor,
    coordinator.rounds.intake,
    coordinator.service,
    edge_sdk.agent.sources,
    edge_sdk.agent.supervisor,
)


class Clock:
    """Stands in for the module ``time``, and goes on when told."""

    def __init__(self) -> None:
        self.now_s = 1e9

    def time(self) -> float:
        return self.now_s

    monotonic = time


@contextmanager
def ticking(clock: Clock) -> Iterator[None]:
    """Everything here lives by ``clock``, and no device measures what it can spare."""
    with pytest.MonkeyPatch().context() as patch:
        patch.setattr(Machine, "snapshot", lambda _: able_device())
        for module in _TICKING:
            patch.setattr(module, "time", clock)
        yield


class Notes(list[Operation]):
    """A history in memory, see :mod:`tests.support.history`."""

    add = list.append


class Wire:
    """What is said and not yet heard."""

    def __init__(self) -> None:
        self.flying: list[Incoming] = []

    def publish(self, topic: str, payload: bytes) -> None:
        self.flying.append(Incoming(topic, payload))


class WireEnd:
    """A transport that only sends; ``injected`` is what its user has for itself."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.injected = deque[object]()

    def connect(self) -> None: ...

    def close(self) -> None: ...

    def bulk_room(self) -> int:
        return MAX_PAYLOAD_BYTES

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, bulk: bool = False) -> bool:  # noqa: ARG002
        self._wire.publish(topic, payload)
        return True

    def receive(self, _: float) -> object:
        return self.injected.popleft() if self.injected else None

    def unread(self) -> int:
        return len(self.injected)

    def inject(self, delivery: object) -> None:
        self.injected.append(delivery)


class SteppedService(Service):
    """Its heavy work is done at once, and heard of when the test looks."""

    def __init__(self, folder: Path, store: Store, wire: Wire) -> None:
        self.end, self.store = WireEnd(wire), store
        super().__init__(CoordinatorConfig(state_dir=folder, broker="", threads=1, gather_s=0), store, self.end)
        self.hear(LinkUp())

    def hear(self, delivery: object) -> None:
        """Take this, and look at the clock."""
        self._handle(delivery)
        self._tick()

    def look(self) -> None:
        """Hear of work that is done, and look at the clock."""
        self.hear(self.end.receive(0))

    def end_here(self) -> None:
        """As if killed: nothing is said, nothing is written."""
        self._exchange.close()
        self.store.close()

    def _submit(self, work: Any, then: Any, fail: Any) -> None:
        self._making += 1
        future: Future[Any] = Future()
        try:
            future.set_result(work())
        except RaffmError as error:
            future.set_exception(error)
        self.end.inject(WorkDone(future, work, then, fail))


class SteppedDevice(Supervisor):
    """An agent whose training ends with :meth:`finish`; what becomes of its updates is in ``notes``."""

    def __init__(self, name: str, folder: Path, wire: Wire, notes: Notes) -> None:
        self.name, self.wire, self.notes = name, wire, notes
        self.folder = folder
        self.is_asking = True
        self.training: Offer | None = None
        config = AgentConfig(device=name, broker="mqtt://127.0.0.1", state_dir=folder, resend_max_s=8.0)
        super().__init__(config, examples(4, seed=0), make_transport=lambda *_: WireEnd(wire))
        self.hear(LinkUp())

    def hear(self, delivery: object) -> None:
        """Take this, and look at the clock."""
        self._handle(delivery)
        self._tick()

    def look(self) -> None:
        """Look at the clock."""
        self.hear(None)

    def finish(self) -> None:
        """Training is over, if there was any; a number that no training had before is in its update."""
        offer, self.training = self.training, None
        if offer is None:
            return
        weights = next(entry for entry in offer.manifest if entry.part is Part.WEIGHTS)
        update = small_update(f"{self.name}{len(self.notes)}", offer, self._cache.path_of(weights.digest).read_bytes())
        (self.folder / "update.safetensors").write_bytes(update)
        self.hear(TrainingSaid(offer, Finished(_RESULT)))

    @property
    def is_settled(self) -> bool:
        """Whether nothing waits for a receipt."""
        return not self._updates.pending()

    def end_here(self) -> None:
        """As if killed: what its broker would say, and nothing else."""
        self.wire.publish(
            str(Topic(FLEET, self.name, Channel.STATE)), encode(Offline(device=self.name, session=self._session))
        )
        self._blobs.close()
        self._held.close()
        self._releases.close()

    def _train(self, offer: Offer) -> None:
        self.training = offer

    def _stop_training(self) -> None:
        self.training = None

    def _say_ready(self) -> None:
        if self.is_asking:
            super()._say_ready()

    def _store_update(self, offer: Offer, result: TrainingResult) -> None:
        super()._store_update(offer, result)
        stored = self._updates.pending()[-1]
        self.notes.add(Operation("update", Kind.INVOKE, self.name, stored.round, stored.update_id))

    def _perform(self, effect: decisions.Effect) -> None:
        if isinstance(effect, decisions.Settle):
            receipt = effect.receipt
            for waiting in self._updates.pending():
                if waiting.update_id == receipt.update_id:
                    kind = Kind.OK if receipt.verdict is Verdict.ACCEPTED else Kind.FAIL
                    self.notes.add(Operation("update", kind, self.name, waiting.round, waiting.update_id))
        super()._perform(effect)


class SteppedFleet:
    """One coordinator with a task, and devices ``names``, in ``folder``; both may be started anew at any time.

    All its coordinators have one store, whose connections end with each: another would prepare every statement anew.
    """

    def __init__(self, folder: Path, names: tuple[str, ...], clock: Clock) -> None:
        self.wire, self.notes, self.clock = Wire(), Notes(), clock
        self._folder = folder
        self._store = open_store(folder / "coordinator")
        self.service = self._coordinator()
        self.devices = {name: self._device(name) for name in names}

    def _coordinator(self) -> SteppedService:
        return SteppedService(self._folder / "coordinator", self._store, self.wire)

    def _device(self, name: str) -> SteppedDevice:
        return SteppedDevice(name, self._folder / name, self.wire, self.notes)

    def carry(self, index: int, *, copy: bool = False) -> None:
        """Deliver what flies at ``index``."""
        message = self.wire.flying[index] if copy else self.wire.flying.pop(index)
        topic = parse(message.topic)
        if topic.device is None:
            for device in self.devices.values():
                device.hear(message)
        elif topic.channel in {Channel.DOWN, Channel.CHUNK_DOWN}:
            self.devices[topic.device].hear(message)
        else:
            self.service.hear(message)

    def restart(self, who: str) -> None:
        """A device, or else the coordinator, is killed and started again."""
        if who in self.devices:
            self.devices[who].end_here()
            self.devices[who] = self._device(who)
        else:
            self.service.end_here()
            self.service = self._coordinator()

    def let_time_pass(self, seconds: float) -> None:
        """Everybody looks at the clock afterwards."""
        self.clock.now_s += seconds
        self.service.look()
        for device in self.devices.values():
            device.look()

    def come_to_rest(self, deadline_s: float) -> None:
        """Every link is good again, and no device asks for more: what was begun comes to its end."""
        for device in self.devices.values():
            device.is_asking = False
            device.hear(LinkUp())
        for _ in range(100):
            self._work_off()
            self.let_time_pass(2.0)
            if not self.wire.flying and all(device.is_settled for device in self.devices.values()):
                break
        self.let_time_pass(deadline_s)
        for _ in range(5):
            self._work_off()
            self.let_time_pass(2.0)

    def _work_off(self) -> None:
        while self.wire.flying:
            self.carry(0)
        for device in self.devices.values():
            device.finish()

    def close(self) -> None:
        """End everybody."""
        with ExitStack() as ending:
            for member in (self.service, *self.devices.values()):
                ending.callback(member.end_here)
