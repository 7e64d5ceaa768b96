"""The line registry for operators, and the line directory that answers on every request.

`LineRegistry` is synchronous (CLI; in servers through `Worker.run`). `LineDirectory` holds the map: `authenticate`
is a pure look-up without I/O, `run` reads the change counter twice a second and the map when it changed.
Not here: HTTP, statements, who may ask.
"""

from __future__ import annotations

import secrets

import attrs
import trio
from nacl import pwhash
from nacl.exceptions import InvalidkeyError

from carrier.errors import UnavailableError
from carrier.lines import outcomes as out
from carrier.lines.addresses import Prefix
from carrier.lines.domain import FOREVER_S, Line, LineMap, Refusal, authenticate
from carrier.lines.ports import GatewayClaim, LineStore
from carrier.lines.tables import MAP_REFRESH_S, QUARANTINE_S, AccessType, Region
from carrier.worker import Worker
from runtime.clock import Clock
from wire.ids import CustomerId, GatewaySerial, RandomId

DEVICE_SECRET_BYTES_MIN = 16
DEVICE_SECRET_BYTES_MAX = 64


@attrs.frozen
class LineRegistry:
    """Lines, prefixes, access keys and gateways: every change is one transaction with a typed outcome."""

    store: LineStore
    clock: Clock
    quarantine_s: int = QUARANTINE_S

    def add_line(
        self, customer_id: CustomerId, region: Region, access_type: AccessType
    ) -> Line | out.CustomerIdTaken:
        """Open a line (X-01, X-02)."""
        return self.store.add_line(customer_id, region, access_type, self._now())

    def find_line(self, customer_id: CustomerId) -> Line | None:
        """Return the running line of a customer ID."""
        return self.store.find_line(customer_id)

    def add_prefix(
        self,
        customer_id: CustomerId,
        prefix: Prefix,
        *,
        valid_from: int | None = None,
        valid_to: int = FOREVER_S,
    ) -> out.PrefixAdded | out.PrefixOverlaps | out.PrefixQuarantined | out.CustomerUnknown:
        """Give a prefix to a line from `valid_from` (default: now) until `valid_to`, unix seconds."""
        start = self._now() if valid_from is None else valid_from
        return self.store.add_prefix(customer_id, prefix, start, valid_to, quarantine_s=self.quarantine_s)

    def end_prefix(
        self, customer_id: CustomerId, prefix: Prefix, *, at: int | None = None
    ) -> out.PrefixEnded | out.PrefixUnknown:
        """End the line's prefix at `at` (default: now); grace period 0 (L3)."""
        return self.store.end_prefix(customer_id, prefix, self._now() if at is None else at)

    def end_line(self, customer_id: CustomerId) -> out.LineEnded | out.CustomerUnknown:
        """End a line with its prefixes and gateway contracts, now."""
        return self.store.end_line(customer_id, self._now())

    def add_gateway_contract(
        self, customer_id: CustomerId, serial: GatewaySerial, model: str, maker: str, secret: bytes
    ) -> out.GatewayContracted | out.SerialTaken | out.CustomerUnknown:
        """Open a gateway contract; `secret` (16 to 64 bytes) is the device's from manufacture."""
        if not DEVICE_SECRET_BYTES_MIN <= len(secret) <= DEVICE_SECRET_BYTES_MAX:
            raise ValueError(f"device secret: expected 16 to 64 bytes, got {len(secret)}")
        return self.store.add_gateway_contract(customer_id, serial, model, maker, secret, self._now())

    def end_gateway_contract(self, serial: GatewaySerial) -> out.GatewayContractEnded | out.SerialUnknown:
        """End a gateway contract now: delivery and forwarding stop, stored data stays (X table)."""
        return self.store.end_gateway_contract(serial, self._now())

    def enrol_gateway(self, line: Line, claim: GatewayClaim) -> out.GatewayEnrolled | out.EnrolmentRefused:
        """Bind a gateway key to its serial; same key again gives the same answer (protocols.md §4)."""
        gateway, path = (RandomId.from_bytes(secrets.token_bytes(16)) for _ in range(2))
        return self.store.enrol_gateway(line, claim, gateway, path, self._now())

    def forget_gateway_key(self, serial: GatewaySerial) -> bool:
        """Unbind a gateway's key after the operator checked why it changed."""
        return self.store.forget_gateway_key(serial, self._now())

    def find_gateway(self, key: bytes) -> out.GatewayEnrolled | None:
        """Return the enrolment of a gateway key whose contract runs now."""
        return self.store.find_gateway(key, self._now())

    def list_gateways(self) -> tuple[out.GatewayEnrolled, ...]:
        """Return every enrolled gateway whose contract runs now."""
        return self.store.list_gateways(self._now())

    def list_alarms(self) -> tuple[out.GatewayAlarm, ...]:
        """Return the alarms of enrolment, newest first."""
        return self.store.list_alarms()

    def set_access_key(self, customer_id: CustomerId, access_key: str) -> bool:
        """Set a line's access key (アクセスキー), stored as Argon2id; False when the line is unknown."""
        key_hash = pwhash.argon2id.str(access_key.encode()).decode()
        return self.store.set_access_key(customer_id, key_hash)

    def check_access_key(self, seen_from: Line, customer_id: CustomerId, access_key: str) -> bool:
        """Say whether ID and key are those of the line the request came from.

        Tries from another line never count against the line (LIN-16); a locked line answers False for every key.
        """
        if seen_from.customer_id != customer_id:
            return False
        stored = self.store.read_access_key(seen_from.line_id)
        if stored is None or stored[2] > self._now():
            return False
        try:
            pwhash.verify(stored[0].encode(), access_key.encode())
            ok = True
        except InvalidkeyError:
            ok = False
        self.store.count_access_key(seen_from.line_id, ok=ok, now_s=self._now())
        return ok

    def _now(self) -> int:
        return int(self.clock.now_s())


class LineDirectory:
    """The map in memory. Answers without I/O; knows how old its knowledge is and refuses when too old."""

    def __init__(self, store: LineStore, clock: Clock, worker: Worker) -> None:
        self._store = store
        self._clock = clock
        self._worker = worker
        self._map = LineMap.build(-1, (), (), ())
        self._confirmed_at_s: float | None = None

    def authenticate(self, peer_address: str) -> Line | Refusal:
        """Return the line of a socket peer now (see `domain.authenticate`)."""
        return authenticate(self._map, peer_address, now_s=self._clock.now_s(), map_age_s=self.age_s)

    def gateway_on_line(self, key: bytes, line_id: int) -> bool:
        """Say whether a gateway key is enrolled on the line under a running contract."""
        return self._map.gateway_on_line(key, line_id, self._clock.now_s())

    def knows_gateway(self, key: bytes) -> bool:
        """Say whether a running contract binds this gateway key, whatever line it speaks from."""
        return self._map.knows_gateway(key, self._clock.now_s())

    @property
    def age_s(self) -> float:
        """Seconds since the database last confirmed the map; infinite before the first time."""
        if self._confirmed_at_s is None:
            return float("inf")
        return self._clock.monotonic_s() - self._confirmed_at_s

    def refresh(self) -> None:
        """Ask the database once, in this thread. Raises `UnavailableError`; the old map then goes on ageing."""
        asked_at_s = self._clock.monotonic_s()
        if self._store.read_change() != self._map.change:
            self._map = self._store.read_map(int(self._clock.now_s()))
        self._confirmed_at_s = asked_at_s

    async def run(self) -> None:
        """Keep the map fresh until cancelled. Read it once by `refresh` before the first request."""
        while True:
            await trio.sleep(MAP_REFRESH_S)
            try:
                await self._worker.run(self.refresh)
            except UnavailableError:
                continue  # the map ages; after MAP_AGE_S_MAX it refuses everyone
