"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From an empty database."""
    _fleet_and_tasks()
    _rounds()
    _results()


def _fleet_and_tasks() -> None:
    op.create_table(
        "devices",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("profile", sa.String(64), nullable=False),
        sa.Column("session", sa.BigInteger, nullable=False),
        sa.Column("online", sa.Boolean, nullable=False),
        sa.Column("snapshot", sa.Text),
        sa.Column("memory_factor", sa.Float, nullable=False),
        sa.Column("last_seen_s", sa.Float, nullable=False),
    )
    op.create_table(
        "tasks",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("created_s", sa.Float, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("config", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.name"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("blobs", sa.Text, nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
    )


def _rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.name"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("base_version", sa.String(64), nullable=False),
        sa.Column("phase", sa.String(32), nullable=False),
        sa.Column("quorum", sa.Integer, nullable=False),
        sa.Column("opened_s", sa.Float, nullable=False),
        sa.Column("deadline_s", sa.Float, nullable=False),
        sa.Column("closed_s", sa.Float),
    )
    op.create_table(
        "offers",
        sa.Column("task", sa.String(64), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("device", sa.String(64), sa.ForeignKey("devices.id"), primary_key=True),
        sa.Column("submodel", sa.Text, nullable=False),
        sa.Column("predicted_memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("failure", sa.String(32)),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger),
        sa.Column("offered_s", sa.Float, nullable=False),
        sa.Column("answered_s", sa.Float),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("micro_batch_size", sa.Integer),
        sa.Column("max_steps", sa.Integer),
        sa.ForeignKeyConstraint(["task", "round"], ["rounds.task", "rounds.number"]),
    )
    op.create_table(
        "updates",
        sa.Column("update_id", sa.String(64), primary_key=True),
        sa.Column("task", sa.String(64), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("report", sa.Text, nullable=False),
        sa.Column("verdict", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("received_s", sa.Float, nullable=False),
        sa.UniqueConstraint("task", "round", "device"),
        sa.ForeignKeyConstraint(["task", "round", "device"], ["offers.task", "offers.round", "offers.device"]),
    )


def _results() -> None:
    op.create_table(
        "evaluations",
        sa.Column("task", sa.String(64), sa.ForeignKey("tasks.name"), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("width", sa.String(64), primary_key=True),
        sa.Column("parameters", sa.BigInteger, nullable=False),
        sa.Column("accuracy", sa.Float, nullable=False),
        sa.Column("loss", sa.Float, nullable=False),
        sa.Column("samples", sa.Integer, nullable=False),
    )
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
        sqlite_autoincrement=True,  # a number is never used twice: devices refuse what is not newer
    )


def downgrade() -> None:
    """To an empty database."""
    for table in ("releases", "evaluations", "updates", "offers", "rounds", "versions", "tasks", "devices"):
        op.drop_table(table)
