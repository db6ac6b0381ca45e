"""What Alembic runs for every command: the revisions, in the transaction of the connection that it is given."""

from __future__ import annotations

from alembic import context

from coordinator.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a table by making another one
)
with context.begin_transaction():
    context.run_migrations()
