"""A small carrier side with one customer, one gateway and one NAS, over real SQLite and real files."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import attrs
import pytest
import sqlalchemy as sa

from carrier.compose import Carrier, CarrierUrls, open_carrier
from carrier.engines.sql.database import open_database
from carrier.engines.sql.migrate import migrate
from carrier.engines.sql.schema import line_change, metadata
from carrier.lines.addresses import Prefix
from carrier.lines.gateways import enrolment_proof
from carrier.lines.outcomes import GatewayEnrolled
from carrier.lines.ports import GatewayClaim
from carrier.lines.tables import AccessType, Region
from carrier.storage import facts
from carrier.storage.authority import Caller
from carrier.storage.outcomes import OpeningNotice, Refused
from carrier.storage.packs import PackPut, put_pack
from carrier.storage.receipts import ReceiptSigner
from runtime.clock import ManualClock
from wire.ids import ContractId, CustomerId, GatewaySerial
from wire.signing import SigningKey, generate_key
from wire.statement import Audience, Kind, make_statement, to_header
from wire.storage import (
    DeviceEnrol,
    DeviceEnrolled,
    GatewayRelay,
    SessionOpen,
    SessionOpened,
    join_commit,
    sign_receipt_key,
    to_base64,
)
from wire.vault.pack import PackItem, pack_header, sign_trailer
from wire.vault.root import GenerationRoot, Manifest, sign_root
from wire.vault.session import DeviceCert, SessionHeader, sign_device_cert, sign_header

POSTGRES_URL = os.environ.get("HGW_TEST_POSTGRES_URL", "")
"""`postgresql+psycopg://…` of an empty database: the same tests then run on PostgreSQL instead of SQLite."""

NOW_S = 1_790_000_000
HOME = "2001:db8:1:100:0:5e00:53ff:1"
HOME_PREFIX = "2001:db8:1:100::/56"
SECRET = b"factory secret of GW"
GIB = 1 << 30


@attrs.define
class Nas:
    """A NAS of one contract: its keys and how it makes packs, headers and roots."""

    contract: ContractId
    contract_key: SigningKey
    epoch: str = attrs.field(factory=lambda: os.urandom(16).hex())
    key: SigningKey = attrs.field(factory=generate_key)
    box_key: bytes = b"b" * 32

    @property
    def cert(self) -> bytes:
        return sign_device_cert(
            self.contract_key,
            DeviceCert(
                contract=self.contract.text, device_key=self.key.public.hex(), name="nas", issued_at=NOW_S
            ),
        )

    def header(self, backup_set: str = "home", session: str | None = None) -> bytes:
        header = SessionHeader(
            contract=self.contract.text,
            device_cert=to_base64(self.cert),
            epoch=self.epoch,
            session=session or os.urandom(16).hex(),
            backup_set=backup_set,
            sequence=1,
            created_at=NOW_S,
            box_key=self.box_key.hex(),
            sealed=to_base64(b"sealed"),
        )
        return sign_header(self.key, header)

    def pack(self, session: str, chunks: list[bytes], *, frame_bytes: int = 200) -> bytes:
        data = pack_header(bytes.fromhex(session))
        items = []
        for name in chunks:
            items.append(PackItem(name, len(data), frame_bytes))
            data += os.urandom(frame_bytes)
        return data + sign_trailer(
            self.key,
            session=bytes.fromhex(session),
            body_sha256=hashlib.sha256(data).digest(),
            items=items,
        )

    def commit_body(
        self,
        session: str,
        refs: list[bytes],
        *,
        sequence: int = 1,
        parent: str | None = None,
        backup_set: str = "home",
        epoch: str | None = None,
        files: int = 1,
    ) -> bytes:
        names = sorted(set(refs))
        root = GenerationRoot(
            contract=self.contract.text,
            backup_set=backup_set,
            device_key=self.key.public.hex(),
            epoch=epoch or self.epoch,
            sequence=sequence,
            session=session,
            created_at=NOW_S,
            parent=parent,
            manifest=Manifest(depth=0, items=(), bytes=0),
            files=files,
            logical_bytes=0,
            complete=True,
            refs_count=len(names),
            refs_sha256=hashlib.sha256(b"".join(names)).hexdigest(),
        )
        return join_commit(sign_root(self.key, root), tuple(names))


@attrs.define
class World:
    """The carrier side and what stands before it."""

    directory: Path
    clock: ManualClock
    root_key: SigningKey
    carrier: Carrier
    gateway_key: SigningKey
    customer: CustomerId
    contract: ContractId
    notice: OpeningNotice
    nas: Nas
    ports: list[int] = attrs.field(factory=list)
    clients: list = attrs.field(factory=list)

    @property
    def storage(self):
        return self.carrier.storage

    def add_customer(self, digits: int, prefix: str) -> CustomerId:
        customer = CustomerId.parse(f"CAF{digits:010d}")
        self.carrier.registry.add_line(customer, Region.EAST, AccessType.HIKARI_NEXT)
        self.carrier.registry.add_prefix(customer, Prefix.parse(prefix))
        self.carrier.directory.refresh()
        return customer

    def add_gateway(self, customer: CustomerId, serial: str) -> SigningKey:
        key = generate_key()
        self.carrier.registry.add_gateway_contract(
            customer, GatewaySerial.parse(serial), "PR-500", "KI", SECRET
        )
        line = self.carrier.registry.find_line(customer)
        done = self.carrier.registry.enrol_gateway(line, self.claim(serial, key))
        assert isinstance(done, GatewayEnrolled)
        self.carrier.directory.refresh()
        return key

    def claim(self, serial: str, key: SigningKey, **changes) -> GatewayClaim:
        nonce = os.urandom(16)
        claim = GatewayClaim(
            serial=GatewaySerial.parse(serial),
            model="PR-500",
            maker="KI",
            proof=enrolment_proof(SECRET, key.public, nonce),
            key=key.public,
            nonce=nonce,
        )
        return attrs.evolve(claim, **changes)

    def caller(self, path: str, blob: bytes, *, peer: str = HOME, key: SigningKey | None = None) -> Caller:
        statement = make_statement(
            key or self.gateway_key,
            Kind.GATEWAY_RELAY,
            Audience.STORAGE,
            now_s=self.clock.now_s(),
            nonce=os.urandom(16),
            body=GatewayRelay(
                method="POST", path=f"/storage/v1/{path}", body_sha256=hashlib.sha256(blob).hexdigest()
            ),
        )
        return Caller(peer, to_header(statement))

    def enrol_statement(self, nas: Nas | None = None, code: str | None = None, **changes) -> bytes:
        nas = nas or self.nas
        body = {
            "contract": nas.contract.text,
            "enrolment_code": code or self.notice.enrolment_code,
            "device_cert": to_base64(nas.cert),
            "contract_box_key": nas.box_key.hex(),
            "contract_sign_key": nas.contract_key.public.hex(),
        }
        return self.statement(nas.key, Kind.DEVICE_ENROL, DeviceEnrol(**{**body, **changes}))

    def session_statement(
        self, nas: Nas | None = None, mode: str = "append", backup_set: str = "home", header=None, **changes
    ) -> bytes:
        nas = nas or self.nas
        if mode == "append" and header is None:
            header = nas.header(backup_set)
        body = {
            "contract": nas.contract.text,
            "backup_set": backup_set,
            "mode": mode,
            "session_header": None if header is None else to_base64(header),
        }
        return self.statement(nas.key, Kind.SESSION_OPEN, SessionOpen(**{**body, **changes}))

    def statement(self, key, kind, body) -> bytes:
        return make_statement(
            key, kind, Audience.STORAGE, now_s=self.clock.now_s(), nonce=os.urandom(16), body=body
        )

    async def enrol(self, nas: Nas | None = None, code: str | None = None):
        blob = self.enrol_statement(nas, code)
        return await self.storage.enrol_device(self.caller("devices", blob), blob)

    async def open(self, nas: Nas | None = None, **options) -> SessionOpened:
        blob = self.session_statement(nas, **options)
        opened = await self.storage.open_session(self.caller("sessions", blob), blob)
        assert isinstance(opened, SessionOpened), opened
        return opened

    async def session(self, opened: SessionOpened, mode=None, peer: str = HOME) -> facts.SessionFacts:
        given = await self.storage.check(Caller(peer), opened.session, opened.token, mode)
        assert isinstance(given, facts.SessionFacts), given
        return given

    async def put(self, given: facts.SessionFacts, data: bytes, **options) -> PackPut | Refused:
        name = options.get("name", hashlib.sha256(data).hexdigest())
        return await put_pack(self.storage, given, name, options.get("size", len(data)), pieces(data))

    async def store(self, given: facts.SessionFacts, chunks: list[bytes], **options) -> bytes:
        """Store a pack of these chunks and return its name."""
        data = self.nas.pack(given.session.text, chunks, **options)
        done = await self.put(given, data)
        assert isinstance(done, PackPut), done
        return hashlib.sha256(data).digest()

    def dump(self) -> list[str]:
        """Every row of every table but spent nonces and alarms: what a refused request must not change."""
        rows = []
        with self.carrier.database.read() as connection:
            for table in metadata.sorted_tables:
                if table.name not in {"nonce", "gateway_alarm", "line_change"}:
                    keys = [column.name for column in table.primary_key]
                    for row in connection.execute(sa.select(table).order_by(*keys)):
                        fields = {
                            key: value.hex() if isinstance(value, bytes) else value
                            for key, value in row._mapping.items()
                        }
                        rows.append(f"{table.name} {fields}")
        return rows

    def blob_names(self) -> list[str]:
        return sorted(blob.key for blob in self.storage.blobs.list_blobs())


async def pieces(data: bytes, size: int = 65_536):
    for start in range(0, len(data), size):
        yield data[start : start + size]


def receipt_signer(root_key: SigningKey) -> ReceiptSigner:
    key = generate_key()
    cert = sign_receipt_key(root_key, key.public, not_after=NOW_S + 10**8)
    return ReceiptSigner(key, cert, root_key.public)


def make_world(directory: Path, plan: str = "10gb") -> World:
    clock = ManualClock(unix_s=NOW_S)
    root_key = generate_key()
    urls = CarrierUrls(POSTGRES_URL or f"sqlite:///{directory}/carrier.db", f"file://{directory}/blobs")
    carrier = open_carrier(urls, clock, receipt_signer(root_key))
    customer = CustomerId.parse("CAF0000000001")
    contract = ContractId.parse("AZK0000000001")
    world = World(
        directory,
        clock,
        root_key,
        carrier,
        generate_key(),
        customer,
        contract,
        None,
        Nas(contract, generate_key()),
    )
    world.add_customer(1, HOME_PREFIX)
    world.gateway_key = world.add_gateway(customer, "GW00000001")
    world.notice = carrier.admin.add_contract(contract, plan, customer)
    return world


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """A database with all tables and nothing in them: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("migrated") / "carrier.db"
    database = open_database(POSTGRES_URL or f"sqlite:///{path}")
    migrate(database)
    database.close()
    return path


def empty_database(migrated: Path, directory: Path) -> None:
    """Give the test a database without rows."""
    if not POSTGRES_URL:
        shutil.copy(migrated, directory / "carrier.db")
        return
    database = open_database(POSTGRES_URL)
    with database.write() as connection:
        names = ", ".join(table.name for table in metadata.sorted_tables)
        connection.execute(sa.text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        connection.execute(sa.insert(line_change).values(one=1, counter=0))
    database.close()


@pytest.fixture
def new_world(tmp_path, migrated):
    """Make a world in the test's directory, with another plan if asked."""
    worlds = []

    def make(plan: str = "10gb") -> World:
        empty_database(migrated, tmp_path)
        world = make_world(tmp_path, plan)
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        world.carrier.close()


@pytest.fixture
def world(new_world) -> World:
    return new_world()


@pytest.fixture
async def enrolled(world) -> World:
    """A world whose NAS is enrolled."""
    assert isinstance(await world.enrol(), DeviceEnrolled)
    return world
