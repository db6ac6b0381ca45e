"""Rounds over links that reset, fall silent, crawl and garble: they end in time, and no wrong byte gets in.

Everything but training is real: a broker, the coordinator's service, MQTT and blobs on both sides, each through a gate
of its own. Time runs six times as fast as in the field: a minute of silence or of keepalive lasts ten seconds, and
64 kbit/s are 384. So a silence still outlasts what a link is believed for.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from coordinator.service import mqtt_transport
from edge_sdk.protocol.blobs import digest_of
from edge_sdk.protocol.messages import Offer
from edge_sdk.transport import mqtt, transfer
from edge_sdk.transport.address import BrokerAddress
from edge_sdk.transport.base import Will
from edge_sdk.transport.blob_folder import Partial
from edge_sdk.transport.mqtt import MqttTransport
from tests.support.broker import mosquitto_broker
from tests.support.fault_proxy import Fault, FaultProxy, Weather
from tests.support.light_model import light_models, light_task
from tests.support.proof import Proof
from tests.support.served import Served, quick
from tests.support.simulator import Fleet, small_update

pytestmark = pytest.mark.mosquitto
DEVICES = ("a", "b", "c")
ROUNDS, DEADLINE_S = 2, 6.0
SIDE_BY_SIDE = 16
_BAD_FOR_S = 12.0
_PATIENCE_S = 90.0
_FASTER = 6
_SILENCE_S = 60 / _FASTER


def weather_of(seed: int, gate: str) -> Weather:
    """Resets in 5 % of the blocks, up to 200 ms each way, some links slow, and what else a seed draws."""
    drawn = random.Random(f"{seed} {gate}")
    return Weather(
        resets=0.05,
        closes=drawn.choice((0.0, 0.03)),
        silences=drawn.choice((0.0, 0.05)),
        half_opens=drawn.choice((0.0, 0.03)),
        garbles=drawn.choice((0.0, 0.03)),
        silence_s=_SILENCE_S,
        delay_s=0.2,
        bytes_per_s=drawn.choice((None, None, _FASTER * 8000.0)) if gate in DEVICES else None,
    )


@dataclass
class Outcome:
    """What became of one schedule; ``late_s`` is the most that a round was decided after its deadline."""

    seed: int
    ended: bool
    late_s: float
    corrupt: int
    closed: int
    happened: Counter[Fault]


class Aggregated:
    """What every aggregation read, compared with what devices made."""

    def __init__(self, run: ModuleType) -> None:
        self.made: set[str] = set()
        self.corrupt: Counter[str] = Counter()
        self._run, self._real = run, run.Run.aggregate

    def __enter__(self) -> Aggregated:  # noqa: PYI034 - Self needs Python 3.11
        self._run.Run.aggregate = self._aggregate = self._checked()
        return self

    def __exit__(self, *_: object) -> None:
        self._run.Run.aggregate = self._real

    def work(self, device: str, offer: Offer, weights: bytes) -> bytes:
        update = small_update(device, offer, weights)
        self.made.add(digest_of(update))
        return update

    def _checked(self) -> Callable[..., Any]:
        def aggregate(run: Any, version: Any, number: int, sources: Sequence[Any]) -> Any:
            read = [digest_of(Path(source.path).read_bytes()) for source in sources]
            self.corrupt[run.config.name] += sum(digest not in self.made for digest in read)
            return self._real(run, version, number, sources)

        return aggregate


@contextmanager
def fleet_behind(proxy: FaultProxy, broker: BrokerAddress, name: str, work: Any) -> Iterator[Fleet]:
    def link(device: str, filters: Sequence[str], will: Will) -> MqttTransport:
        return MqttTransport(proxy.gate(device, broker), f"{name}-{device}", filters, will=will)

    with Fleet(DEVICES, link, work=work, fleet=name) as fleet:
        yield fleet


def run_through(seed: int, folder: Path, broker: BrokerAddress, aggregated: Aggregated) -> Outcome:
    """One task through one schedule of weather, which turns bad on a fleet at work and clears up after a while.

    A coordinator that reaches no broker when it starts says so and ends: that is no weather to sit out.
    """
    name = f"fleet-{seed}"
    folder = folder / name
    folder.mkdir()
    with FaultProxy(seed) as proxy:
        config = quick(folder, str(proxy.gate("coordinator", broker)), fleet=name, lost_after_s=30.0)
        task = light_task(
            folder, name=name, rounds=ROUNDS, min_devices=len(DEVICES), quorum=1, round_deadline_s=DEADLINE_S
        )
        served = Served(config, task, mqtt_transport(config))
        with fleet_behind(proxy, broker, name, aggregated.work), served:
            served.wait_until(lambda: any(known.online for known in served.read(lambda tx: tx.devices.all())))
            for gate in ("coordinator", *DEVICES):
                proxy.change(weather_of(seed, gate), gate)
            is_ended = _ends_within(served, _BAD_FOR_S)
            proxy.change(Weather())
            is_ended = is_ended or _ends_within(served, _PATIENCE_S)
            rounds = served.decided
    late_s = max(((known.closed_s or 0.0) - known.deadline_s for known in rounds), default=0.0)
    return Outcome(seed, is_ended, late_s, aggregated.corrupt[name], len(rounds), proxy.happened)


def _ends_within(served: Served, patience_s: float) -> bool:
    give_up_s = time.monotonic() + patience_s
    while served.is_running and time.monotonic() < give_up_s:
        time.sleep(0.05)
    return not served.is_running


@pytest.fixture
def short_lived_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MqttTransport.__init__.__kwdefaults__, "keepalive_s", mqtt._KEEPALIVE_S // _FASTER)
    assert MqttTransport(BrokerAddress("127.0.0.1", 1), "device", ())._keepalive_s < _SILENCE_S + 1
    monkeypatch.setattr(mqtt, "_RECONNECT_LAST_S", (2.0, 4.0))


@pytest.mark.usefixtures("short_lived_links")
@pytest.mark.timeout(1500)
def test_rounds_end_in_time_through_any_weather(tmp_path: Path, proof: Proof) -> None:
    seeds = proof.seeds(short=2, full=200)
    with (
        mosquitto_broker() as broker,
        light_models() as run,
        Aggregated(run) as seen,
        ThreadPoolExecutor(SIDE_BY_SIDE) as pool,
    ):
        outcomes = list(pool.map(lambda seed: run_through(seed, tmp_path, broker.address, seen), seeds))
    happened = sum((outcome.happened for outcome in outcomes), Counter[Fault]())
    told = ", ".join(f"{count} {fault.value}" for fault, count in sorted(happened.items()))
    print(told, *outcomes, sep="\n")
    assert happened[Fault.RESET], "no link was ever reset: this shows nothing"
    proof.show("R5", f"schedules that hang, of {len(seeds)} ({told})", sum(not o.ended for o in outcomes), at_most=0)
    proof.show("R5", "seconds that a round is decided after its deadline", max(o.late_s for o in outcomes), at_most=5)
    proof.show("R5", "corrupt updates aggregated", sum(o.corrupt for o in outcomes), at_most=0)


def test_without_digests_wrong_bytes_are_aggregated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: bits flip on the way up, and nobody looks at what came."""
    monkeypatch.setattr(
        transfer.Transfer, "expects", lambda self, chunk: self.welcome.issuperset(transfer._grains_in(chunk))
    )
    monkeypatch.setattr(Partial, "commit", _believing_commit)
    name = "believing"
    with mosquitto_broker() as broker, light_models() as run, Aggregated(run) as aggregated, FaultProxy(3) as proxy:
        config = quick(tmp_path, str(broker.address), fleet=name)
        task = light_task(tmp_path, name=name, rounds=1, min_devices=3, quorum=1, round_deadline_s=30.0)
        served = Served(config, task, mqtt_transport(config))

        def work(device: str, offer: Offer, weights: bytes) -> bytes:
            proxy.change(Weather(garbles=0.5), device)
            return aggregated.work(device, offer, weights)

        with fleet_behind(proxy, broker.address, name, work), served:
            served.wait_for_end()
    assert aggregated.corrupt[name] > 0


def _believing_commit(partial: Partial) -> None:
    partial._part.replace(partial._path)
    partial.discard()
