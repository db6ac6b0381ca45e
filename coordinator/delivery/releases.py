"""The release at a task's end: made of its last version, and sent to everybody where the coordinator may sign it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.delivery.approving import (
    approve,
    is_approved,
    known_release,
    manifest_of,
    record_release,
    signatures_by,
)
from coordinator.delivery.desk import RolloutDesk
from coordinator.delivery.exports import build_exports
from coordinator.delivery.keys import held_keys
from coordinator.delivery.roots import current_root
from coordinator.delivery.starting import budgets_of, start_rollout
from coordinator.models.versions import ModelVersion
from coordinator.planning.planner import Ladder, TaskCosts
from coordinator.resources import Resources
from coordinator.store.database import Transaction
from coordinator.store.plan import Plan
from coordinator.store.records import ReleaseRecord
from coordinator.store.states import TaskStatus
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.releases import Export, Precision
from edge_sdk.protocol.signing import Role

if TYPE_CHECKING:
    from coordinator.models.run import Run

_log = logging.getLogger(__name__)
_WHO = "coordinator"
_DAYS = 365.0


class TaskRelease:
    """Creates a task's final release and waits for the reports of the devices that get it; ``fail`` ends the task."""

    def __init__(
        self,
        run: Run,
        costs: TaskCosts,
        ladder: Ladder,
        resources: Resources,
        desk: RolloutDesk,
        fail: Callable[[str], None],
    ) -> None:
        self._run, self._costs, self._ladder = run, costs, ladder
        self._resources, self._desk, self._fail = resources, desk, fail
        self._is_out = False

    def open(self, version: ModelVersion) -> None:
        """Create the release, or continue with the recorded one. Raises ``ConfigurationError`` for a damaged key."""
        with self._resources.store.reading() as tx:
            made = [known for known in tx.releases.of_task(self._run.config.name) if known.version == version.number]
            is_made = any(self._is_own(tx, known) for known in made)
            budgets = [budget for _, budget in budgets_of(tx, ())]
        if is_made:
            self._is_out = True
            return

        def work() -> tuple[Export, ...]:
            return build_exports(self._run, version, self._costs, self._ladder, budgets, (Precision.INT8,))

        self._resources.submit(work, lambda exports: self._record(version, exports), self._fail)

    def is_settled(self) -> bool:
        """Whether the release is recorded, and every device that got it has answered or run out of time."""
        return self._is_out and self._desk.is_settled(self._run.config.name)

    def _is_own(self, tx: Transaction, known: ReleaseRecord) -> bool:
        """Whether this is the task's own release: for every group, and signed by all keys that are held here.

        A release of the same version that an operator has made (`release create`) lacks these signatures.
        """
        given = {each.key for each in known.signatures}
        own = {key.public_key().public_bytes_raw() for key in self._keys(tx)}
        return own <= given and not manifest_of(known).groups

    def _keys(self, tx: Transaction) -> list[Ed25519PrivateKey]:
        """The release keys in the state folder that devices trust."""
        trusted = {*current_root(tx).release.keys}
        held = held_keys(self._resources.settings.state_dir, Role.RELEASE)
        return [key for key in held if key.public_key().public_bytes_raw() in trusted]

    def _record(self, version: ModelVersion, exports: tuple[Export, ...]) -> None:
        """Store the release, its approval and its rollout before any device is sent anything.

        Nothing is released if the task was stopped meanwhile.
        """
        config, settings = self._run.config, self._resources.settings
        if not exports:
            _log.warning("%s is not released: no known device can run any of its exports", config.name)
        with self._resources.store.transaction() as tx:
            known = tx.tasks.get(config.name)
            if known is not None and known.status is TaskStatus.STOPPED:
                return
            if exports:
                release = record_release(
                    tx,
                    config.name,
                    (version.number, version.digest),
                    exports,
                    config.recipe,
                    labels=self._run.foundation.labels,
                    fleet=settings.fleet,
                    groups=(),
                    now_s=time.time(),
                    days=_DAYS,
                )
                self._send_out(tx, release)
        self._desk.tick()
        self._is_out = True

    def _send_out(self, tx: Transaction, release: int) -> None:
        """Approve the release and start its rollout, if the keys in the state folder are enough for that."""
        signed = signatures_by(known_release(tx, release), self._keys(tx))
        approve(tx, release, signed, time.time(), _WHO)
        if not is_approved(tx, known_release(tx, release)):
            _log.info("release %d needs signatures: see `coordinator release show %d`", release, release)
            return
        plan = Plan(success_share=0.01, error_share=1.0, health_interval_s=self._resources.settings.release_deadline_s)
        try:
            start_rollout(tx, release, plan, time.time(), _WHO)
        except ConfigurationError as error:  # an operator's rollout is open, or its devices are gone
            _log.warning("release %d is not rolled out automatically: %s", release, error)
