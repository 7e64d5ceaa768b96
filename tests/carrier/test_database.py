"""Opening and migrating the carrier's database; what it refuses (design §7)."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from carrier.compose import CarrierUrls, open_blobs, open_carrier
from carrier.engines.sql.database import open_database
from carrier.engines.sql.migrate import current_version, migrate, newest_version
from carrier.engines.sql.schema import line_change, metadata
from carrier.errors import LocalCarrierError, UnavailableError
from carrier.storage.receipts import ReceiptSigner
from runtime.clock import ManualClock
from wire.signing import generate_key
from wire.storage import sign_receipt_key


@pytest.fixture
def database(tmp_path):
    database = open_database(f"sqlite:///{tmp_path}/carrier.db")
    yield database
    database.close()


def test_migrations_build_exactly_the_schema(database):
    assert migrate(database) == newest_version()
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_second_migration_changes_nothing(database):
    migrate(database)
    with database.write() as connection:
        connection.execute(sa.update(line_change).values(counter=7))
    migrate(database)
    with database.read() as connection:
        assert connection.execute(sa.select(line_change.c.counter)).scalar_one() == 7
        assert current_version(connection) == newest_version()


def test_database_of_a_newer_program_is_refused(database):
    migrate(database)
    with database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LocalCarrierError, match="newer"):
        migrate(database)


def test_sqlite_is_opened_durable(database):
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_refused_transaction_leaves_nothing(database):
    migrate(database)
    with pytest.raises(RuntimeError), database.write() as connection:
        connection.execute(sa.update(line_change).values(counter=99))
        raise RuntimeError
    with database.read() as connection:
        assert connection.execute(sa.select(line_change.c.counter)).scalar_one() == 0


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y"])
def test_database_url_of_another_kind_is_refused(url):
    with pytest.raises((LocalCarrierError, sa.exc.ArgumentError)):
        open_database(url)


def test_database_that_cannot_be_opened_is_unavailable(tmp_path):
    database = open_database(f"sqlite:///{tmp_path}/no/such/directory/x.db")
    with pytest.raises(UnavailableError), database.read():
        pass
    database.close()


@pytest.mark.parametrize("url", ["/tmp/x", "file://host/x", "s3://bucket", "file:relative"])
def test_blob_url_of_another_kind_is_refused(url):
    with pytest.raises(LocalCarrierError):
        open_blobs(url)


@pytest.mark.parametrize("wrong", ["root", "key", "time"])
def test_receipt_key_that_is_not_delegated_now_is_refused_at_start(tmp_path, wrong):
    root, key = generate_key(), generate_key()
    not_after = 999 if wrong == "time" else 2000
    cert = sign_receipt_key(
        root, generate_key().public if wrong == "key" else key.public, not_after=not_after
    )
    signer = ReceiptSigner(key, cert, generate_key().public if wrong == "root" else root.public)
    urls = CarrierUrls(f"sqlite:///{tmp_path}/c.db", f"file://{tmp_path}/blobs")
    with pytest.raises(LocalCarrierError):
        open_carrier(urls, ManualClock(unix_s=1000), signer)
    assert not (tmp_path / "c.db").exists()
