"""Alembic's entry: runs the versions on the connection that `migrate` passes in, inside its transaction."""

from __future__ import annotations

from alembic import context

from deliver.engines.migrate import VERSION_TABLE
from deliver.engines.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=False,
    render_as_batch=True,
)
context.run_migrations()
