"""Every device is in a group."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Those that are known are in ``default``."""
    op.add_column("devices", sa.Column("group", sa.String(64), nullable=False, server_default="default"))


def downgrade() -> None:
    """Without groups."""
    op.drop_column("devices", "group")
