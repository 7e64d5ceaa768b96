"""Put the carrier side together: the one module here that sees engines and services at once.

Rules: URLs in, open services out; tables are migrated and the receipt key's delegation checked before anything is
served. It does not do: configuration files, listeners, keys on disk (deliver).
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import attrs
import trio

from carrier.engines.blob_files import FilesBlobStore
from carrier.engines.sql.commit_store import SqlGenerationStore
from carrier.engines.sql.contracts_store import SqlContractStore
from carrier.engines.sql.database import Database, open_database
from carrier.engines.sql.gc_store import SqlGcStore
from carrier.engines.sql.lines_store import SqlLineStore
from carrier.engines.sql.migrate import migrate
from carrier.engines.sql.packs_store import SqlPackStore
from carrier.engines.sql.sessions_store import SqlSessionStore
from carrier.errors import LocalCarrierError
from carrier.events import ContractEvents
from carrier.lines.services import LineDirectory, LineRegistry
from carrier.storage.admin import StorageAdmin
from carrier.storage.ports import BlobStore, StorageStores
from carrier.storage.receipts import ReceiptSigner
from carrier.storage.services import StorageService
from carrier.worker import Worker
from runtime.clock import Clock


@attrs.frozen
class CarrierUrls:
    """`database`: `sqlite:////absolute/path` or `postgresql+psycopg://…`. `blobs`: `file:///absolute/path`."""

    database: str
    blobs: str


@attrs.frozen
class Carrier:
    """The open carrier side; see the package docstring for its use."""

    database: Database
    worker: Worker
    registry: LineRegistry
    directory: LineDirectory
    storage: StorageService
    admin: StorageAdmin
    events: ContractEvents

    async def start(self, nursery: trio.Nursery) -> None:
        """Read the line map once, then keep it fresh in `nursery` until that is cancelled."""
        await self.worker.run(self.directory.refresh)
        nursery.start_soon(self.directory.run)

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def open_carrier(
    urls: CarrierUrls, clock: Clock, receipts: ReceiptSigner, *, worker: Worker | None = None
) -> Carrier:
    """Migrate the database, open the blob store and return the services. Blocking; call before the loop or in a thread.

    Raises:
        LocalCarrierError: a URL of another kind, a database of a newer program, or a receipt key that is not delegated.
        UnavailableError: the database cannot be reached.
    """
    receipts.check(clock.now_s())
    database = open_database(urls.database)
    migrate(database)
    blobs = open_blobs(urls.blobs)
    return assemble(database, blobs, clock, receipts, worker or Worker())


def open_blobs(url: str) -> BlobStore:
    """Return the opened blob store at `url`; raises `LocalCarrierError` unless it is `file:///absolute/path`."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
        raise LocalCarrierError(f"blobs: expected file:///absolute/path, got {ascii(url)[:120]}")
    store = FilesBlobStore(Path(unquote(parts.path)))
    store.open()
    return store


def assemble(
    database: Database, blobs: BlobStore, clock: Clock, receipts: ReceiptSigner, worker: Worker
) -> Carrier:
    """Return the services over engines that are open already."""
    lines = SqlLineStore(database)
    stores = StorageStores(
        contracts=SqlContractStore(database),
        sessions=SqlSessionStore(database),
        packs=SqlPackStore(database),
        generations=SqlGenerationStore(database),
        gc=SqlGcStore(database),
    )
    registry = LineRegistry(lines, clock)
    directory = LineDirectory(lines, clock, worker)
    admin = StorageAdmin(stores, blobs, clock, receipts.service_root)
    return Carrier(
        database=database,
        worker=worker,
        registry=registry,
        directory=directory,
        storage=StorageService(stores, blobs, directory, receipts, clock, worker),
        admin=admin,
        events=ContractEvents(registry, admin),
    )
