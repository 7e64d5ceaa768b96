"""Alembic's entry: runs the versions on the connection that `migrate` passes in, inside its transaction."""

from __future__ import annotations

from alembic import context

from carrier.engines.sql.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,
    render_as_batch=True,
)
context.run_migrations()
