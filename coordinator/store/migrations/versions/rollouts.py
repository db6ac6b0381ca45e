"""A release is one for all devices, which rollouts assign; what was a release to one device becomes an assignment."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"
branch_labels = None
depends_on = None

_KEPT = "task, device, submodel, manifest, report, parameters"


def upgrade() -> None:
    """What devices have of before is history, without a rollout."""
    op.execute("CREATE TABLE releases_before AS SELECT * FROM releases")  # a renamed one would keep its key's name
    op.drop_table("releases")
    _releases()
    _assignments()
    op.execute(
        f"INSERT INTO assignments (number, release, stage, export, reason, changed_s, status, {_KEPT}) "  # noqa: S608
        "SELECT release, release, 0, '', '', 0, CASE status WHEN 'installed' THEN 'healthy' "
        f"WHEN 'failed' THEN 'rolled-back' ELSE status END, {_KEPT} FROM releases_before"
    )
    _go_on_from("assignments", "number")
    op.drop_table("releases_before")
    for columns in (["task", "device", "number"], ["device"], ["rollout"]):
        op.create_index(f"ix_assignments_{'_'.join(columns)}", "assignments", columns)


def downgrade() -> None:
    """Each device with what it was told last of each task."""
    op.execute("CREATE TABLE assignments_after AS SELECT * FROM assignments")
    for table in ("assignments", "rollouts", "releases", "roots"):
        op.drop_table(table)
    op.create_table(
        "releases",
        sa.Column("release", sa.Integer, primary_key=True),
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.name"), nullable=False),
        sa.Column("device", sa.String(64), sa.ForeignKey("devices.id"), nullable=False),
        sa.Column("submodel", sa.Text, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("report", sa.Text),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.execute(
        f"INSERT INTO releases (release, status, {_KEPT}) "  # noqa: S608
        "SELECT number, CASE status WHEN 'healthy' THEN 'installed' WHEN 'pending' THEN 'sent' WHEN 'sent' THEN 'sent' "
        f"WHEN 'trying' THEN 'sent' ELSE 'failed' END, {_KEPT} FROM assignments_after"
    )
    _go_on_from("releases", "release")
    op.drop_table("assignments_after")
    for columns in (["task", "device", "release"], ["device"]):
        op.create_index(f"ix_releases_{'_'.join(columns)}", "releases", columns)


def _releases() -> None:
    op.create_table(
        "roots",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
    )
    op.create_table(
        "releases",
        sa.Column("release", sa.Integer, primary_key=True),
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.name"), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.Column("signatures", sa.Text, nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "rollouts",
        sa.Column("rollout", sa.Integer, primary_key=True),
        sa.Column("release", sa.Integer, sa.ForeignKey("releases.release"), nullable=False),
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.name"), nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )


def _assignments() -> None:
    op.create_table(
        "assignments",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("rollout", sa.Integer, sa.ForeignKey("rollouts.rollout")),
        sa.Column("release", sa.Integer, nullable=False),
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.name"), nullable=False),
        sa.Column("device", sa.String(64), sa.ForeignKey("devices.id"), nullable=False),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("export", sa.String(64), nullable=False),
        sa.Column("submodel", sa.Text, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("report", sa.Text),
        sa.Column("changed_s", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )


def _go_on_from(table: str, number: str) -> None:
    """PostgreSQL does not count what was inserted with its number; SQLite does."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"SELECT setval(pg_get_serial_sequence('{table}', '{number}'), max({number})) FROM {table} "  # noqa: S608
            f"HAVING max({number}) IS NOT NULL"
        )
