"""The relay half of hgwd with a fake storage service behind its port, a real flash directory and real LAN sockets."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import secrets

import attrs
import trio

from hgwd.adapters import spool_rows
from hgwd.adapters.forwarder import Forwarder
from hgwd.adapters.lan import LanFront
from hgwd.adapters.lan_devices import LanDevices, new_token
from hgwd.adapters.lan_pairing import PairingDesk
from hgwd.adapters.lan_storage import StorageRelay
from hgwd.adapters.spool import Spool
from hgwd.adapters.spool_files import open_spool_files
from hgwd.core.relay import LAN_PREFIX, STORAGE_PREFIX
from hgwd.core.spool import SpoolLimits
from runtime.clock import ManualClock
from runtime.errors import Unavailable
from runtime.http import HttpLimits, open_listener, serve_http
from runtime.http_client import HttpClient
from runtime.logs import Logger
from runtime.sqlite import Database
from wire.signing import generate_key
from wire.storage import COMMIT_BYTES_MAX

KIB = 1024
STORAGE = LAN_PREFIX + STORAGE_PREFIX
CERTIFICATE_SHA256 = hashlib.sha256(b"certificate").digest()


def make_pack(size_bytes=10 * KIB):
    data = secrets.token_bytes(size_bytes)
    return hashlib.sha256(data).hexdigest(), data


@attrs.frozen
class Answer:
    status: int
    headers: dict = attrs.field(factory=dict)
    body: bytes = b""

    async def chunks(self):
        for start in range(0, len(self.body), 64 * KIB):
            await trio.lowlevel.checkpoint()
            yield self.body[start : start + 64 * KIB]


def refusal(status, code, **extra):
    return Answer(status, {}, json.dumps({"code": code, "message": f"said {code}", **extra}).encode())


@attrs.define
class FakeService:
    """Port `Upstream`: keeps packs by hash, as the service does; can be cut off or told what to answer."""

    packs: dict = attrs.field(factory=dict)
    order: list = attrs.field(factory=list)
    asked: list = attrs.field(factory=list)
    sessions: dict = attrs.field(factory=dict)
    answers: dict = attrs.field(factory=dict)
    put_answers: list = attrs.field(factory=list)
    always: Answer | None = None
    down: bool = False
    gate: trio.Event | None = None

    @contextlib.asynccontextmanager
    async def ask(self, method, path, *, headers, body, length):
        if self.down:
            raise Unavailable("the line is cut")
        data = body if isinstance(body, bytes) else b"".join([chunk async for chunk in body])
        assert len(data) == length
        self.asked.append((method, path, dict(headers), data))
        yield self.answer(method, path, data)

    def answer(self, method, path, data):
        if (method, path) in self.answers:
            return self.answers[method, path]
        if path.endswith("/sessions") and method == "POST":
            session, token = secrets.token_hex(16), secrets.token_hex(32)
            self.sessions[session] = token
            return Answer(
                201,
                {},
                json.dumps(
                    {
                        "session": session,
                        "token": token,
                        "head": None,
                        "lease_until": 0,
                        "limit_bytes": 0,
                        "used_bytes": 0,
                        "reserved_bytes": 0,
                    }
                ).encode(),
            )
        if path.endswith("/state"):
            names = [data[start : start + 32].hex() for start in range(0, len(data), 32)]
            return Answer(200, {}, bytes(2 if name in self.packs else 0 for name in names))
        if path.endswith("/commit"):
            return Answer(201, {}, b"receipt")
        if method == "DELETE":
            return Answer(204)
        if "/packs/" in path:
            data = self.packs[path.rsplit("/", 1)[1]]
            return Answer(200, {"content-length": str(len(data))}, data)
        return refusal(404, "not-found")

    async def put_pack(self, session, token, pack, path, size_bytes):
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise Unavailable("the line is cut")
        data = path.read_bytes()
        if self.put_answers:
            return self.put_answers.pop(0)
        if self.always is not None:
            return self.always
        assert self.sessions[session] == token
        if hashlib.sha256(data).hexdigest() != pack:
            return refusal(400, "bad-hash")
        known = pack in self.packs
        self.packs[pack] = data
        self.order.append(pack)
        return Answer(200 if known else 201, {}, b'{"state":"stored"}')

    def note_answer(self, status, body):
        pass


@attrs.define
class FaultyFiles:
    """Port `SpoolFiles` around the real one: refuses what the test says, counts every call."""

    real: object
    fail: dict = attrs.field(factory=dict)
    calls: list = attrs.field(factory=list)

    def __getattr__(self, name):
        real = getattr(self.real, name)

        def call(*arguments):
            self.calls.append(name)
            if name in self.fail:
                raise OSError(self.fail[name], errno.errorcode[self.fail[name]])
            return real(*arguments)

        return call


class LogLines:
    """A log stream that keeps its lines."""

    def __init__(self):
        self.lines = []

    def write(self, line):
        self.lines.append(json.loads(line))

    def flush(self):
        pass

    def events(self):
        return [line["event"] for line in self.lines]


@attrs.define
class Rig:
    """Everything a relay test touches."""

    spool: Spool
    forwarder: Forwarder
    service: FakeService
    devices: LanDevices
    desk: PairingDesk
    client: HttpClient
    clock: ManualClock
    log: LogLines
    files: FaultyFiles
    database: Database
    refusals: list
    nursery: trio.Nursery
    port: int

    async def pair(self, name="nas"):
        token = new_token()
        device = await self.devices.add(name=name, device_key=secrets.token_bytes(32), token=token)
        return Nas(self, device.device, token)

    def forward(self):
        """Start forwarding; until then packs stay spooled."""
        self.nursery.start_soon(self.forwarder.run)

    async def settled(self, packs=0):
        """Wait until at most `packs` packs are spooled."""
        with trio.fail_after(10):
            while (await self.spool.totals()).spooled_packs > packs:
                await trio.sleep(0.01)


@attrs.define
class Nas:
    """A paired device: speaks the LAN side."""

    rig: Rig
    device: str
    token: str
    session: str = ""

    async def ask(self, method, path, body=b"", **headers):
        values = {"authorization": f"Bearer {self.token}"}
        values.update({name.replace("_", "-"): value for name, value in headers.items()})
        values = {name: value for name, value in values.items() if value is not None}
        return await self.rig.client.request(
            method, STORAGE + path, headers=values, body=body, max_response_bytes=64 << 20
        )

    async def open(self):
        answer = await self.ask("POST", "/sessions", b"statement")
        assert answer.status == 201
        self.session = json.loads(answer.body)["session"]
        return self.session

    async def put(self, pack, data):
        return await self.ask("PUT", f"/sessions/{self.session}/packs/{pack}", data)

    async def state(self, *packs):
        body = b"".join(bytes.fromhex(pack) for pack in packs)
        return await self.ask("POST", f"/sessions/{self.session}/state", body)

    async def commit(self):
        return await self.ask("POST", f"/sessions/{self.session}/commit", b"\0\0\0\1r")


def code_of(answer):
    return json.loads(answer.body)["code"]


@contextlib.asynccontextmanager
async def open_rig(
    directory,
    *,
    bytes_max=1 << 20,
    pack_bytes_max=1 << 20,
    service=None,
    recovered=None,
    hold_s=60.0,
    room_wait_s=0.0,
):
    """Bring the relay up on `directory`; leave as a crash would (tasks cancelled, nothing flushed)."""
    clock, log, refusals = ManualClock(), LogLines(), []
    files = FaultyFiles(open_spool_files(directory / "spool"))
    service = service or FakeService()
    async with (
        Database(directory / "relay.sqlite", spool_rows.MIGRATIONS) as database,
        trio.open_nursery() as nursery,
    ):
        spool = Spool(files, database, SpoolLimits(bytes_max, pack_bytes_max), clock, room_wait_s=room_wait_s)
        found = await spool.recover()
        if recovered is not None:
            recovered.append(found)
        devices = LanDevices(database, clock)
        await devices.load()
        forwarder = Forwarder(spool, service, clock, Logger("hgwd", log), uploads_max=2, hold_s=hold_s)
        desk = PairingDesk(CERTIFICATE_SHA256, devices, clock)
        storage = StorageRelay(
            nursery, spool, forwarder, service, devices, generate_key(), clock, refusals.append
        )
        front = LanFront(devices, desk, storage, (), refusals.append)
        listener = open_listener("::1", 0)
        limits = HttpLimits(body_bytes_max=COMMIT_BYTES_MAX, stop_grace_s=0.1)
        await nursery.start(
            lambda task_status: serve_http(front, [listener], limits=limits, task_status=task_status)
        )
        client = HttpClient("::1", listener.port)
        try:
            yield Rig(
                spool,
                forwarder,
                service,
                devices,
                desk,
                client,
                clock,
                log,
                files,
                database,
                refusals,
                nursery,
                listener.port,
            )
        finally:
            with trio.CancelScope(shield=True):
                await client.aclose()
            nursery.cancel_scope.cancel()
