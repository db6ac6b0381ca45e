"""Who may enrol, which certificates devices have, and which devices are revoked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision = "5"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nobody is revoked."""
    op.add_column("devices", sa.Column("revoked_s", sa.Float))
    op.create_table(
        "enrolments",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("device", sa.String(64)),
        sa.Column("group", sa.String(64)),
        sa.Column("created_s", sa.Float, nullable=False),
        sa.Column("expires_s", sa.Float, nullable=False),
        sa.Column("used_s", sa.Float),
        sa.Column("used_by", sa.String(64)),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(40), primary_key=True),
        sa.Column("device", sa.String(64), sa.ForeignKey("devices.id"), nullable=False, index=True),
        sa.Column("issued_s", sa.Float, nullable=False),
        sa.Column("expires_s", sa.Float, nullable=False),
        sa.Column("revoked_s", sa.Float),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Without identities."""
    op.drop_table("certificates")
    op.drop_table("enrolments")
    op.drop_column("devices", "revoked_s")
