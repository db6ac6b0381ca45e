"""What a page asks about the devices on it is found without reading every offer and release."""

from __future__ import annotations

from alembic import op

revision = "4"
down_revision = "3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Three indexes."""
    op.create_index("ix_offers_device_offered_s", "offers", ["device", "offered_s"])
    op.create_index("ix_releases_task_device_release", "releases", ["task", "device", "release"])
    op.create_index("ix_releases_device", "releases", ["device"])


def downgrade() -> None:
    """Without them."""
    op.drop_index("ix_releases_device", "releases")
    op.drop_index("ix_releases_task_device_release", "releases")
    op.drop_index("ix_offers_device_offered_s", "offers")
