"""What the store knows, as rows for a terminal or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from coordinator.store.database import Store, Transaction
from coordinator.store.records import RoundRecord

Cell = str | int | float | bool | None
Row = dict[str, Cell]


def device_rows(store: Store, now_s: float) -> list[Row]:
    """One row a device: what it is, what it can spare, what it runs."""
    with store.reading() as tx:
        return [
            {
                "device": known.id,
                "profile": known.profile,
                "online": known.online,
                "last_seen_s_ago": round(now_s - known.last_seen_s),
                "training_memory_mib": known.snapshot.training_memory_bytes >> 20 if known.snapshot else None,
                "battery": known.snapshot.battery_share if known.snapshot else None,
                "memory_factor": round(known.memory_factor, 2),
                "release": latest.release if (latest := tx.releases.latest(known.id)) else None,
            }
            for known in tx.devices.all()
        ]


def round_rows(store: Store, task: str | None) -> list[Row]:
    """One row a round of every task, or of ``task`` alone."""
    with store.reading() as tx:
        names = [known.name for known in tx.tasks.all() if task in {None, known.name}]
        return [_round_row(tx, known) for name in names for known in tx.rounds.all(name)]


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print ``rows``; as JSON, one array."""
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows)).decode() + "\n")
        return
    table = Table(*(rows[0] if rows else ("nothing yet",)))
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row.values()))
    Console().print(table)


def _round_row(tx: Transaction, known: RoundRecord) -> Row:
    offers = tx.offers.of_round(known.task, known.number)
    updates = tx.updates.accepted(known.task, known.number)
    accuracy = {found.width: found.accuracy for found in tx.evaluations.of_round(known.task, known.number)}
    return {
        "task": known.task,
        "round": known.number,
        "phase": known.phase.value,
        "offers": len(offers),
        "updates": len(updates),
        "seconds": None if known.closed_s is None else round(known.closed_s - known.opened_s, 1),
        "uploaded_mib": sum(update.size_bytes for update in updates) >> 20,
        **{width: accuracy.get(width) and round(accuracy[width], 4) for width in ("full", "half", "quarter")},
    }
