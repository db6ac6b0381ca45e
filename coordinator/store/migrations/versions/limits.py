"""Limits are named as the commands name them: ``min_examples`` of a task's data, ``max_accuracy_loss`` of a trial."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "10"
down_revision = "9"
branch_labels = None
depends_on = None

_DOCUMENTS = {"config": ("tasks", "name", sa.LargeBinary), "plan": ("rollouts", "rollout", sa.Text)}
_NAMES = {
    "least_examples": "min_examples",
    "least_accuracy": "min_accuracy",
    "most_accuracy_lost": "max_accuracy_loss",
    "most_latency_ms": "max_latency_ms",
}


def upgrade() -> None:
    """The same limits under their new names."""
    _rename(_NAMES)


def downgrade() -> None:
    """Under their old ones."""
    _rename({new: old for old, new in _NAMES.items()})


def _rename(names: dict[str, str]) -> None:
    """The documents are JSON, in which nothing but a key stands between quotes before a colon."""
    database = op.get_bind()
    for document, (name, key, kind) in _DOCUMENTS.items():
        table = sa.table(name, sa.column(key), sa.column(document, kind))
        for row in database.execute(sa.select(table)).all():
            renamed = _renamed(row[1], names)
            database.execute(sa.update(table).where(table.c[key] == row[0]).values({document: renamed}))


def _renamed(document: str | bytes, names: dict[str, str]) -> str | bytes:
    if isinstance(document, bytes):
        return str(_renamed(document.decode("latin-1"), names)).encode("latin-1")  # whatever the bytes are
    for old, new in names.items():
        document = document.replace(f'"{old}":', f'"{new}":')
    return document
