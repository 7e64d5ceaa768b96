"""A real gateway front (TLS, pairing, spool, forwarder) before a real storage service, on loopback, in this process.

The line can be cut and mended at will. Only the admin page is missing: tests approve at its desk.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import trio

from carrier.lines.addresses import Prefix
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
from runtime.errors import Unavailable
from runtime.http import HttpLimits, Router, open_listener, serve_http
from runtime.http_client import HttpClient
from runtime.logs import Logger
from runtime.sqlite import Database
from runtime.tls import make_self_signed, server_context
from tests.carrier.conftest import World
from wire.storage import COMMIT_BYTES_MAX

LOOPBACK = Prefix.parse("::/64")


class _NoLog:
    def write(self, line: str) -> None:
        pass

    def flush(self) -> None:
        pass


@attrs.define
class Line:
    """The line between gateway and service: port `Upstream` that can be cut."""

    real: StorageUpstream
    down: bool = False
    packs_until_cut: int | None = None
    failures: int = 0

    @contextlib.asynccontextmanager
    async def ask(self, *arguments, **options):
        if self.down:
            self.failures += 1
            raise Unavailable("the line is cut")
        async with self.real.ask(*arguments, **options) as answer:
            yield answer

    async def put_pack(self, *arguments):
        if self.packs_until_cut == 0:
            self.down = True
        if self.down:
            self.failures += 1
            raise Unavailable("the line is cut")
        if self.packs_until_cut is not None:
            self.packs_until_cut -= 1
        return await self.real.put_pack(*arguments)

    def note_answer(self, status, body):
        self.real.note_answer(status, body)


@attrs.define
class GatewayRig:
    """The gateway as a NAS meets it."""

    world: World
    port: int
    certificate_sha256: str
    desk: PairingDesk
    devices: LanDevices
    spool: Spool
    line: Line

    @property
    def address(self) -> str:
        return f"[::1]:{self.port}"

    async def approve(self) -> str:
        """Approve the next pairing that shows digits; return them."""
        with trio.fail_after(20):
            while (waiting := self.desk.waiting()) is None or waiting.digits is None:
                await trio.sleep(0.02)
        assert await self.desk.approve(waiting.pair, waiting.digits) is not None
        return waiting.digits


@contextlib.asynccontextmanager
async def open_gateway(
    directory: Path, world: World, *, spool_bytes: int = 64 << 20
) -> AsyncIterator[GatewayRig]:
    """Bring service and gateway up; leave by cancelling everything."""
    world.carrier.registry.add_prefix(world.customer, LOOPBACK)
    world.carrier.directory.refresh()
    directory.mkdir(exist_ok=True)
    pin = make_self_signed(directory / "cert.pem", directory / "key.pem", ["::1"])
    log = Logger("hgwd", _NoLog())
    async with (
        Database(directory / "relay.sqlite", spool_rows.MIGRATIONS) as database,
        trio.open_nursery() as nursery,
    ):
        router = Router()
        storage_routes(router, world.storage)
        wan = open_listener("::1", 0)
        await nursery.start(serve_http, router, [wan])
        spool = Spool(
            open_spool_files(directory / "spool"), database, SpoolLimits(spool_bytes, 8 << 20), world.clock
        )
        await spool.recover()
        devices = LanDevices(database, world.clock)
        await devices.load()
        wan_client = HttpClient("::1", wan.port)
        line = Line(StorageUpstream(wan_client, world.clock, lambda status: None))
        forwarder = Forwarder(spool, line, world.clock, log, uploads_max=2, hold_s=0.5)
        desk = PairingDesk(bytes.fromhex(pin), devices, world.clock)
        relay = StorageRelay(
            nursery, spool, forwarder, line, devices, world.gateway_key, world.clock, lambda code: None
        )
        lan = open_listener("::1", 0, server_context(directory / "cert.pem", directory / "key.pem"))
        limits = HttpLimits(body_bytes_max=COMMIT_BYTES_MAX, stop_grace_s=0.1)
        front = LanFront(devices, desk, relay, ())
        await nursery.start(
            lambda task_status: serve_http(front, [lan], limits=limits, task_status=task_status)
        )
        nursery.start_soon(forwarder.run)
        try:
            yield GatewayRig(world, lan.port, pin, desk, devices, spool, line)
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wan_client.aclose()
