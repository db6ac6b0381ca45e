"""Creates a release on demand: any version of a task's model, exported for the classes of devices that are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coordinator.config import CoordinatorConfig, read_task
from coordinator.delivery.approving import record_release
from coordinator.delivery.exports import build_exports
from coordinator.delivery.roots import ensure_root
from coordinator.delivery.starting import budgets_of
from coordinator.fleet.folder import fleet_name
from coordinator.planning.planner import Planner, TaskCosts
from coordinator.store.database import Store
from edge_sdk.elastic.runtimes import Runtime
from edge_sdk.errors import ConfigurationError
from edge_sdk.protocol.releases import Precision
from edge_sdk.protocol.topics import check_name
from edge_sdk.transport.blob_folder import BlobFolder


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to release, and for whom.

    If ``version`` is ``None``, it is the newest of ``task``; if ``groups`` is empty, it is for all groups. ``fleet`` is
    as :func:`.fleet_name` takes it. The release is valid for ``days``. ``threads`` are the processor threads for
    exports and their evaluation.
    """

    task: str
    version: int | None
    groups: tuple[str, ...]
    precisions: tuple[Precision, ...]
    days: float
    fleet: str | None
    threads: int


def create_release(
    store: Store, state_dir: Path, wanted: Wanted, now_s: float, who: str, say: Callable[[str], None]
) -> int:
    """Export, evaluate and record a release, and return its number.

    Raises ``ConfigurationError`` if there is no such task or version, the version's blobs have been deleted, no known
    device can run any of it, or it is asked for another fleet than this one.
    """
    settings = CoordinatorConfig(state_dir=state_dir, broker="")
    blobs = BlobFolder(settings.blob_dir)
    with blobs.in_use():
        return _created(store, settings, blobs, wanted, now_s, who, say)


def _created(
    store: Store,
    settings: CoordinatorConfig,
    blobs: BlobFolder,
    wanted: Wanted,
    now_s: float,
    who: str,
    say: Callable[[str], None],
) -> int:
    from coordinator.models.run import prepare  # noqa: PLC0415 - seconds of import, after what it needs was found

    fleet = fleet_name(settings.state_dir, wanted.fleet)
    ensure_root(store, settings.state_dir, now_s)
    for group in wanted.groups:
        check_name(group, "group")
    with store.reading() as tx:
        known = tx.tasks.get(wanted.task)
        number = wanted.version
        version = tx.versions.latest(wanted.task) if number is None else tx.versions.get(wanted.task, number)
        budgets = [budget for _, budget in budgets_of(tx, wanted.groups)]
    if known is None or version is None:
        named = "" if number is None else f" {number}"
        raise ConfigurationError(
            f"task {wanted.task!r} has no version{named}; see `coordinator task show {wanted.task}`"
        )
    if not budgets:
        raise ConfigurationError("no device is known that could run it; see `coordinator device list`")
    config = read_task(known.config)
    missing = [entry.digest[:16] for entry in version.blobs if not blobs.has(entry.digest)]
    if missing:
        raise ConfigurationError(f"version {version.number} of {wanted.task} is not kept any more; use a newer one")
    run, model = prepare(
        config, blobs, settings.template_cache, threads=wanted.threads, say=say, known=(version.number, version.blobs)
    )
    config = run.config
    costs = TaskCosts(run.costs, config.part, config.recipe, config.nesting, config.encoding)
    planner = Planner(costs, config.space, model.ordering.layer_ranking)
    exports = build_exports(run, model, *planner.of(Runtime.ONNX), budgets, wanted.precisions)
    if not exports:
        raise ConfigurationError(f"none of the {len(budgets)} devices has enough memory for {wanted.task}")
    with store.transaction() as tx:
        release = record_release(
            tx,
            wanted.task,
            (model.number, model.digest),
            exports,
            config.recipe,
            labels=run.foundation.labels,
            fleet=fleet,
            groups=wanted.groups,
            now_s=now_s,
            days=wanted.days,
        )
        tx.audit.note(now_s, who, "create release", f"{release} of {wanted.task}, version {model.number}")
    return release
