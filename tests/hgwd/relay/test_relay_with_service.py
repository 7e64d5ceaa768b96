"""The relay with the real storage service over loopback: sockets, statements, line check, receipt (design §6.6).

The line's address is what the lab provides; here the service's edge is given the address of the customer's line in the
socket's place, and of another line's to see it refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from pathlib import Path

import attrs
import pytest
import trio
from relay_kit import STORAGE, LogLines, code_of

from carrier.storage.http import storage_routes
from hgwd.adapters import spool_rows
from hgwd.adapters.forwarder import Forwarder
from hgwd.adapters.lan import LanFront
from hgwd.adapters.lan_devices import LanDevices
from hgwd.adapters.lan_pairing import PairingDesk
from hgwd.adapters.lan_storage import StorageRelay
from hgwd.adapters.spool import Spool
from hgwd.adapters.spool_files import open_spool_files
from hgwd.adapters.upstream import StorageUpstream
from hgwd.core.spool import SpoolLimits
from runtime.http import HttpLimits, Router, open_listener, serve_http
from runtime.http_client import ClientLimits, HttpClient
from runtime.logs import Logger
from runtime.sqlite import Database
from wire.storage import COMMIT_BYTES_MAX, HEADER_SESSION, verify_receipt

_SPEC = importlib.util.spec_from_file_location(
    "carrier_world", Path(__file__).parents[2] / "carrier" / "conftest.py"
)
carrier_world = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(carrier_world)
ABROAD = "2001:db8:2:200::1"


@attrs.define
class Line:
    """The service as this line reaches it; `cut` and `mend` it, `move` it to another address."""

    world: object
    nursery: trio.Nursery
    port: int = 0
    address: str = carrier_world.HOME
    scope: trio.CancelScope | None = None

    async def mend(self):
        router = Router()
        storage_routes(router, self.world.storage)

        async def at_line(request):
            return await router(attrs.evolve(request, peer=attrs.evolve(request.peer, host=self.address)))

        listener = open_listener("::1", self.port)
        self.port = listener.port

        async def serve(task_status):
            with trio.CancelScope() as self.scope:
                await serve_http(
                    at_line,
                    [listener],
                    limits=HttpLimits(body_bytes_max=COMMIT_BYTES_MAX),
                    task_status=task_status,
                )

        await self.nursery.start(serve)

    async def cut(self):
        self.scope.cancel()
        await trio.sleep(0.01)


@attrs.define
class Stand:
    world: object
    line: Line
    spool: Spool
    forwarder: Forwarder
    upstream: StorageUpstream
    client: HttpClient
    token: str = ""
    session: dict = attrs.field(factory=dict)

    async def ask(self, method, path, body=b"", **headers):
        values = {"authorization": f"Bearer {self.token}", **headers}
        if self.session:
            values[HEADER_SESSION] = self.session["token"]
        return await self.client.request(
            method, STORAGE + path, headers=values, body=body, max_response_bytes=8 << 20
        )

    async def enrol_and_open(self):
        enrolled = await self.ask("POST", "/devices", self.world.enrol_statement())
        assert enrolled.status == 201, enrolled.body
        await self.open()

    async def open(self, **options):
        answer = await self.ask("POST", "/sessions", self.world.session_statement(**options))
        assert answer.status == 201, answer.body
        self.session = json.loads(answer.body)

    def path(self, rest):
        return f"/sessions/{self.session['session']}{rest}"

    async def put(self, chunks):
        data = self.world.nas.pack(self.session["session"], chunks, frame_bytes=20_000)
        name = hashlib.sha256(data).hexdigest()
        answer = await self.ask("PUT", self.path(f"/packs/{name}"), data)
        assert (answer.status, answer.body) == (202, b'{"state":"spooled"}')
        return name, data

    async def settled(self, packs=0):
        with trio.fail_after(10):
            while (await self.spool.totals()).spooled_packs > packs:
                await trio.sleep(0.01)


@contextlib.asynccontextmanager
async def open_stand(directory):
    (directory / "carrier").mkdir()
    world = carrier_world.make_world(directory / "carrier")
    async with (
        Database(directory / "relay.sqlite", spool_rows.MIGRATIONS) as database,
        trio.open_nursery() as nursery,
    ):
        line = Line(world, nursery)
        await line.mend()
        limits = ClientLimits(connect_s=2, head_s=10)
        upstream_client = HttpClient("::1", line.port, timeouts=limits)
        upstream = StorageUpstream(upstream_client, world.clock, lambda _line: None)
        spool = Spool(
            open_spool_files(directory / "spool"), database, SpoolLimits(8 << 20, 1 << 20), world.clock
        )
        await spool.recover()
        devices = LanDevices(database, world.clock)
        await devices.add(name="nas", device_key=world.nas.key.public, token="lan-token")
        forwarder = Forwarder(
            spool, upstream, world.clock, Logger("hgwd", LogLines()), uploads_max=2, hold_s=0.3
        )
        storage = StorageRelay(
            nursery, spool, forwarder, upstream, devices, world.gateway_key, world.clock, lambda _code: None
        )
        front = LanFront(devices, PairingDesk(bytes(32), devices, world.clock), storage, ())
        listener = open_listener("::1", 0)
        await nursery.start(lambda task_status: serve_http(front, [listener], task_status=task_status))
        nursery.start_soon(forwarder.run)
        client = HttpClient("::1", listener.port)
        try:
            yield Stand(world, line, spool, forwarder, upstream, client, "lan-token")
        finally:
            with trio.CancelScope(shield=True):
                await client.aclose()
                await upstream_client.aclose()
            nursery.cancel_scope.cancel()
    world.carrier.close()


async def test_a_backup_through_the_gateway_survives_a_cut_line_and_ends_with_a_signed_receipt(tmp_path):
    async with open_stand(tmp_path) as stand:
        await stand.enrol_and_open()
        assert stand.upstream.line.state == "up"
        chunks = [os.urandom(32) for _ in range(12)]
        first, _ = await stand.put(chunks[:4])
        await stand.settled()
        await stand.line.cut()
        names = [first, *[(await stand.put(chunks[start : start + 4]))[0] for start in (4, 8)]]
        with trio.fail_after(10):
            while stand.upstream.line.state != "down":
                await trio.sleep(0.01)
        body = stand.world.nas.commit_body(stand.session["session"], chunks)
        draining = await stand.ask("POST", stand.path("/commit"), body)
        assert (draining.status, code_of(draining)) == (409, "draining")
        await stand.line.mend()
        await stand.settled()
        states = await stand.ask("POST", stand.path("/state"), b"".join(map(bytes.fromhex, names)))
        assert states.body == b"\2\2\2"
        have = await stand.ask("POST", stand.path("/have"), b"".join(chunks) + b"x" * 32)
        assert have.body == b"\1" * 12 + b"\0"
        receipts = [await stand.ask("POST", stand.path("/commit"), body) for _ in range(2)]
        assert [receipt.status for receipt in receipts] == [201, 201]
        assert receipts[0].body == receipts[1].body
        service = stand.world.storage.receipts
        receipt = verify_receipt(
            receipts[0].body, cert=service.cert, service_root=stand.world.root_key.public
        )
        assert (receipt.sequence, receipt.packs) == (1, 3)


async def test_packs_are_read_back_through_the_gateway_by_range(tmp_path):
    async with open_stand(tmp_path) as stand:
        await stand.enrol_and_open()
        chunks = [os.urandom(32) for _ in range(20)]
        name, data = await stand.put(chunks)
        await stand.settled()
        await stand.ask(
            "POST", stand.path("/commit"), stand.world.nas.commit_body(stand.session["session"], chunks)
        )
        await stand.open(mode="read")
        whole = await stand.ask("GET", stand.path(f"/packs/{name}"))
        assert (whole.status, whole.body) == (200, data)
        part = await stand.ask("GET", stand.path(f"/packs/{name}"), range="bytes=1000-200999")
        assert (part.status, part.body) == (206, data[1000:201000])
        assert part.headers["content-range"] == f"bytes 1000-200999/{len(data)}"
        generations = json.loads((await stand.ask("GET", stand.path("/generations"))).body)
        assert [item["sequence"] for item in generations] == [1]


async def test_a_gateway_whose_line_moved_away_keeps_everything_until_it_is_back(tmp_path):
    """X-03, L3, L4: the address decides at every request; renumbering costs time, no data."""
    async with open_stand(tmp_path) as stand:
        stand.world.add_customer(2, "2001:db8:2:200::/56")
        await stand.enrol_and_open()
        stand.line.address = ABROAD
        await stand.put([os.urandom(32)])
        with trio.fail_after(10):
            while stand.upstream.line.state != "refused":
                await trio.sleep(0.01)
        assert stand.upstream.line.reason == "line-not-contract"
        assert (await stand.spool.totals()).spooled_packs == 1
        stand.line.address = carrier_world.HOME
        await stand.settled()
        assert stand.upstream.line.state == "up"


async def test_a_nas_that_is_revoked_at_the_service_gets_its_packs_rejected_with_the_reason(tmp_path):
    async with open_stand(tmp_path) as stand:
        await stand.enrol_and_open()
        stand.world.carrier.admin.end_contract(stand.world.contract)
        name, _ = await stand.put([os.urandom(32)])
        await stand.settled()
        assert (await stand.spool.totals()).rejected_packs == 1
        answer = await stand.ask("POST", stand.path("/state"), bytes.fromhex(name))
        assert answer.body == b"\3"


@pytest.mark.parametrize("spoofed", ["x-forwarded-for", "forwarded", "x-real-ip"])
async def test_a_forwarded_header_of_the_nas_changes_no_line(tmp_path, spoofed):
    """L1."""
    async with open_stand(tmp_path) as stand:
        stand.world.add_customer(2, "2001:db8:2:200::/56")
        stand.line.address = ABROAD
        blob = stand.world.enrol_statement()
        answer = await stand.ask("POST", "/devices", blob, **{spoofed: carrier_world.HOME})
        assert answer.status == 403
