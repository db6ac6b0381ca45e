"""Starts rollouts: chooses for every device in a release's groups the best export that it can run, and its stage."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from coordinator.delivery.approving import is_approved, known_release, manifest_of
from coordinator.delivery.choice import Judged, best_of
from coordinator.delivery.rollout import Command, obeyed, obeying, staged
from coordinator.planning.budget import Budget, inference_budget
from coordinator.store.database import Transaction
from coordinator.store.plan import Plan
from coordinator.store.records import AssignmentRecord, DeviceRecord, RolloutRecord
from coordinator.store.states import AssignmentStatus, RolloutStatus
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.releases import Export, ReleaseManifest

_OPEN = {RolloutStatus.RUNNING, RolloutStatus.PAUSED}
_LEAVING = {AssignmentStatus.SENT, AssignmentStatus.TRYING, AssignmentStatus.HEALTHY}
_NAMED = 3  # at most so many devices are named in an error
_DONE = {
    Command.PAUSE: "pause rollout",
    Command.RESUME: "resume rollout",
    Command.HALT: "halt rollout",
    Command.ROLLBACK: "roll back rollout",
}


def start_rollout(tx: Transaction, release: int, plan: Plan, now_s: float, who: str) -> RolloutRecord:
    """Record a rollout with all its assignments; a running coordinator tells the devices within a second.

    Raises ``ConfigurationError`` if the release is not approved or has expired, no device can run it, another rollout
    of its task is open, or ``plan`` is invalid.
    """
    record = known_release(tx, release)
    manifest = manifest_of(record)
    if not is_approved(tx, record):
        raise ConfigurationError(f"release {release} is not approved: see `coordinator release show {release}`")
    if manifest.expires_s <= now_s:
        raise ConfigurationError(f"release {release} has expired: make another with `coordinator release create`")
    before = open_rollout(tx, record.task)
    if before is not None:
        leaving = ", ".join(_leaving(tx, before)[:_NAMED])
        what = "end it first" if before.status in _OPEN else f"wait until {leaving} has answered"
        raise ConfigurationError(f"rollout {before.rollout} of {record.task} is {before.status.value}: {what}")
    if plan.trial.seconds >= plan.health_interval_s:
        raise ConfigurationError(
            f"a trial of {plan.trial.seconds:g} s does not end within the health interval of "
            f"{plan.health_interval_s:g} s: make it longer"
        )
    chosen = chosen_exports(tx, manifest)
    stages = staged({known.id: known.group for known, _ in chosen}, plan.stages, str(release))
    if not stages:
        raise ConfigurationError(f"no known device can run release {release}: see `coordinator device list`")
    rollout = tx.rollouts.add(release, record.task, plan, now_s)
    for known, export in chosen:
        if known.id in stages:
            tx.assignments.add(_assignment(rollout, known.id, stages[known.id], export, now_s))
    tx.audit.note(now_s, who, "start rollout", f"{rollout.rollout}, release {release} of {record.task}")
    return rollout


def command_rollout(tx: Transaction, rollout: int, command: Command, now_s: float, who: str) -> RolloutRecord:
    """Give an operator's command to a rollout; a running coordinator follows within a second.

    Raises ``ConfigurationError`` if there is no such rollout, the command does not go with its status, or a newer
    rollout of its task has taken its place.
    """
    known = known_rollout(tx, rollout)
    newer = _newer(tx, known)
    if newer is not None:
        raise ConfigurationError(f"rollout {newer.rollout} of {known.task} has replaced rollout {rollout}")
    tx.rollouts.set_status(rollout, obeyed(known.status, command))
    tx.audit.note(now_s, who, _DONE[command], str(rollout))
    return known_rollout(tx, rollout)


def commands_for(tx: Transaction, known: RolloutRecord) -> tuple[Command, ...]:
    """The commands that :func:`command_rollout` accepts now."""
    return obeying(known.status) if _newer(tx, known) is None else ()


def open_rollout(tx: Transaction, task: str) -> RolloutRecord | None:
    """The rollout of a task that is not finished, or ``None`` if a new one may begin.

    A rollout that is rolling back stays open until every device that is online has answered; it does not wait for the
    others, which may never come back.
    """
    latest = tx.rollouts.latest(task)
    return latest if latest is not None and (latest.status in _OPEN or _leaving(tx, latest)) else None


def known_rollout(tx: Transaction, rollout: int) -> RolloutRecord:
    """The rollout with this number. Raises ``ConfigurationError``, which lists those that exist, if there is none."""
    found = tx.rollouts.get(rollout)
    if found is None:
        numbers = ", ".join(str(known.rollout) for known in tx.rollouts.all()) or "none"
        raise ConfigurationError(f"there is no rollout {rollout}; the rollouts are {numbers}")
    return found


def export_for(budget: Budget, exports: Sequence[Export]) -> Export | None:
    """The best export that fits the budget, or ``None`` if none does."""
    fitting = [export for export in exports if export.inference_memory_bytes <= budget.memory_bytes]
    judged = [Judged(it, it.parameters, it.accuracy, it.samples, it.size_bytes) for it in fitting]
    return best_of(judged)


def budgets_of(tx: Transaction, groups: Collection[str]) -> list[tuple[DeviceRecord, Budget]]:
    """The known devices of ``groups``, of all if there are none, and what inference may take on each.

    Those that are offline are among them: a release goes to them once they are back.
    """
    return [
        (known, inference_budget(known.snapshot))
        for known in tx.devices.all()
        if known.snapshot is not None and known.revoked_s is None and (not groups or known.group in groups)
    ]


def chosen_exports(tx: Transaction, manifest: ReleaseManifest) -> list[tuple[DeviceRecord, Export]]:
    """The export for each known device that may run the release and has the memory for one of its exports."""
    found = ((known, export_for(budget, manifest.exports)) for known, budget in budgets_of(tx, manifest.groups))
    return [(known, export) for known, export in found if export is not None]


def _leaving(tx: Transaction, known: RolloutRecord) -> list[str]:
    """The online devices that have not yet reported that they left the release of a rollout that is rolling back."""
    if known.status is not RolloutStatus.ROLLING_BACK:
        return []
    there = tx.devices.online()  # none that is revoked
    assigned = tx.assignments.of_rollout(known.rollout)
    return sorted(one.device for one in assigned if one.status in _LEAVING and one.device in there)


def _newer(tx: Transaction, known: RolloutRecord) -> RolloutRecord | None:
    """The newer rollout that has taken this one's place, or ``None``."""
    latest = tx.rollouts.latest(known.task)
    return None if latest is None or latest.rollout == known.rollout else latest


def _assignment(rollout: RolloutRecord, device: str, stage: int, export: Export, now_s: float) -> AssignmentRecord:
    return AssignmentRecord(
        number=0,
        rollout=rollout.rollout,
        release=rollout.release,
        task=rollout.task,
        device=device,
        stage=stage,
        export=export.name,
        submodel=export.submodel,
        manifest=export.manifest,
        parameters=export.parameters,
        status=AssignmentStatus.PENDING,
        changed_s=now_s,
    )
