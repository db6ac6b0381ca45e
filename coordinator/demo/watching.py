"""The demo's progress bars, from what the store says."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress, TaskID

from coordinator.config import read_task
from coordinator.demo.view import WIDTHS, percent
from coordinator.store.database import Store, Transaction
from coordinator.store.records import TaskRecord
from coordinator.store.states import AssignmentStatus, Outcome, Phase, TaskStatus

_UNANSWERED = {AssignmentStatus.PENDING, AssignmentStatus.SENT}


class Watcher:
    """Looks at the store and moves two bars: the rounds of the running task, and the devices of the open round."""

    def __init__(self, store: Store, progress: Progress, log: Path) -> None:
        self._store = store
        self._progress = progress
        self._log = log
        self._told: set[tuple[str, int]] = set()
        self._rounds: TaskID = progress.add_task("coordinator starts", total=None)
        self._devices: TaskID = progress.add_task("", total=None, visible=False)

    def look(self) -> None:
        """Show what is new."""
        with self._store.reading() as tx:
            running = [task for task in tx.tasks.all() if task.status is TaskStatus.RUNNING]
            for task in tx.tasks.all():
                self._tell_rounds(tx, task)
            if running:
                self._show(tx, running[0])

    def _show(self, tx: Transaction, task: TaskRecord) -> None:
        rounds = tx.rounds.all(task.name)
        if not rounds:
            self._progress.update(self._rounds, description=f"{task.name}: {self._last_line()}")
            return
        closed = sum(known.phase is Phase.CLOSED for known in rounds)
        total = read_task(task.config).rounds
        self._progress.update(self._rounds, description=f"{task.name}: rounds closed", completed=closed, total=total)
        self._show_devices(tx, task)

    def _show_devices(self, tx: Transaction, task: TaskRecord) -> None:
        last = tx.rounds.all(task.name)[-1]
        offers, releases = tx.offers.of_round(task.name, last.number), tx.assignments.of_task(task.name)
        if releases:
            what, total = "devices that run their release", len(releases)
            done = sum(known.status not in _UNANSWERED for known in releases)
        elif last.phase is Phase.COLLECTING:
            what, total = f"round {last.number}: devices that answered", len(offers)
            done = sum(offer.outcome is not Outcome.OFFERED for offer in offers)
        else:
            what, total, done = f"round {last.number}: aggregating and evaluating", len(offers), len(offers)
        self._progress.update(self._devices, description=what, completed=done, total=total, visible=True)

    def _tell_rounds(self, tx: Transaction, task: TaskRecord) -> None:
        """One line for each version, once, when its evaluation is there."""
        for version in tx.versions.all(task.name):
            found = {known.width: known.accuracy for known in tx.evaluations.of_round(task.name, version.number)}
            if found and (task.name, version.number) not in self._told:
                self._told.add((task.name, version.number))
                shown = ", ".join(f"{width} {percent(found.get(width))}" for width in WIDTHS)
                self._progress.console.print(f"{task.name}, after round {version.number}: {shown}")

    def _last_line(self) -> str:
        """What the coordinator is preparing, in its own words, without the time."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1].partition(" ")[2].partition(" ")[2][:80] if lines else "starts"
