"""Bring ledger and Joint tables to the schema of this program: a chain of its own beside the carrier's.

Rules: forward only; each version is one file of explicit operations in `migrations/versions`; a database newer than
the program is refused, never touched. The version stands in `joint_version`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError

from carrier.engines.sql.database import Database
from runtime.errors import LocalError

SCRIPTS: Final = Path(__file__).parent / "migrations"
VERSION_TABLE: Final = "joint_version"


def migrate(database: Database) -> None:
    """Migrate to the newest version; a second call changes nothing.

    Raises `LocalError` when the database was written by a newer program.
    """
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with database.write() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise LocalError(f"database: written by a newer program: {error}") from error
