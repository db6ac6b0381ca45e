"""A task that failed says why."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "7"
down_revision = "6"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of those that failed before it is not known."""
    op.add_column("tasks", sa.Column("failure", sa.Text))


def downgrade() -> None:
    """Without reasons."""
    op.drop_column("tasks", "failure")
