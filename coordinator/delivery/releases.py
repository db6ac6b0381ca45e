"""One release of a task: for every device the best submodel that it can run, signed for it alone.

Inference needs a fraction of training's memory, so what a device runs is usually larger than what it trained. A
release is sent again whenever its device asks for work, until the device has reported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from coordinator.delivery.choice import Judged, best_of
from coordinator.models.versions import ModelVersion
from coordinator.planning.budget import Budget, inference_budget
from coordinator.planning.planner import Ladder, TaskCosts
from coordinator.resources import Resources
from coordinator.store.records import ReleaseRecord
from coordinator.store.states import ReleaseStatus
from edge_sdk.elastic.submodel import Submodel
from edge_sdk.protocol.messages import BlobEntry, Release, ReleaseReport
from edge_sdk.protocol.signing import ReleaseManifest, Role, sign

if TYPE_CHECKING:
    from coordinator.models.run import Run

_log = logging.getLogger(__name__)
Built = dict[str, tuple[Submodel, tuple[BlobEntry, ...]]]


class ReleaseDesk:
    """Sends a task's release and waits for what the devices say of it; ``fail`` ends the task."""

    def __init__(
        self, run: Run, costs: TaskCosts, ladder: Ladder, resources: Resources, fail: Callable[[], None]
    ) -> None:
        self._run, self._fail = run, fail
        self._ladder = ladder
        self._costs = costs
        self._resources = resources
        self._sent: dict[str, ReleaseRecord] = {}
        self._deadline_s: float | None = None
        self._about: dict[str, object] = {"task": run.config.name}

    def open(self, version: ModelVersion) -> None:
        """Build and send; a release that an earlier start has recorded is sent as it was."""
        with self._resources.store.reading() as tx:
            recorded = tx.releases.of_task(self._run.config.name)
            devices = {known.id: known.snapshot for known in tx.devices.all() if known.online and known.snapshot}
        if recorded:
            self._send_all(recorded)
            return
        budgets = {device: inference_budget(snapshot) for device, snapshot in devices.items()}

        def work() -> Built:
            chosen = {device: self._choose(version, budget) for device, budget in budgets.items()}
            return {
                device: (submodel, self._run.release(version, submodel))
                for device, submodel in chosen.items()
                if submodel is not None
            }

        self._resources.submit(work, self._record, self._fail)

    def send(self, device: str) -> bool:
        """Send a device its release (again) where it has not reported yet; whether there was one to send."""
        record = self._sent.get(device)
        if record is None or record.status is not ReleaseStatus.SENT:
            return False
        recipe = self._run.config.recipe
        manifest = ReleaseManifest(
            release=record.release,
            fleet=self._resources.settings.fleet,
            device=device,
            task=record.task,
            submodel=record.submodel,
            labels=self._run.foundation.labels,
            max_tokens=recipe.max_tokens,
            pixel_mean=recipe.pixel_mean,
            pixel_std=recipe.pixel_std,
            manifest=self._resources.addressed(record.manifest),
        )
        self._resources.send(device, Release(envelope=sign(self._resources.key, Role.RELEASE, manifest)))
        return True

    def reported(self, device: str, report: ReleaseReport) -> None:
        """What a device says of its release; anything but its own newest is ignored."""
        record = self._sent.get(device)
        if record is None or record.release != report.release:
            return
        with self._resources.store.transaction() as tx:
            tx.releases.reported(report.release, report)
            stored = tx.releases.get(report.release)
        if stored is not None:
            self._sent[device] = stored
        health = "healthy" if report.healthy else report.detail
        _log.info("%s: release %d is %s", device, report.release, health, extra=self._about | {"device": device})

    def is_settled(self, now_s: float) -> bool:
        """Whether every device has reported, or the time for it is over, on the monotonic clock."""
        if self._deadline_s is None:
            return False
        waiting = [device for device, record in self._sent.items() if record.status is ReleaseStatus.SENT]
        if waiting and now_s < self._deadline_s:
            return False
        if waiting:
            _log.warning("no word of the release from %s", ", ".join(sorted(waiting)), extra=self._about)
        return True

    def _choose(self, version: ModelVersion, budget: Budget) -> Submodel | None:
        """The best of the widths that are evaluated anyway and the largest submodel of all, as far as they fit."""
        largest, run = self._ladder.for_inference(budget), self._run
        if largest is None:
            return None
        widths = (width for width in run.widths.values() if self._costs.inference_bytes(width) <= budget.memory_bytes)
        fitting = {largest, *widths}
        judged = [(submodel, run.judge(version, submodel)) for submodel in fitting]
        return best_of([Judged(s, run.parameters(s), found.accuracy, found.samples) for s, found in judged])

    def _record(self, built: Built) -> None:
        """Every release has its number in the store before any device hears of it."""
        task = self._run.config.name
        with self._resources.store.transaction() as tx:
            records = [
                tx.releases.add(task, device, submodel, manifest, self._run.parameters(submodel))
                for device, (submodel, manifest) in sorted(built.items())
            ]
        self._send_all(records)

    def _send_all(self, records: list[ReleaseRecord] | tuple[ReleaseRecord, ...]) -> None:
        self._sent = {record.device: record for record in records}
        self._deadline_s = time.monotonic() + self._resources.settings.release_deadline_s
        _log.info("release to %d devices", len(self._sent), extra=self._about)
        for device in self._sent:
            self.send(device)
