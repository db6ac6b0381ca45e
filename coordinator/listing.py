"""The content of the store as rows, for tables in a terminal and for JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from coordinator.config import TaskConfig, read_task
from coordinator.delivery.approving import known_release, manifest_of, signers
from coordinator.delivery.starting import known_rollout
from coordinator.fleet.authority import span_of
from coordinator.fleet.devices import known_device
from coordinator.fleet.folder import Fleet
from coordinator.rounds.tasks import known_task
from coordinator.store.database import Store, Transaction
from coordinator.store.records import ReleaseRecord, RolloutRecord, TaskRecord
from coordinator.store.states import Outcome, Phase
from edge_sdk.protocol.messages import Snapshot
from edge_sdk.protocol.releases import Root, read
from edge_sdk.protocol.signing import Envelope

Cell = str | int | float | bool | None
Row = dict[str, Cell]
_SPARE = (
    *("runtime", "training_memory_mib", "battery", "charging", "temperature_c", "throttled", "gflops", "accelerator"),
    "link_kb_per_s",
)
_DEVICE_COLUMNS = (
    ("device", "device", "{}"),
    ("profile", "profile", "{}"),
    ("online", "online", "{}"),
    ("seen\ns ago", "last_seen_s_ago", "{}"),
    ("runtime", "runtime", "{}"),
    ("train\nMiB", "training_memory_mib", "{}"),
    ("battery", "battery", "{:.0%}"),
    ("°C", "temperature_c", "{:.0f}"),
    ("slowed\ndown", "throttled", "{}"),
    ("GFLOP\n/s", "gflops", "{:.1f}"),
    ("link\nkB/s", "link_kb_per_s", "{:.0f}"),
    ("release", "release", "{}"),
)
"""The heading of each column, its key in the row, and its format."""
_ANY_WIDTH = 1 << 20  # terminal columns, more than any table takes
_NARROW = 2  # table columns: a name and a value


def device_rows(store: Store, now_s: float) -> list[Row]:
    """One row per device: its profile and state, what it has to spare, and the release that it runs.

    Unknown values are ``None``.
    """
    with store.reading() as tx:
        running = tx.assignments.running()
        return [
            {
                "device": known.id,
                "profile": known.profile,
                "group": known.group,
                "online": known.online,
                "revoked": known.revoked_s is not None,
                "last_seen_s_ago": round(now_s - known.last_seen_s) if known.has_said_hello else None,
                **_spare(known.snapshot),
                "memory_factor": round(known.memory_factor, 2),
                "release": running.get(known.id),
            }
            for known in tx.devices.all()
        ]


def show_devices(rows: Sequence[Row]) -> None:
    """Print the main columns of ``rows``, which fit into 100 characters.

    Columns for which no device has a value are left out. If space is short, the profile's name is cut first.
    """
    said = {name for row in rows for name in row if name not in _SPARE or row[name] is not None}
    columns = [column for column in _DEVICE_COLUMNS if column[1] in said]
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for heading, name, _ in columns:
        is_name = name in {"device", "profile"}
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=name != "profile")
    for row in rows:
        shown = row | ({"online": "revoked"} if row["revoked"] else {})
        cells = (_worded(shown[name], form) for _, name, form in columns)
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells))
    Console().print(table if rows else "nothing yet")


def round_rows(store: Store, task: str | None) -> list[Row]:
    """One row per round of ``task``, or of every task if ``None``. Raises ``ConfigurationError`` for an unknown one."""
    with store.reading() as tx:
        names = [known.name for known in tx.tasks.all()] if task is None else [known_task(tx, task).name]
        return [row for name in names for row in _round_rows(tx, name)]


def task_rows(store: Store) -> list[Row]:
    """One row per task."""
    with store.reading() as tx:
        return [_task_row(tx, known) for known in tx.tasks.all()]


def state_rows(store: Store, task: str) -> list[Row]:
    """One row: the status of ``task``, and why it failed. Raises ``ConfigurationError`` if there is no such task."""
    with store.reading() as tx:
        known = known_task(tx, task)
        return [_task_row(tx, known) | {"failure": known.failure}]


def setting_rows(store: Store, task: str) -> list[Row]:
    """One row per setting of ``task``, by its name in TOML. Raises ``ConfigurationError`` if there is no such task."""
    with store.reading() as tx:
        return settings_of(read_task(known_task(tx, task).config))


def settings_of(config: TaskConfig) -> list[Row]:
    """:func:`setting_rows`, but from a task's settings."""
    return [{"setting": name, "value": _plain(value)} for name, value in _flat("", msgspec.to_builtins(config))]


def version_rows(store: Store, task: str) -> list[Row]:
    """One row per version of ``task``: its accuracy by width, from 0 to 1."""
    with store.reading() as tx:
        judged = tx.evaluations.all(task)
    return [
        {"version": number} | {one.width: round(one.accuracy, 4) for one in found}
        for number, found in groupby(judged, key=lambda one: one.round)
    ]


def release_rows(store: Store) -> list[Row]:
    """One row per release."""
    with store.reading() as tx:
        return [_release_row(tx, known) for known in tx.releases.all()]


def export_rows(store: Store, release: int) -> list[Row]:
    """One row per export of a release. Raises ``ConfigurationError`` if there is no such release."""
    with store.reading() as tx:
        manifest = manifest_of(known_release(tx, release))
    return [
        {
            "export": export.name,
            "heads/FFN": f"{max(export.submodel.heads)}/{max(export.submodel.ffn)}",
            "layers": len(export.submodel.layers),
            "parameters": export.parameters,
            "precision": export.precision.value,
            "mib": round(export.size_bytes / 2**20, 2),
            "memory_mib": export.inference_memory_bytes >> 20,
            "accuracy": round(export.accuracy, 4),
            "samples": export.samples,
            "onnxruntime": export.onnxruntime,
        }
        for export in manifest.exports
    ]


def rollout_rows(store: Store) -> list[Row]:
    """One row per rollout, with the number of its devices by status."""
    with store.reading() as tx:
        return [_rollout_row(tx, known) for known in tx.rollouts.all()]


def assignment_rows(store: Store, rollout: int) -> list[Row]:
    """One row per device of a rollout, by stage. Raises ``ConfigurationError`` if there is no such rollout."""
    with store.reading() as tx:
        plan = known_rollout(tx, rollout).plan
        found = sorted(tx.assignments.of_rollout(rollout), key=lambda known: (known.stage, known.device))
    return [
        {
            "device": known.device,
            "stage": plan.stages[known.stage],
            "export": known.export,
            "status": known.status.value,
            "accuracy": None if known.report is None else _rounded(known.report.accuracy, digits=4),
            "latency_ms": None if known.report is None else _rounded(known.report.latency_ms),
            "reason": known.reason or None,
        }
        for known in found
    ]


def root_rows(envelope: Envelope) -> list[Row]:
    """One row per key of a root of trust."""
    root = read(Root, envelope.payload)
    signed = {each.key for each in envelope.signatures}
    return [
        {
            "root": root.version,
            "expires": datetime.fromtimestamp(root.expires_s).astimezone().date().isoformat(),
            "role": role,
            "takes": f"{keys.threshold} of {len(keys.keys)}",
            "key": key.hex(),
            "has_signed": key in signed,
        }
        for role, keys in (("root", root.root), ("release", root.release), ("round", root.round))
        for key in keys.keys
    ]


def token_rows(store: Store, now_s: float) -> list[Row]:
    """One row per token."""
    with store.reading() as tx:
        return [
            {
                "token": known.name,
                "role": known.role.value,
                "made_days_ago": round((now_s - known.created_s) / 86400, 1),
                "good_for_days": None if known.expires_s is None else round((known.expires_s - now_s) / 86400, 1),
            }
            for known in tx.tokens.all()
        ]


def fleet_rows(fleet: Fleet) -> list[Row]:
    """One row with what a fleet with an authority tells its devices."""
    _, ends_s = span_of(fleet.authority.certificate)
    return [
        {
            "fleet": fleet.settings.name,
            "open": fleet.settings.is_open,
            "broker": fleet.settings.broker,
            "api": fleet.settings.api,
            "authority": fleet.authority.fingerprint,
            "good_until": _at(ends_s),
        }
    ]


def enrolment_rows(store: Store) -> list[Row]:
    """One row per one-time token, without its secret."""
    with store.reading() as tx:
        return [
            {
                "token": known.id,
                "device": known.device,
                "group": known.group,
                "expires": _at(known.expires_s),
                "used": None if known.used_s is None else _at(known.used_s),
                "used_by": known.used_by,
            }
            for known in tx.enrolments.all()
        ]


def certificate_rows(store: Store, device: str) -> list[Row]:
    """One row per certificate of a device, oldest first. Raises ``ConfigurationError`` if the device is not known."""
    with store.reading() as tx:
        known_device(tx, device)
        return [
            {
                "certificate": known.serial,
                "issued": _at(known.issued_s),
                "expires": _at(known.expires_s),
                "revoked": None if known.revoked_s is None else _at(known.revoked_s),
            }
            for known in tx.certificates.of_device(device)
        ]


def audit_rows(store: Store, most: int) -> list[Row]:
    """One row per change, newest first."""
    with store.reading() as tx:
        return [
            {
                "entry": known.entry,
                "at": _at(known.at_s),
                "who": known.who,
                "action": known.action,
                "subject": known.subject,
            }
            for known in tx.audit.newest(most)
        ]


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print ``rows`` as JSON, or as a table; if a word would not fit into its column, as blocks of names and values."""
    if as_json:
        _print_json(rows)
        return
    console = Console()
    if not rows:
        console.print("nothing yet")
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row.values()))
    whole = Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).minimum
    is_a_table = len(rows[0]) <= _NARROW or whole <= console.width
    console.print(table if is_a_table else Group(*map(_upright, rows)))


def show_together(parts: Mapping[str, Sequence[Row]], *, as_json: bool) -> None:
    """:func:`show` each of ``parts``, one after the other; as JSON, all of them in one object, by their names."""
    if as_json:
        _print_json(parts)
    else:
        for rows in parts.values():
            show(rows, as_json=False)


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def _upright(row: Row) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, cell in row.items():
        table.add_row(name, _text(cell))
    table.add_row()
    return table


def _text(cell: Cell) -> Text:
    return Text("-" if cell is None else str(cell))


def _release_row(tx: Transaction, known: ReleaseRecord) -> Row:
    manifest, (have, needed) = manifest_of(known), signers(tx, known)
    return {
        "release": known.release,
        "task": known.task,
        "version": known.version,
        "groups": ", ".join(manifest.groups) or "all",
        "exports": len(manifest.exports),
        "mib": round(sum(export.size_bytes for export in manifest.exports) / 2**20, 1),
        "accuracy": round(max(export.accuracy for export in manifest.exports), 4),
        "signatures": f"{have} of {needed}",
        "approved": have >= needed,
        "expires": datetime.fromtimestamp(manifest.expires_s).astimezone().date().isoformat(),
    }


def _rollout_row(tx: Transaction, known: RolloutRecord) -> Row:
    found = tx.assignments.standings(known.rollout)
    return {
        "rollout": known.rollout,
        "release": known.release,
        "task": known.task,
        "status": known.status.value,
        "stage": known.plan.stages[known.stage],
        "devices": sum(found.values()),
        **{status.value: count for status, count in found.items()},
    }


def _at(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).astimezone().isoformat(" ", "seconds")


def _spare(snapshot: Snapshot | None) -> Row:
    """What the device last reported of itself; every value is ``None`` if it has reported nothing."""
    if snapshot is None:
        return dict.fromkeys(_SPARE)
    values: tuple[Cell, ...] = (
        snapshot.runtime.value,
        snapshot.training_memory_bytes >> 20,
        snapshot.battery_share,
        snapshot.charging,
        snapshot.temperature_c,
        snapshot.throttled,
        _rounded(snapshot.gflops),
        snapshot.accelerator,
        _rounded(snapshot.link_bytes_per_s, 1e3),
    )
    return dict(zip(_SPARE, values, strict=True))


def _rounded(value: float | None, unit: float = 1.0, digits: int = 2) -> float | None:
    return None if value is None else round(value / unit, digits)


def _worded(value: Cell, form: str) -> str:
    if value is None:
        return "-"
    return ("no", "yes")[value] if isinstance(value, bool) else form.format(value)


def _round_rows(tx: Transaction, task: str) -> list[Row]:
    tally, uploaded_bytes = tx.offers.tally(task, after=0), tx.updates.uploaded_bytes(task, after=0)
    accuracy = {(one.round, one.width): round(one.accuracy, 4) for one in tx.evaluations.all(task)}
    return [
        {
            "task": task,
            "round": known.number,
            "phase": known.phase.value,
            "offers": sum(tally.get(known.number, {}).values()),
            "updates": tally.get(known.number, {}).get(Outcome.UPDATED, 0),
            "seconds": None if known.closed_s is None else round(known.closed_s - known.opened_s, 1),
            "uploaded_mib": round(uploaded_bytes.get(known.number, 0) / 2**20, 2),
            **{width: accuracy.get((known.number, width)) for width in ("full", "half", "quarter")},
        }
        for known in tx.rounds.all(task)
    ]


def _task_row(tx: Transaction, known: TaskRecord) -> Row:
    latest = tx.versions.latest(known.name)
    accuracy = (
        {}
        if latest is None
        else {one.width: round(one.accuracy, 4) for one in tx.evaluations.of_round(known.name, latest.number)}
    )
    return {
        "task": known.name,
        "status": known.status.value,
        "rounds": tx.rounds.count(known.name, Phase.CLOSED),
        "of": read_task(known.config).rounds,
        "version": None if latest is None else latest.number,
        **{width: accuracy.get(width) for width in ("full", "half", "quarter")},
    }


def _flat(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(f"{prefix}{name}.", inner)
        else:
            yield f"{prefix}{name}", inner


def _plain(value: object) -> Cell:
    return value if isinstance(value, str | int | float | bool | None) else msgspec.json.encode(value).decode()
