"""The migrated database is the one the code describes, and its ledger cannot be changed (X-10)."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from carrier.engines.sql.database import open_database
from deliver.engines.migrate import VERSION_TABLE, migrate
from deliver.engines.schema import metadata
from runtime.errors import LocalError


@pytest.fixture
def database(tmp_path):
    opened = open_database(f"sqlite:///{tmp_path}/joint.db")
    migrate(opened)
    yield opened
    opened.close()


def test_migrations_lead_to_the_tables_of_the_code_and_run_once(database):
    migrate(database)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize("table", ["ledger_event", "ledger_invoice", "ledger_posting"])
@pytest.mark.parametrize("change", ["DELETE FROM {}", "UPDATE {} SET payer = 'x'"])
def test_ledger_rows_cannot_be_changed(database, table, change):
    event = "INSERT INTO ledger_event (token, at_s, payer, data) VALUES ('t', 1, 'p', x'00')"
    invoice = "INSERT INTO ledger_invoice VALUES ('p', '2026-11', x'00', 1)"
    posting = "INSERT INTO ledger_posting VALUES ('p', '2026-11', 0, 'a', 1, 0)"
    with database.write() as connection:
        for statement in (event, invoice, posting):
            connection.execute(sa.text(statement))
    with pytest.raises(IntegrityError, match="append-only"), database.write() as connection:
        connection.execute(sa.text(change.format(table)))


def test_a_database_of_a_newer_program_is_refused(database):
    with database.write() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = 'joint_9999'"))
    with pytest.raises(LocalError, match="newer program"):
        migrate(database)
