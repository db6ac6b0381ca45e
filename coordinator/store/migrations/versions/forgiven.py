"""A task that was started again remembers which of its rounds that came to nothing count no more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "9"
down_revision = "8"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """None of what was before is forgiven."""
    op.add_column("tasks", sa.Column("forgiven", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    """All of them count."""
    op.drop_column("tasks", "forgiven")
