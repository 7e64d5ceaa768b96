"""The HTTPS engine of the vault store, against the real storage service: the shared contract."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio

from carrier.lines.addresses import Prefix
from carrier.storage.http import storage_routes
from nas_agent.adapters.https_store import HttpsStore
from nas_agent.adapters.pairing import enrol_device
from nas_agent.adapters.storage_http import StorageHttp
from nas_agent.core.retry import Patience
from nas_agent.core.vault_keys import DeviceKeys
from nas_agent.keys.contract import ContractSecret
from runtime.http import Request, Response, Router, open_listener, serve_http
from runtime.http_client import HttpClient
from tests.carrier.conftest import World, make_world
from tests.contract.vault_maker import make_device
from tests.contract.vault_store_suite import VaultStoreContract, plant
from tests.nas_agent.engine_rig import EngineRig, MemorySink, frames_of, make_rig, plain, some_tree
from wire.statement import Audience, Kind, make_statement, to_header
from wire.storage import HEADER_GATEWAY, DeviceEnrolled, GatewayRelay

SECRET = ContractSecret(b"\x11" * 32)
BODY_BYTES_MAX = 1 << 20


@attrs.frozen
class Replayed:
    """A body that was read already."""

    data: bytes

    async def read(self, limit_bytes: int) -> bytes:
        return self.data


@attrs.frozen
class StatementAdder:
    """What a gateway adds to a request that opens something, and nothing else of a gateway."""

    world: World
    inner: Router

    async def __call__(self, request: Request) -> Response:
        if request.method != "POST" or not request.path.endswith(("/devices", "/sessions")):
            return await self.inner(request)
        data = await request.body.read(BODY_BYTES_MAX)
        relay = GatewayRelay(method="POST", path=request.path, body_sha256=hashlib.sha256(data).hexdigest())
        statement = make_statement(
            self.world.gateway_key,
            Kind.GATEWAY_RELAY,
            Audience.STORAGE,
            now_s=self.world.clock.now_s(),
            nonce=os.urandom(16),
            body=relay,
        )
        headers = {**request.headers, HEADER_GATEWAY: to_header(statement)}
        return await self.inner(attrs.evolve(request, headers=headers, body=Replayed(data)))


@attrs.frozen
class HttpsRig:
    world: World
    port: int
    device: DeviceKeys
    other: DeviceKeys
    clients: list[HttpClient] = attrs.field(factory=list)

    def http(self) -> StorageHttp:
        client = HttpClient("::1", self.port)
        self.clients.append(client)
        return StorageHttp(client, "/storage/v1", headers={}, clock=self.world.clock, patience=Patience(0))

    def store(self, device: DeviceKeys | None = None) -> HttpsStore:
        keys = device or self.device
        return HttpsStore(self.http(), contract=keys.contract, device=keys.device, clock=self.world.clock)

    async def enrol(self, device: DeviceKeys, code: str) -> None:
        enrolled = await enrol_device(
            self.http(),
            device,
            enrolment_code=code,
            service_root=self.world.root_key.public,
            clock=self.world.clock,
        )
        assert isinstance(enrolled, DeviceEnrolled), enrolled


@pytest.fixture
async def rig(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[HttpsRig]:
    world = make_world(tmp_path)
    world.carrier.registry.add_prefix(world.customer, Prefix.parse("::/64"))
    world.carrier.directory.refresh()
    router = Router()
    storage_routes(router, world.storage)
    listener = open_listener("::1", 0)
    await nursery.start(serve_http, StatementAdder(world, router), [listener])
    made = HttpsRig(world, listener.port, make_device(SECRET), make_device(SECRET, seed=2))
    await made.enrol(made.device, world.notice.enrolment_code)
    code = world.carrier.admin.add_code(world.contract)
    assert code is not None
    await made.enrol(made.other, code)
    yield made
    for client in made.clients:
        await client.aclose()
    world.carrier.close()


class TestHttpsStore(VaultStoreContract):
    pass


async def test_frames_planted_by_another_nas_of_the_contract_do_not_disturb_a_restore(
    rig: HttpsRig, tmp_path: Path
) -> None:
    """It knows every chunk ID beforehand and is first with each: data, manifest and all."""
    source, rehearsal = some_tree(small=12, large=1), make_rig(tmp_path)
    rehearsal.device = rig.device
    await rehearsal.backup(source)
    ids = sorted(chunk for path in rehearsal.vault.glob("packs/*/*") for *_, chunk in frames_of(path))
    await plant(rig, ids, sequence=1)
    (tmp_path / "again").mkdir()
    nas = EngineRig(tmp_path / "again", rig.device, wrap=lambda _: rig.store())
    done = await nas.backup(source)
    assert done.state == "durable"
    assert done.generation is not None
    sink = MemorySink()
    result = await nas.restore(sink, done.generation)
    assert result.problems == ()
    assert sink.files == plain(source)
