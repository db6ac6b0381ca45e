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
    with op.batch_alter_table("devices") as devices:
        devices.add_column(sa.Column("group", sa.String(64), nullable=False, server_default="default"))


def downgrade() -> None:
    """Without groups."""
    with op.batch_alter_table("devices") as devices:
        devices.drop_column("group")
