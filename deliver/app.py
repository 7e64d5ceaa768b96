"""Compose the carrier side from its parts and serve it (design §3): the only place that sees ports and engines both.

Rules
- Roles: `joint` (gateways' and operators' software delivery), `storage` (backups), `lines` (the line map alone, which
  the other two bring along). One process hosts any subset.
- Order of start: database at the schema of this program, line map read once, unfinished publications done, then listen.
- A serving process opens online keys only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs
import trio
from prometheus_client import Counter, Gauge

from carrier.compose import Carrier, CarrierUrls, open_carrier
from carrier.engines.sql.database import Database
from carrier.storage.http import storage_routes
from carrier.storage.receipts import ReceiptSigner
from deliver.config import Home, parse_listen
from deliver.engines.migrate import migrate as migrate_joint
from deliver.http.joint import JointHttp
from deliver.http.operator import OperatorHttp
from deliver.http.static import StaticFiles
from deliver.services.contract_charges import record_contracts
from deliver.services.director_documents import DirectorDocuments
from deliver.services.gateways import GatewayService
from deliver.services.nonces import NonceBook
from deliver.services.rollout import RolloutService
from deliver.services.submit import SubmitService
from deliver.signing.image_repository import ImageKeys, ImageRepository
from deliver.signing.keystore import KeyStore
from runtime.clock import Clock, SystemClock
from runtime.errors import ConfigError, EdgeError, LocalError
from runtime.http import Listener, Router, open_listener, serve_http
from runtime.metrics import Metrics
from runtime.supervise import Service
from runtime.tls import server_context

ROLES: Final = ("joint", "lines", "storage")
GC_EVERY_S: Final = 3600.0
Upkeep = tuple[float, Callable[[], object]]
"""Seconds between two runs, and what to run (blocking)."""


@attrs.frozen
class Program:
    """The opened parts that commands and servers share."""

    home: Home
    carrier: Carrier
    clock: Clock

    @property
    def database(self) -> Database:
        """The one database."""
        return self.carrier.database

    @property
    def image(self) -> ImageRepository:
        """The image repository's files."""
        return ImageRepository(self.home.image_dir)

    def image_keys(self) -> ImageKeys:
        """Snapshot and timestamp keys."""
        keys = online_keys(self.home)
        return ImageKeys(keys.load("snapshot"), keys.load("timestamp"))

    def documents(self) -> DirectorDocuments:
        """The director."""
        key = online_keys(self.home).load("director")
        return DirectorDocuments(self.database, self.home.director_dir, key, self.home.config.poll_s)

    def submit(self) -> SubmitService:
        """Quotes and acceptances."""
        staging_dir = self.home.path(self.home.config.staging_dir)
        return SubmitService(self.database, self.image, self.image_keys(), staging_dir)

    def rollout(self) -> RolloutService:
        """Targets."""
        return RolloutService(self.database, self.documents(), self.carrier.registry.find_line)

    def close(self) -> None:
        """Close the database."""
        self.carrier.close()


def online_keys(home: Home) -> KeyStore:
    """Return the online keys: the only ones a serving process may open."""
    return KeyStore(home.path(home.config.online_keys_dir))


def open_program(home: Home, clock: Clock | None = None) -> Program:
    """Open database and packs, bring the schema to this program's, check the receipt key's delegation. Blocking."""
    used = clock or SystemClock()
    urls = CarrierUrls(home.database_url, home.blobs_dir.as_uri())
    carrier = open_carrier(urls, used, _receipts(home))
    migrate_joint(carrier.database)
    return Program(home, carrier, used)


def _receipts(home: Home) -> ReceiptSigner:
    cert_path, root_path = home.path(home.config.receipt_cert_file), home.path(home.config.service_root_file)
    try:
        cert, root = cert_path.read_bytes(), bytes.fromhex(root_path.read_text("ascii").strip())
    except (OSError, ValueError) as error:
        raise LocalError(
            f"receipt key: expected {cert_path} and {root_path} as init wrote them: {error}"
        ) from error
    return ReceiptSigner(online_keys(home).load("receipt"), cert, root)


def parse_roles(text: str) -> frozenset[str]:
    """Return the roles of a comma-separated list; raises `ConfigError`."""
    roles = frozenset(part.strip() for part in text.split(",") if part.strip())
    if not roles or roles - set(ROLES):
        raise ConfigError(f"--roles: expected some of {', '.join(ROLES)}, got {text[:80]!r}")
    return roles


async def serve(home: Home, roles: frozenset[str], service: Service) -> None:
    """Serve until `service.stopping` is set."""
    program = await trio.to_thread.run_sync(open_program, home)
    try:
        await _serve(program, roles, service)
    finally:
        program.close()


async def _serve(program: Program, roles: frozenset[str], service: Service) -> None:
    worker = program.carrier.worker
    metrics = Metrics("deliver")
    requests = metrics.counter("requests", "Requests by kind and status", ("kind", "status"))
    done = metrics.gauge("upkeep_last_success_unixtime_seconds", "When upkeep last went through")
    gateway_routes, operator_routes, metrics_routes = Router(), Router(), Router()
    metrics_routes.route("GET", "/metrics", metrics.handle)
    upkeep: list[Upkeep] = []
    if "joint" in roles:
        upkeep += _add_joint(program, requests, gateway_routes, operator_routes)
    if "storage" in roles:
        storage_routes(gateway_routes, program.carrier.storage)
        upkeep.append((GC_EVERY_S, program.carrier.admin.gc))
        charge = partial(record_contracts, program.database)
        upkeep.append((GC_EVERY_S, lambda: charge(now_s=int(program.clock.now_s()))))
    for _every_s, call in upkeep:
        await worker.run(call)
    async with trio.open_nursery() as nursery:
        await program.carrier.start(nursery)
        listeners = _open_listeners(program.home, roles)
        for every_s, call in upkeep:
            nursery.start_soon(_repeat, every_s, call, program, done, service)
        async with trio.open_nursery() as serving:
            for routes, listener in zip(
                (gateway_routes, operator_routes, metrics_routes), listeners, strict=True
            ):
                if listener is not None:
                    await serving.start(partial(_serve_listener, routes, listener, service))
            service.ready(roles=sorted(roles), **_ports(listeners))
        nursery.cancel_scope.cancel()


def _add_joint(program: Program, requests: Counter, gateways: Router, operators: Router) -> list[Upkeep]:
    home, clock, carrier = program.home, program.clock, program.carrier
    submit, rollout, nonces = program.submit(), program.rollout(), NonceBook(program.database)
    static = StaticFiles(home.image_dir, home.director_dir)
    gateways.route("GET", "/image/metadata/{name}", static.get_metadata)
    gateways.route("GET", "/image/targets/{path...}", static.get_target)
    gateways.route("GET", "/director/{path}/director.json", static.get_director)
    gateways.route("GET", "/director/{name}", static.get_director_root)
    joint = JointHttp(
        GatewayService(program.database, carrier.registry, rollout.documents),
        carrier.directory,
        nonces,
        online_keys(home).load("time"),
        carrier.worker,
        clock,
        requests,
    )
    gateways.route("POST", "/joint/v1/enrol", joint.post_enrol)
    gateways.route("POST", "/joint/v1/reports", joint.post_report)
    gateways.route("POST", "/joint/v1/time", joint.post_time)
    operator = OperatorHttp(program.database, submit, rollout, nonces, carrier.worker, clock, requests)
    operators.route("POST", "/operator/v1/quotes", operator.post_quote)
    operators.route("POST", "/operator/v1/quotes/{quote}/accept", operator.post_accept)
    operators.route("POST", "/operator/v1/rollouts", operator.post_rollout)
    every_s = float(home.config.upkeep_s)
    return [
        (every_s, lambda: submit.publish(now_s=clock.now_s())),
        (every_s, lambda: rollout.end_what_ended(now_s=int(clock.now_s()))),
        (every_s, lambda: submit.drop_old_quotes(now_s=int(clock.now_s()))),
    ]


def _open_listeners(home: Home, roles: frozenset[str]) -> Sequence[Listener | None]:
    """Open gateway, operator and metrics listeners, None where no role needs one."""
    config = home.config
    tls = server_context(home.path(config.tls_cert_file), home.path(config.tls_key_file))
    gateway = (
        open_listener(*parse_listen(config.gateway_listen), tls) if roles & {"joint", "storage"} else None
    )
    operator = open_listener(*parse_listen(config.operator_listen), tls) if "joint" in roles else None
    return gateway, operator, open_listener(*parse_listen(config.metrics_listen))


def _ports(listeners: Sequence[Listener | None]) -> dict[str, int]:
    names = ("gateway_port", "operator_port", "metrics_port")
    return {
        name: listener.port for name, listener in zip(names, listeners, strict=True) if listener is not None
    }


async def _serve_listener(
    routes: Router,
    listener: Listener,
    service: Service,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve_http(routes, [listener], log=service.log, stopping=service.stopping, task_status=task_status)


async def _repeat(
    every_s: float, call: Callable[[], object], program: Program, done: Gauge, service: Service
) -> None:
    """Run one piece of upkeep for ever; what fails is logged and tried again, the service goes on."""
    while True:
        await trio.sleep(every_s)
        try:
            await program.carrier.worker.run(call)
        except EdgeError as error:
            service.log.warning("upkeep_failed", error=type(error).__name__, detail=str(error))
            continue
        done.set(program.clock.now_s())
