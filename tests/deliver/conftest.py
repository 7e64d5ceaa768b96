"""A carrier side made by `deliver init`, one operator with real keys, and a server on [::1]."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import time
import types
from pathlib import Path

import attrs
import pytest
import trio

from carrier.lines.addresses import Prefix
from carrier.lines.gateways import enrolment_proof
from carrier.lines.ports import GatewayClaim
from carrier.lines.tables import AccessType, Region
from deliver.app import Program, open_program, serve
from deliver.config import DeliverConfig, Home, load_home
from deliver.domain.pricing import Measured
from deliver.engines.schema import joint_nonce
from deliver.services.gateways import GatewayService
from deliver.services.operator_metadata import make_target_file
from deliver.services.operators import add_operator, find_operator, sign_shards
from deliver.services.setup import make_carrier
from deliver.signing.image_repository import expiry
from deliver.signing.keystore import KeyStore
from deliver.signing.tuf import Metadata, Targets, encode, sign
from runtime.clock import ManualClock
from runtime.logs import get_logger
from runtime.supervise import Service
from wire.ids import CustomerId, GatewaySerial, OperatorId, RandomId
from wire.joint import OperatorSubmit, Quote
from wire.package import Health, Manifest, Resources
from wire.package_archive import PackageFile, build_package, footprint_of
from wire.signing import generate_key

NOW_S = 1_795_000_000
CUSTOMER = CustomerId.parse("CAF0000000001")
SERIAL = GatewaySerial.parse("PR500KI00001")
SECRET = b"factory secret 1"
ANY_PORTS = {"gateway_listen": "[::1]:0", "operator_listen": "[::1]:0", "metrics_listen": "[::1]:0"}


def manifest(**changes):
    values = {
        "v": 1,
        "operator": "acme-home",
        "software": "lights",
        "version": "1.0",
        "release": 1,
        "series": ("PR-500",),
        "makers": ("KI",),
        "runtime": "python-zipapp",
        "entry": "app.pyz",
        "resources": Resources(memory_bytes=16 * 2**20),
        "health": Health(kind="exit"),
        "description": "家の明かり / lights",
        "price_text": "無料 / free of charge",
    }
    return Manifest(**{**values, **changes})


def package_bytes(content=b"print('lights')", **changes):
    return build_package(manifest(**changes), {"app.pyz": PackageFile(content)})


@attrs.frozen
class OperatorKit:
    """An operator's keys and what it does at home."""

    program: Program
    operator_id: OperatorId
    api_key: object
    keys: tuple

    @property
    def operator(self):
        with self.program.database.read() as connection:
            return find_operator(connection, self.operator_id)

    def measure(self, content=b"print('lights')", **changes):
        changes = {"operator": self.operator_id.text, **changes}
        data = package_bytes(content, **changes)
        digest = hashlib.sha256(data).hexdigest()
        return data, Measured(manifest(**changes), digest, len(data), footprint_of([len(content)]))

    def quote(self, data, package, change="new"):
        quote = RandomId.from_bytes(secrets.token_bytes(16))
        submit = self.program.submit()
        submit.staged_path(quote).write_bytes(data)
        order = OperatorSubmit(
            operator=self.operator_id.text,
            software=package.manifest.software,
            version=package.manifest.version,
            change=change,
            body_sha256=package.sha256,
        )
        return submit.make_quote(self.operator, order, package, quote, now_s=int(self.program.clock.now_s()))

    def metadata(self, packages, *, version=1, keys=None, expires_s=86400, change=None):
        targets = {p.target_path: make_target_file(p) for p in packages}
        signed = Targets(
            version=version, expires=expiry(self.program.clock.now_s(), expires_s), targets=targets
        )
        if change is not None:
            change(signed)
        return encode(sign(Metadata(signed), self.keys if keys is None else keys))

    def accept(self, quote_id, metadata):
        now_s = int(self.program.clock.now_s())
        return self.program.submit().accept(self.operator, RandomId.parse(quote_id), metadata, now_s=now_s)

    def publish(self, *, version=1, earlier=(), change="new", content=b"print('lights')", **changes):
        data, package = self.measure(content, **changes)
        quote = self.quote(data, package, change)
        assert isinstance(quote, Quote), quote
        outcome = self.accept(quote.quote_id, self.metadata([*earlier, package], version=version))
        return package, outcome


@pytest.fixture(scope="session")
def made_carrier(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made") / "carrier"
    make_carrier(directory, DeliverConfig(**ANY_PORTS), ["joint.test", "::1"], now_s=time.time())
    return directory


@pytest.fixture
def home(made_carrier, tmp_path) -> Home:
    directory = tmp_path / "carrier"
    shutil.copytree(made_carrier, directory, copy_function=_copy_or_link)
    return load_home(directory)


def _copy_or_link(source, target):
    """Link the 256 first shards, which nothing ever writes to again; copy the rest."""
    (os.link if ".shard-" in source else shutil.copy2)(source, target)


@pytest.fixture
def clock():
    return ManualClock(unix_s=NOW_S)


@pytest.fixture
def program(home, clock):
    opened = open_program(home, clock)
    yield opened
    opened.close()


def add_operator_kit(program, name="acme-home", *, key_count=1, threshold=1, delegate=True):
    keys = tuple(generate_key() for _ in range(key_count))
    api_key = generate_key()
    operator_id = OperatorId.parse(name)
    public = [key.public for key in keys]
    add_operator(program.database, operator_id, api_key.public, public, threshold, NOW_S)
    if delegate:
        run_ceremony(program)
    return OperatorKit(program, operator_id, api_key, keys)


def run_ceremony(program):
    offline = KeyStore(program.home.directory / "offline")
    return sign_shards(
        program.database,
        program.image,
        offline.load("shards"),
        program.image_keys(),
        now_s=program.clock.now_s(),
    )


@pytest.fixture
def acme(program):
    return add_operator_kit(program)


def add_line(program, customer=CUSTOMER, prefix="::/64", access=AccessType.HIKARI_NEXT):
    registry = program.carrier.registry
    registry.add_line(customer, Region.EAST, access)
    if prefix:
        registry.add_prefix(customer, Prefix.parse(prefix))


def enrol(program, customer=CUSTOMER, serial=SERIAL, model="PR-500", maker="KI", key=None):
    """A gateway on the customer's line, enrolled with a fresh key; returns (key, outcome)."""
    registry = program.carrier.registry
    registry.add_gateway_contract(customer, serial, model, maker, SECRET)
    key = key or generate_key()
    nonce = secrets.token_bytes(16)
    claim = GatewayClaim(
        serial=serial,
        model=model,
        maker=maker,
        proof=enrolment_proof(SECRET, key.public, nonce),
        key=key.public,
        nonce=nonce,
    )
    service = GatewayService(program.database, registry, program.documents())
    return key, service.enrol(registry.find_line(customer), claim, now_s=int(program.clock.now_s()))


@contextlib.asynccontextmanager
async def serving(home, roles=frozenset({"joint", "lines", "storage"})):
    """`deliver serve` in this process; gives the facts of its ready line."""
    stream = io.BytesIO()
    service = Service(get_logger("deliver", stream=stream))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, home, roles, service)
        with trio.fail_after(20):
            while b'"ready"' not in stream.getvalue():
                await trio.sleep(0.01)
        ready = [json.loads(line) for line in stream.getvalue().splitlines() if b'"ready"' in line]
        yield ready[0]
        service.stopping.set()


def dump(program):
    """Everything that a refusal must leave as it was: rows of Joint and ledger, public files, staging."""
    with program.database.read() as connection:
        from deliver.engines.schema import metadata

        rows = {
            table.name: sorted(map(repr, connection.execute(table.select()).all()))
            for table in metadata.sorted_tables
            if table.name != "joint_nonce"
        }
    public = program.home.directory / "public"
    files = {str(p.relative_to(public)): p.read_bytes() for p in sorted(public.rglob("*")) if p.is_file()}
    return rows, files


def nonces(program):
    """The nonces kept, each by the key that spent it."""
    with program.database.read() as connection:
        return sorted(map(tuple, connection.execute(joint_nonce.select()).all()))


def staged(program):
    return sorted(p.name for p in Path(program.home.directory, "state", "staging").iterdir())


@pytest.fixture
def kit():
    """The helpers of this file; test modules cannot import a conftest."""
    return types.SimpleNamespace(
        **{name: value for name, value in globals().items() if not name.startswith("_")}
    )
