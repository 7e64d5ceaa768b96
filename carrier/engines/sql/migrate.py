"""Bring a database to the schema of this program with Alembic (design §7).

Rules: forward only; each version is one file of explicit operations in `migrations/versions`; a database newer than
the program is refused, never touched.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from carrier.engines.sql.database import Database
from carrier.errors import LocalCarrierError

SCRIPTS: Final = Path(__file__).parent / "migrations"


def migrate(database: Database) -> str:
    """Migrate to the newest version and return its name; a second call changes nothing.

    Raises `LocalCarrierError` when the database was written by a newer program.
    """
    with database.write() as connection:
        found = current_version(connection)
        if found == newest_version():
            return found
        config = _config()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise LocalCarrierError(f"database: written by a newer program: {error}") from error
        return current_version(connection)


def current_version(connection: sa.Connection) -> str:
    """Return the version the database is at, or an empty string."""
    return MigrationContext.configure(connection).get_current_revision() or ""


@functools.cache
def newest_version() -> str:
    """Return the version this program needs."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    return config
