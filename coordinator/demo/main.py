"""The demo: what one could type by hand, started in the right order, watched, ended together, and told as a story."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from coordinator.broker import EmbeddedBroker
from coordinator.config import DEFAULT_RECIPE, Participation, TaskConfig, read_task
from coordinator.delivery.roots import ensure_root
from coordinator.demo.collecting import device_rows, task_outcome
from coordinator.demo.fleet import FLEET, NAME, agent_arguments, data_file
from coordinator.demo.inputs import MODEL_NAME, MODEL_PACKAGE, deal, packaged_model, texts_of, write_examples
from coordinator.demo.outcome import Outcome
from coordinator.demo.report import summary, write_report
from coordinator.demo.view import show
from coordinator.demo.watching import Watcher
from coordinator.local import TaskFailedError
from coordinator.processes import Interrupted, Processes, interruptible
from coordinator.rounds.tasks import change_status, queue_task
from coordinator.store.database import Store
from coordinator.store.opening import is_served, open_store
from coordinator.store.states import TaskStatus
from edge_sdk.disk import disk_errors
from edge_sdk.elastic.runtimes import MIB
from edge_sdk.errors import ConfigurationError, DiskFullError, StateInUseError

ELASTIC, ABLE = "all-devices", "able-only"
RECIPE = msgspec.structs.replace(DEFAULT_RECIPE, max_steps=6, learning_rate=2e-4)
"""A device sees about a hundred of its texts in a round, so that all of it takes minutes.

So few steps have to be twice as long: at the default rate the full model ended 1.9 points behind that of a fleet in
which every device can train all of it, at this one 0.7 (three seeds; ``python -m tests.benchmarks demo_accuracy``).
"""

_POLL_S = 0.5
_LEFT_FREE_BYTES = 256 * MIB  # by every agent, whose owner says nothing else here
_MODELS_KEPT = 25  # by all devices together: weights, states of optimizers, releases; with less, they decline offers


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What `coordinator demo` was asked for."""

    state_dir: Path
    model: Path | None
    data: Path | None
    rounds: int
    seed: int
    compare: bool
    resume: bool
    report: Path


def run_demo(options: DemoOptions) -> None:
    """Set up or resume, run, show and write the report.

    Raises ``TaskFailedError``, and the named errors of whatever cannot be used.
    """
    console = Console()
    started_s = time.monotonic()
    with disk_errors(options.state_dir):
        options.report.parent.mkdir(parents=True, exist_ok=True)  # not after minutes of work
        store = _prepare(options, console)
    try:
        with interruptible():
            _run_processes(options, store, console)
    except Interrupted:
        command = "coordinator" if shutil.which("coordinator") else sys.argv[0]
        again = f"{command} demo --resume --state-dir {options.state_dir}"
        console.print(f"\ninterrupted; every process has ended. `{again}` goes on from the last closed round")
        raise
    _check_tasks(store, options.state_dir)
    outcome = _outcome(store, time.monotonic() - started_s)
    show(outcome, console)
    picture = options.report.with_suffix(".svg")
    with disk_errors(options.report):
        write_report(outcome, options.report, picture)
    console.print(f"\n[bold]{summary(outcome)}[/bold]\nPlots: {options.report.absolute()}, {picture.name}")


def _outcome(store: Store, seconds: float) -> Outcome:
    """What was run is what the store holds: a resumed demo was not told its model and tasks again."""
    with store.reading() as tx:
        tasks = {task.name: read_task(task.config) for task in tx.tasks.all()}
    folder = Path(tasks[ELASTIC].model_dir)
    return Outcome(
        model=MODEL_NAME if MODEL_PACKAGE in folder.parts else folder.name,
        seconds=seconds,
        devices=device_rows(store, ELASTIC),
        elastic=task_outcome(store, ELASTIC, "All devices, each training its part"),
        able_only=task_outcome(store, ABLE, "Only the devices that can train all of it") if ABLE in tasks else None,
    )


def _prepare(options: DemoOptions, console: Console) -> Store:
    """Deal the data and queue the tasks, unless an earlier demo in this folder is to be resumed."""
    database = options.state_dir / "coordinator" / "coordinator.sqlite"
    if is_served(database.parent):
        raise StateInUseError(
            f"a demo is already running in {options.state_dir}: wait for its end, or give another --state-dir"
        )
    if options.resume:
        if not database.exists():
            raise ConfigurationError(f"nothing to resume in {options.state_dir}: run the demo without --resume first")
        console.print(f"resuming what is in {options.state_dir}")
        return _resumed(open_store(database.parent))
    model = options.model or packaged_model()
    examples = texts_of(options.data)
    dealt = deal(examples, [device.name for device in FLEET], seed=options.seed)
    _clear(options.state_dir)
    options.state_dir.mkdir(parents=True, exist_ok=True)
    _check_space(options.state_dir, model)
    (options.state_dir / "data").mkdir()
    (options.state_dir / "logs").mkdir()
    for device in FLEET:
        write_examples(data_file(device, options.state_dir), dealt.devices[device.name])
    store = open_store(database.parent)
    for config in _tasks(options, model):
        for file, part in ((config.calibration_file, dealt.calibration), (config.test_file, dealt.test)):
            write_examples(Path(file), part)
        queue_task(store, config, time.time(), "the demo")
    ensure_root(store, database.parent, time.time())
    console.print(f"{len(examples)} texts dealt to {len(FLEET)} devices; {len(dealt.test)} stay with the coordinator")
    return store


def _resumed(store: Store) -> Store:
    """Have a task that failed begin again from its newest version."""
    with store.reading() as tx:
        failed = [task.name for task in tx.tasks.all() if task.status is TaskStatus.FAILED]
    for name in failed:
        change_status(store, name, TaskStatus.PENDING, time.time(), "the demo")
    return store


def _check_tasks(store: Store, state_dir: Path) -> None:
    """Raise ``TaskFailedError`` where a task has failed: there is no story to tell of it."""
    with store.reading() as tx:
        for task in tx.tasks.all():
            if task.status is TaskStatus.FAILED:
                raise TaskFailedError(f"task {task.name} failed: {task.failure}; see {state_dir / 'logs'}")


def _check_space(state_dir: Path, model: Path) -> None:
    """Refuse a disk on which devices would decline offers, or never ask for work."""
    needed_bytes = _LEFT_FREE_BYTES + _MODELS_KEPT * sum(file.stat().st_size for file in model.glob("*.safetensors"))
    free_bytes = shutil.disk_usage(state_dir).free
    if free_bytes < needed_bytes:
        raise DiskFullError(
            f"{free_bytes // MIB} MiB are free for {state_dir}, the demo needs {needed_bytes // MIB}: free some, or "
            "give a --state-dir on another disk"
        )


def _clear(state_dir: Path) -> None:
    """Remove what an earlier demo left, and nothing else: a folder that is not a demo's is refused."""
    if state_dir.exists() and any(state_dir.iterdir()):
        if not (state_dir / "coordinator" / "coordinator.sqlite").exists():
            raise ConfigurationError(f"{state_dir} holds other files; give an empty --state-dir")
        shutil.rmtree(state_dir)


def _tasks(options: DemoOptions, model: Path) -> Iterator[TaskConfig]:
    participations = {ELASTIC: Participation.ALL, ABLE: Participation.ABLE}
    for name in (ELASTIC, ABLE) if options.compare else (ELASTIC,):
        yield TaskConfig(
            name=name,
            model_dir=str(model.absolute()),
            calibration_file=str((options.state_dir / "data" / "calibration.csv").absolute()),
            test_file=str((options.state_dir / "data" / "test.csv").absolute()),
            rounds=options.rounds,
            participation=participations[name],
            min_devices=len(FLEET),
            recipe=RECIPE,
            evaluated_shares=(1.0, 0.5, 0.25),
            seed=options.seed,
            release=name == ELASTIC,
        )


def _run_processes(options: DemoOptions, store: Store, console: Console) -> None:
    logs = options.state_dir / "logs"
    with EmbeddedBroker(options.state_dir / "broker") as broker, Processes(logs) as processes:
        address = str(broker.address)
        state = str(options.state_dir / "coordinator")
        coordinator = ("serve", "--state-dir", state, "--broker", address, "--tasks-at-once", "1")
        processes.start("coordinator", "coordinator.cli", (*coordinator, "--fleet", NAME, "--exit-when-done"))
        for device in FLEET:
            processes.start(device.name, "edge_sdk.cli", agent_arguments(device, address, options.state_dir))
        console.print(f"broker at {address}, coordinator and {len(FLEET)} agents started; logs in {logs}")
        with _progress(console) as progress:
            watcher = Watcher(store, progress, processes.log_of("coordinator"))
            while not processes.ended("coordinator"):
                processes.check()
                watcher.look()
                time.sleep(_POLL_S)
            processes.check()
            watcher.look()


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
