"""Who may do what: the checks in front of every storage request (protocols.md §1–§3, X-03, X-04).

Rules
- The line comes from the socket's peer only. It must be one of the contract's lines *now*, on every request.
- A caller without a valid credential (device signature, or session token) gets one answer for every cause: `refused`.
  With one, the causes have their own codes. The true reason always goes to the log.
- A gateway's statement adds no right by itself: it must be enrolled, on the caller's line, its contract running.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import attrs
import msgspec

from carrier.lines.domain import Line, Refusal, RefusalCode
from carrier.storage import facts
from carrier.storage.outcomes import Code, Refused
from carrier.storage.ports import LinePort, StorageStores
from carrier.worker import Worker
from runtime.clock import Clock
from wire.errors import UpgradeNeededError, WireError
from wire.ids import RandomId
from wire.statement import (
    LIFE_S,
    SKEW_S,
    Audience,
    Kind,
    Statement,
    StatementClockError,
    from_header,
    open_statement,
)
from wire.storage import GatewayRelay

BodyT = TypeVar("BodyT", bound=msgspec.Struct)

_REFUSED_TEXT = "not allowed"
_STOPPED_TEXT = {
    Code.DEVICE_REVOKED: "this device is locked or revoked; ask the administrator of the contract",
    Code.CONTRACT_ENDED: "the storage contract has ended",
    Code.LINE_UNKNOWN: "no access line is known for this address; IPv6 from the registered line is needed",
    Code.LINE_NOT_CONTRACT: "this access line is not one of the contract's lines",
    Code.GATEWAY_ENDED: "this gateway is not enrolled on this line, or its contract has ended",
}


@attrs.frozen
class Caller:
    """What one request shows: the socket's peer, and the gateway's statement if there is one."""

    peer: str
    gateway_statement: str | None = None


@attrs.frozen
class RelayedRequest:
    """The request a gateway statement must name."""

    method: str
    path: str
    body: bytes


def refused(reason: str) -> Refused:
    """Return the one answer for callers without a valid credential."""
    return Refused(Code.REFUSED, _REFUSED_TEXT, reason)


def stopped(code: Code, reason: str = "") -> Refused:
    """Return a distinct refusal for a caller whose credential is valid."""
    return Refused(code, _STOPPED_TEXT[code], reason or code.value)


@attrs.frozen
class Authority:
    """The checks, over stores and the line map."""

    stores: StorageStores
    lines: LinePort
    clock: Clock
    worker: Worker

    async def open_statement(
        self, blob: bytes, kind: Kind, body_type: type[BodyT]
    ) -> Statement[BodyT] | Refused:
        """Verify a statement for storage: form, signature, kind, audience, time. Its nonce is not spent yet."""
        try:
            return open_statement(
                blob, kind=kind, audience=Audience.STORAGE, now_s=self.clock.now_s(), body_type=body_type
            )
        except StatementClockError as error:
            text = "statement outside its time window: set the clock"
            return Refused(Code.CLOCK, text, str(error), {"server_time": int(self.clock.now_s())})
        except UpgradeNeededError as error:
            return Refused(Code.UPGRADE_NEEDED, "a newer version than this service knows", str(error))
        except WireError as error:
            return refused(f"statement: {error}")

    async def spend(self, statement: Statement[BodyT]) -> Refused | None:
        """Make a statement single-use: the second time it is refused."""
        drop_at = int(self.clock.now_s()) + LIFE_S + 2 * SKEW_S
        fresh = await self.worker.run(
            self.stores.sessions.use_nonce, statement.signer, statement.nonce, drop_at
        )
        return None if fresh else refused("statement: replayed")

    def find_line(self, caller: Caller) -> Line | Refused:
        """Return the caller's line; the code is distinct, so only a caller with a credential may see it."""
        line = self.lines.authenticate(caller.peer)
        if isinstance(line, Line):
            return line
        return _line_refusal(line)

    def check_line(self, caller: Caller, allowed: frozenset[int]) -> Line | Refused:
        """Return the caller's line if it is one of the contract's lines now."""
        line = self.find_line(caller)
        if isinstance(line, Line) and line.line_id not in allowed:
            return stopped(Code.LINE_NOT_CONTRACT)
        return line

    async def check_gateway(self, caller: Caller, line: Line, request: RelayedRequest) -> bytes | Refused:  # noqa: PLR0911 - one per refusal
        """Return the key of the gateway that relays this very request from this line."""
        if caller.gateway_statement is None:
            return stopped(Code.GATEWAY_ENDED, "gateway statement is missing")
        try:
            blob = from_header(caller.gateway_statement)
        except WireError as error:
            return stopped(Code.GATEWAY_ENDED, f"gateway statement: {error}")
        statement = await self.open_statement(blob, Kind.GATEWAY_RELAY, GatewayRelay)
        if isinstance(statement, Refused) and statement.code is Code.CLOCK:
            text = "the gateway's clock is wrong: try again once the gateway has set it"
            return Refused(Code.UNAVAILABLE, text, f"gateway {statement.reason}")
        if isinstance(statement, Refused):
            return stopped(Code.GATEWAY_ENDED, f"gateway {statement.reason}")
        expected = GatewayRelay(
            method=request.method, path=request.path, body_sha256=hashlib.sha256(request.body).hexdigest()
        )
        if statement.body != expected:
            return stopped(Code.GATEWAY_ENDED, "gateway statement names another request")
        if not self.lines.gateway_on_line(statement.signer, line.line_id):
            return stopped(Code.GATEWAY_ENDED)
        if await self.spend(statement) is not None:
            return stopped(Code.GATEWAY_ENDED, "gateway statement: replayed")
        return statement.signer

    async def check_token(  # noqa: PLR0911 - one per refusal
        self, caller: Caller, session: str, token: str | None, mode: facts.Mode | None
    ) -> facts.SessionFacts | Refused:
        """Return the session a token opens, if everything still holds now; decided anew on every request."""
        given = await self._find_session(session, token)
        if isinstance(given, Refused):
            return given
        if given.device_state is not facts.DeviceState.ACTIVE:
            return stopped(Code.DEVICE_REVOKED)
        if not given.contract_runs:
            return stopped(Code.CONTRACT_ENDED)
        line = self.check_line(caller, given.lines)
        if isinstance(line, Refused):
            return line
        if not self.lines.gateway_on_line(given.gateway_key, line.line_id):
            return stopped(Code.GATEWAY_ENDED)
        if given.closed or given.lease_until <= self.clock.now_s():
            return Refused(Code.SESSION_OVER, "the session was closed or its lease is over: open a new one")
        if mode is not None and given.mode is not mode:
            return Refused(Code.REFUSED, f"this needs a session opened to {mode}", f"mode is {given.mode}")
        return given

    async def _find_session(self, session: str, token: str | None) -> facts.SessionFacts | Refused:
        try:
            wanted = RandomId.parse(session)
            digest = hashlib.sha256(bytes.fromhex(token or "")).digest()
        except (WireError, ValueError):
            return refused("session or token has another form")
        given = await self.worker.run(self.stores.sessions.find_session, digest, int(self.clock.now_s()))
        if given is None or given.session != wanted:
            return refused("no such token, or a token of another session")
        return given


def _line_refusal(refusal: Refusal) -> Refused:
    if refusal.code is RefusalCode.MAP_STALE:
        return Refused(Code.UNAVAILABLE, "lines cannot be checked now: try again", refusal.reason)
    return stopped(Code.LINE_UNKNOWN, f"{refusal.code}: {refusal.reason}")
