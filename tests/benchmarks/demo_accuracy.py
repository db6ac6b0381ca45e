"""What the demo's fleet reaches: four ways to use it, from the same version 0, on the demo's data and processes.

``--seeds 0,1,2 --rounds 5``. The elastic fleet may lose at most 1.5 points to one where every device holds the whole
model, which none of the small ones could. Able-only and everyone-full train the nested quarter too, as any submodel
that is wider does in the demo.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from coordinator.aggregation.coverage import UpdateSource
from coordinator.planning.budget import shrunk
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.messages import Failure
from edge_sdk.training.job import Failed, TrainingJob
from tests.benchmarks._fleet import NO_LIMIT_BYTES, DemoFleet, FleetDevice, say, train
from tests.benchmarks._measure import Figure, show

BAR = 1.5
WIDTHS = ("full", "half", "quarter")
_COLUMNS = "% right of full, half and quarter; MB up; rounds given up"
_PROCESSES = 2
_Choice = Callable[[DemoFleet, FleetDevice, float], Submodel | None]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to use the fleet. ``limited``: a device's memory limit holds, as it does in the demo."""

    name: str
    choose: _Choice
    limited: bool = False


def _able(fleet: DemoFleet, device: FleetDevice, memory_factor: float) -> Submodel | None:
    whole = fleet.run.widths["full"]
    return whole if fleet.planned(device, memory_factor) == whole else None


ELASTIC = Arm("elastic", DemoFleet.planned, limited=True)
EVERYONE_FULL = Arm("everyone full", lambda fleet, *_: fleet.run.widths["full"])
ABLE = Arm("able only", _able, limited=True)
EVERYONE_QUARTER = Arm("everyone a quarter", lambda fleet, *_: fleet.run.widths["quarter"])
ARMS = (ELASTIC, EVERYONE_FULL, ABLE, EVERYONE_QUARTER)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Percent of the test texts that each width gets right, bytes of all updates, and rounds that devices gave up."""

    accuracy: Mapping[str, float]
    bytes_up: int
    failures: int


class Rounds:
    """One arm from version 0 on; a device that runs out of memory gets less from then on, as the conductor does it."""

    def __init__(self, fleet: DemoFleet, arm: Arm) -> None:
        self._fleet, self._arm, self._version = fleet, arm, fleet.first
        self._factors = dict.fromkeys((device.name for device in fleet.devices), 1.0)
        self._bytes_up = self._failures = 0

    def play(self, number: int) -> None:
        """One round: plan, train, aggregate."""
        jobs = [(device, submodel, self._job(device, submodel, number)) for device, submodel in self._plan()]
        with ThreadPoolExecutor(_PROCESSES) as pool:
            updates = [update for update in pool.map(lambda task: self._train(*task), jobs) if update is not None]
        self._bytes_up += sum(update.path.stat().st_size for update in updates)
        self._version = self._fleet.run.aggregate(self._version, number, updates)

    def outcome(self) -> Outcome:
        """How the version is now."""
        results = self._fleet.run.evaluate(self._version)
        accuracy = {result.width: 100 * result.evaluation.accuracy for result in results}
        return Outcome(accuracy, self._bytes_up, self._failures)

    def _plan(self) -> list[tuple[FleetDevice, Submodel]]:
        chosen = (
            (device, self._arm.choose(self._fleet, device, self._factors[device.name]))
            for device in self._fleet.devices
        )
        return [(device, submodel) for device, submodel in chosen if submodel is not None]

    def _job(self, device: FleetDevice, submodel: Submodel, number: int) -> TrainingJob:
        limit_bytes = device.snapshot.training_memory_bytes if self._arm.limited else NO_LIMIT_BYTES
        return self._fleet.job(device, self._version, submodel, number, limit_bytes=limit_bytes)

    def _train(self, device: FleetDevice, submodel: Submodel, job: TrainingJob) -> UpdateSource | None:
        last = train(job)
        if isinstance(last, Failed):
            say(f"  {device.name} gives up: {last.failure.value} {last.detail}")
            self._failures += 1
            if last.failure is Failure.OUT_OF_MEMORY:
                self._factors[device.name] = shrunk(self._factors[device.name])
            return None
        return UpdateSource(device.name, device.samples, self._fleet.run.trained_slices(submodel), device.update)


def run(arguments: Sequence[str] = ()) -> Figure:
    options = _options(arguments)
    played = {seed: play_seed(seed, options.rounds) for seed in options.seeds}
    for seed, outcomes in played.items():
        show(f"seed {seed}; {_COLUMNS}", [(name, _cells([outcome])) for name, outcome in outcomes.items()])
    by_arm = {arm.name: [outcomes[arm.name] for outcomes in played.values()] for arm in ARMS}
    title = f"mean ± standard deviation of {len(played)} seeds, {options.rounds} rounds; {_COLUMNS}"
    show(title, [(name, _cells(outcomes)) for name, outcomes in by_arm.items()])
    return _figure({name: _means(outcomes) for name, outcomes in by_arm.items()})


def play_seed(seed: int, rounds: int, arms: Sequence[Arm] = ARMS) -> dict[str, Outcome]:
    """The outcome of version 0 and of every arm, by name."""
    with tempfile.TemporaryDirectory() as folder:
        say(f"seed {seed}")
        fleet = DemoFleet(Path(folder), seed)
        for device in fleet.devices:
            planned = fleet.planned(device)
            say(f"  {device.name}: {planned.width if planned else 'nothing'}; {device.samples} examples")
        return {"version 0": Rounds(fleet, ELASTIC).outcome()} | {arm.name: _play(fleet, arm, rounds) for arm in arms}


def _play(fleet: DemoFleet, arm: Arm, rounds: int) -> Outcome:
    """All rounds; the elastic arm's accuracy is shown after each, the others' only at the end, to save time."""
    played = Rounds(fleet, arm)
    for number in range(1, rounds + 1):
        started_s = time.monotonic()
        played.play(number)
        shown = _cells([played.outcome()]) if arm is ELASTIC else ""
        say(f"  {arm.name}, round {number} in {time.monotonic() - started_s:.0f} s {shown}")
    return played.outcome()


def _figure(means: Mapping[str, Mapping[str, float]]) -> Figure:
    """The first bar is the figure; the others, margins in points with the least that each must be, go beside it."""
    elastic, able = means[ELASTIC.name], means[ABLE.name]
    margins = {
        "full_over_able": (elastic["full"] - able["full"], 0.0),
        "half_over_able": (elastic["half"] - able["half"], 0.0),
        "quarter_over_able": (elastic["quarter"] - able["quarter"], 0.0),
        "quarter_over_everyone_a_quarter": (elastic["quarter"] - means[EVERYONE_QUARTER.name]["quarter"], -1.0),
    }
    loss = means[EVERYONE_FULL.name]["full"] - elastic["full"]
    rows = [(name, f"{margin:+.2f}, at least {least:+.1f}") for name, (margin, least) in margins.items()]
    show("elastic, in points", [("full_under_everyone_full", f"{loss:+.2f}, at most {BAR:+.1f}"), *rows])
    more = {name: round(margin, 2) for name, (margin, _) in margins.items()}
    return Figure("demo_accuracy", loss, BAR, "points of accuracy", more)


def _cells(outcomes: Sequence[Outcome]) -> str:
    """One row: each width, megabytes and failures; with a deviation where there are several."""
    accuracy = [_spread([outcome.accuracy[width] for outcome in outcomes]) for width in WIDTHS]
    megabytes = statistics.mean(outcome.bytes_up for outcome in outcomes) / 1e6
    return f"{' '.join(accuracy)}  {megabytes:6.0f}  {sum(outcome.failures for outcome in outcomes)}"


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):4.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):6.2f}{deviation}"


def _means(outcomes: Sequence[Outcome]) -> dict[str, float]:
    return {width: statistics.mean(outcome.accuracy[width] for outcome in outcomes) for width in WIDTHS}


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks demo_accuracy")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
