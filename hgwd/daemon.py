"""hgwd's main task: opens what it owns, wires the parts, runs them together, stops them in order.

Order at the start: lock, state, certificate, database, spool recovery, listeners, then work. Nothing listens before the
spool knows what it holds; "ready" is said when the LAN is answered. At a stop the listeners end first, running
uploads are cut: the packs stay in the spool.
"""

from __future__ import annotations

import fcntl
import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import msgspec
import trio

from hgwd.adapters import spool_rows
from hgwd.adapters.admin_page import AdminPage, own_authorities
from hgwd.adapters.control import SOCKET_FILE, ControlAnswer, ControlRequest, serve_control
from hgwd.adapters.forwarder import Forwarder
from hgwd.adapters.lan import LanFront
from hgwd.adapters.lan_devices import LanDevices
from hgwd.adapters.lan_pairing import PairingDesk
from hgwd.adapters.lan_storage import StorageRelay
from hgwd.adapters.metrics import RelayMetrics
from hgwd.adapters.spool import Spool
from hgwd.adapters.spool_files import open_spool_files
from hgwd.adapters.state import GatewayState, open_state
from hgwd.adapters.upstream import UPSTREAM_LIMITS, StorageUpstream
from hgwd.adapters.wan import read_wan_prefixes
from hgwd.config import HgwdConfig, check_listeners, lan_prefixes
from hgwd.core.admin_login import LoginGate
from hgwd.core.spool import SpoolLimits
from hgwd.core.status import LineStatus
from hgwd.errors import LocalUseError
from hgwd.passwords import PasswordHash, parse_password_hash
from hgwd.status_service import Addresses, StatusBoard
from hgwd.update_service import UpdateService
from hgwd.update_wiring import open_update_service
from runtime.clock import Clock, SystemClock
from runtime.errors import Unavailable
from runtime.files import load_secret
from runtime.http import Handler, HttpLimits, Listener, Request, Response, Router, open_listener, serve_http
from runtime.http_client import HttpClient
from runtime.logs import Logger
from runtime.metrics import Metrics, resident_memory_bytes
from runtime.sqlite import Database
from runtime.supervise import Service
from runtime.tls import certificate_sha256, client_context, make_self_signed, server_context
from wire.storage import COMMIT_BYTES_MAX

CERTIFICATE_FILE: Final = "lan-certificate.pem"
CERTIFICATE_KEY_FILE: Final = "lan-key.pem"
DATABASE_FILE: Final = "relay.sqlite"
LOCK_FILE: Final = "lock"
TIDY_S: Final = 600.0
_SMALL_LISTENER: Final = HttpLimits(connections_max=16, peer_connections_max=8, body_bytes_max=64 * 1024)


@attrs.frozen
class StatementClock:
    """The clock of the relay: the carrier's signed time once it is known, the machine's before (design §5.6)."""

    machine: Clock
    update: UpdateService | None

    def now_s(self) -> float:
        """See `Clock`."""
        if self.update is None or self.update.status()["last_contact_s"] is None:
            return self.machine.now_s()
        return self.update.now_s()

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return self.machine.monotonic_s()


@attrs.frozen
class Listeners:
    """The open listeners; the ports are known, also when the configuration said 0."""

    lan: Listener
    admin: Listener
    metrics: Listener | None


@attrs.frozen
class Relay:
    """The wired relay half."""

    spool: Spool
    forwarder: Forwarder
    upstream: StorageUpstream
    devices: LanDevices
    desk: PairingDesk
    front: LanFront
    metrics: RelayMetrics


async def run_daemon(service: Service, config: HgwdConfig, *, clock: Clock | None = None) -> None:
    """Run until `service.stopping`.

    Raises `ConfigError` before anything is opened when a listener would stand on the WAN side, `LocalUseError` when
    another hgwd uses the state directory.
    """
    now = clock or SystemClock()
    check_listeners(config, read_wan_prefixes(config.gateway.wan_interface))
    password = parse_password_hash(load_secret(config.admin.password_file).decode("ascii", "replace"))
    state_dir = Path(config.gateway.state_dir)
    async with AsyncExitStack() as stack:
        state = open_state(state_dir)
        stack.callback(os.close, _take_lock(state_dir))
        pin = _ensure_certificate(state_dir, config)
        tls = server_context(state_dir / CERTIFICATE_FILE, state_dir / CERTIFICATE_KEY_FILE)
        database = await stack.enter_async_context(Database(state_dir / DATABASE_FILE, spool_rows.MIGRATIONS))
        metrics = Metrics("hgwd")
        update = open_update_service(config, state, now, service.log) if config.update.enabled else None
        nursery = await stack.enter_async_context(trio.open_nursery())
        relay = await _wire_relay(
            nursery, service, config, state, database, pin, metrics, StatementClock(now, update)
        )
        listeners = _open_listeners(config, tls)
        board = StatusBoard(
            config=config,
            state=state,
            spool=relay.spool,
            forwarder=relay.forwarder,
            upstream=relay.upstream,
            devices=relay.devices,
            metrics=relay.metrics,
            clock=now,
            addresses=_addresses(config, listeners, pin),
            update=update,
            started_at_s=now.now_s(),
        )
        admin = _admin_page(config, listeners.admin, password, relay, board, now)
        await nursery.start(serve_control, state_dir / SOCKET_FILE, _control(relay, board))
        if update is not None:
            nursery.start_soon(update.run)  # the LAN does not wait for delivered software to be up
        nursery.start_soon(relay.forwarder.run)
        nursery.start_soon(_tidy, relay.spool, service.log)
        await _serve(service, config, listeners, relay.front, admin, _metrics_router(board, metrics))
        nursery.cancel_scope.cancel()


async def _wire_relay(
    nursery: trio.Nursery,
    service: Service,
    config: HgwdConfig,
    state: GatewayState,
    database: Database,
    pin: str,
    metrics: Metrics,
    clock: Clock,
) -> Relay:
    counters = RelayMetrics(metrics)
    spool = Spool(
        open_spool_files(Path(config.spool.directory)),
        database,
        SpoolLimits(config.spool.bytes_max, config.spool.pack_bytes_max, config.spool.high_water_percent),
        clock,
    )
    recovered = await spool.recover()
    service.log.info("spool_recovered", **attrs.asdict(recovered))
    devices = LanDevices(database, clock)
    await devices.load()
    upstream = StorageUpstream(carrier_client(config), clock, _log_line(service))
    spool.line_up = lambda: upstream.line.state != "down"
    forwarder = Forwarder(spool, upstream, clock, service.log, uploads_max=config.spool.uploads_max)
    desk = PairingDesk(bytes.fromhex(pin), devices, clock)
    storage = StorageRelay(
        nursery, spool, forwarder, upstream, devices, state.key, clock, counters.count_refusal
    )
    front = LanFront(devices, desk, storage, lan_prefixes(config), counters.count_refusal)
    return Relay(spool, forwarder, upstream, devices, desk, front, counters)


async def _serve(
    service: Service,
    config: HgwdConfig,
    listeners: Listeners,
    front: LanFront,
    admin: AdminPage,
    metrics: Router,
) -> None:
    lan_limits = HttpLimits(connections_max=config.lan.connections_max, body_bytes_max=COMMIT_BYTES_MAX)
    serving: list[tuple[Handler, Listener, HttpLimits]] = [
        (front, listeners.lan, lan_limits),
        (admin, listeners.admin, _SMALL_LISTENER),
    ]
    if listeners.metrics is not None:
        serving.append((metrics, listeners.metrics, _SMALL_LISTENER))
    async with trio.open_nursery() as nursery:
        for handler, listener, limits in serving:
            serve = partial(serve_http, limits=limits, log=service.log, stopping=service.stopping)
            await nursery.start(serve, handler, [listener])
        service.ready(
            lan_port=listeners.lan.port,
            admin_port=listeners.admin.port,
            metrics_port=listeners.metrics.port if listeners.metrics is not None else 0,
            rss_bytes=resident_memory_bytes(),
        )


async def _tidy(spool: Spool, log: Logger) -> None:
    while True:
        await trio.sleep(TIDY_S)
        try:
            await spool.tidy()
        except Unavailable as error:
            log.warning("tidy_failed", detail=str(error))


def _control(relay: Relay, board: StatusBoard) -> Callable[[ControlRequest], Awaitable[ControlAnswer]]:
    """Return the handler of the control socket."""

    async def handle(request: ControlRequest) -> ControlAnswer:
        match request.command:
            case "status":
                result: object = await board.collect()
            case "pair-list":
                waiting = relay.desk.waiting()
                result = (
                    {"pair": waiting.pair, "name": waiting.name, "digits": waiting.digits}
                    if waiting
                    else None
                )
            case "pair-approve":
                result = await relay.desk.approve(request.pair, request.digits)
                if result is None:
                    return ControlAnswer(error="expected the open pairing and the digits it shows")
            case "pair-refuse":
                result = relay.desk.refuse(request.pair)
            case "poll":
                if board.update is None:
                    return ControlAnswer(error="expected update.enabled = true in the configuration")
                board.update.poll_now()
                result = True
            case "revoke":
                result = await relay.devices.revoke(request.device)
        return ControlAnswer(result=msgspec.Raw(msgspec.json.encode(result)))

    return handle


def _metrics_router(board: StatusBoard, metrics: Metrics) -> Router:
    async def show(request: Request) -> Response:
        await board.refresh_metrics()
        return await metrics.handle(request)

    router = Router()
    router.route("GET", "/metrics", show)
    return router


def _admin_page(
    config: HgwdConfig,
    listener: Listener,
    password: PasswordHash,
    relay: Relay,
    board: StatusBoard,
    clock: Clock,
) -> AdminPage:
    return AdminPage(
        password=password,
        gate=LoginGate(config.admin.idle_logout_s),
        desk=relay.desk,
        devices=relay.devices,
        collect=board.collect,
        clock=clock,
        authorities=own_authorities(
            config.admin.host,
            listener.port,
            config.admin.host_names,
            default_port=443 if config.admin.tls else 80,
        ),
        scheme="https" if config.admin.tls else "http",
        lan_prefixes=lan_prefixes(config),
    )


def carrier_client(config: HgwdConfig) -> HttpClient:
    """Return the client to the storage service: IPv6 only, for the line is known by its IPv6 prefix and nothing else."""
    carrier = config.carrier
    return HttpClient(
        carrier.host,
        carrier.port,
        client_context(carrier.ca_file),
        server_name=carrier.server_name,
        source_address="::",
        timeouts=attrs.evolve(
            UPSTREAM_LIMITS, connect_s=carrier.connect_timeout_s, head_s=carrier.answer_timeout_s
        ),
    )


def _open_listeners(config: HgwdConfig, tls: ssl.SSLContext) -> Listeners:
    return Listeners(
        lan=open_listener(config.lan.host, config.lan.port, tls),
        admin=open_listener(config.admin.host, config.admin.port, tls if config.admin.tls else None),
        metrics=open_listener(config.metrics.host, config.metrics.port) if config.metrics.enabled else None,
    )


def _addresses(config: HgwdConfig, listeners: Listeners, pin: str) -> Addresses:
    admin_scheme = "https" if config.admin.tls else "http"
    return Addresses(
        lan=_url("https", listeners.lan),
        admin=_url(admin_scheme, listeners.admin),
        metrics=_url("http", listeners.metrics) + "/metrics" if listeners.metrics is not None else None,
        certificate_sha256=pin,
    )


def _url(scheme: str, listener: Listener) -> str:
    host = f"[{listener.host}]" if ":" in listener.host else listener.host
    return f"{scheme}://{host}:{listener.port}"


def _ensure_certificate(state_dir: Path, config: HgwdConfig) -> str:
    """Make the LAN key and certificate at the first start; return the SHA-256 that every NAS pins.

    The key is written last: where it is, the certificate is whole.
    """
    certificate, key = state_dir / CERTIFICATE_FILE, state_dir / CERTIFICATE_KEY_FILE
    if not key.exists():
        names = ["hgwd", config.lan.host.partition("%")[0]]
        make_self_signed(certificate, key, names)
    return certificate_sha256(certificate)


def _take_lock(state_dir: Path) -> int:
    descriptor = os.open(state_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise LocalUseError(f"{state_dir}: another hgwd is running on this state directory") from error
    return descriptor


def _log_line(service: Service) -> Callable[[LineStatus], None]:
    def log(line: LineStatus) -> None:
        write = service.log.info if line.state == "up" else service.log.warning
        write("line", state=line.state, reason=line.reason)

    return log
