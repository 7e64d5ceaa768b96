"""The storage protocol on the LAN: spool packs, relay the rest, and answer from the spool where the spool knows.

A request has passed authentication when it comes here. The service stays the judge of sessions, lines and quota; the
gateway answers by itself only what it knows better: what lies in its spool.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, assert_never

import msgspec
import trio

from hgwd.adapters.forwarder import Forwarder
from hgwd.adapters.lan_devices import LanDevice, LanDevices
from hgwd.adapters.relay_body import read_whole, relay_streamed
from hgwd.adapters.spool import Offer, Spool
from hgwd.core.relay import (
    LAN_PREFIX,
    STORAGE_PREFIX,
    Matched,
    Outage,
    Route,
    advance_outage,
    headers_to_pass,
    match_storage_request,
)
from hgwd.core.spool import (
    AlreadyRejected,
    AlreadyStored,
    Full,
    IntakeStopped,
    NoLongerAllowed,
    PackState,
    Reception,
    Spooled,
    TooLarge,
    WrongHash,
)
from hgwd.ports import ServiceAnswer, Upstream
from runtime.clock import Clock
from runtime.errors import RemoteError, Unavailable
from runtime.http import Request, Response, error_response, json_response
from wire.errors import FormatError
from wire.signing import SigningKey
from wire.statement import Audience, Kind, make_statement, to_header
from wire.storage import HEADER_GATEWAY, ID_BYTES, GatewayRelay, SessionOpened, split_ids

FLASH_RETRY_S: Final = 600.0
DRAINING_RETRY_S: Final = 1.0
_HELD_STATUS: Final = {"quota-full": 507, "upgrade-needed": 426, "clock": 401}


class _LineDownError(Unavailable):
    """The service could not be reached: told apart from a busy or full database of our own."""


class StorageRelay:
    """Answers storage requests of paired devices."""

    def __init__(
        self,
        nursery: trio.Nursery,
        spool: Spool,
        forwarder: Forwarder,
        upstream: Upstream,
        devices: LanDevices,
        key: SigningKey,
        clock: Clock,
        count_refusal: Callable[[str], None],
    ) -> None:
        self._nursery = nursery
        self._spool = spool
        self._forwarder = forwarder
        self._upstream = upstream
        self._devices = devices
        self._key = key
        self._clock = clock
        self._count_refusal = count_refusal
        self._outage: Outage | None = None

    async def handle(self, request: Request, device: LanDevice) -> Response:
        """Answer one request of `device`; the path begins with the LAN prefix of the storage protocol."""
        path = request.path.removeprefix(LAN_PREFIX + STORAGE_PREFIX)
        matched = match_storage_request(request.method, path)
        if matched is None:
            return self._refuse(404, "not-found", "expected a request of the storage protocol")
        request.trace.add(route=matched.route.value, session_id=matched.session or "")
        if (request.content_length or 0) > matched.body_bytes_max:
            return self._refuse(413, "too-large", f"expected at most {matched.body_bytes_max} bytes")
        refusal = await self._check_session(matched, device)
        if refusal is not None:
            return refusal
        try:
            return await self._dispatch(request, device, matched, path)
        except _LineDownError as error:
            self._outage = advance_outage(self._outage, self._clock.monotonic_s())
            return self._refuse(
                503,
                "line-down",
                "the storage service cannot be reached now",
                retry_after_s=error.retry_after_s or self._outage.retry_after_s(),
            )

    async def _dispatch(self, request: Request, device: LanDevice, matched: Matched, path: str) -> Response:
        match matched.route:
            case Route.PUT_PACK:
                answer = await self._put_pack(request, device, matched)
            case Route.STATE:
                answer = await self._state(request, device, matched, path)
            case Route.COMMIT:
                answer = await self._commit(request, device, matched, path)
            case Route.OPEN_SESSION:
                answer = await self._open_session(request, device, matched, path)
            case Route.CLOSE:
                answer = await self._close(request, matched, path)
            case Route.SIGNED:
                body = await request.body.read(matched.body_bytes_max)
                answer = await self._ask(request, path, body, extra=self._statement(path, body))
            case Route.RELAY:
                answer = await self._ask(request, path, await request.body.read(matched.body_bytes_max))
            case Route.READ_PACK:
                answer = await self._read_pack(request, device, path)
            case _:
                assert_never(matched.route)
        return answer

    async def _check_session(self, matched: Matched, device: LanDevice) -> Response | None:
        """A session belongs to the device that opened it, here and whatever its token says."""
        if matched.session is None:
            return None
        session = await self._spool.session(matched.session)
        if session is None:
            needs_it = matched.route is Route.PUT_PACK
            return self._session_over("it was not opened through this gateway") if needs_it else None
        if session.device != device.device:
            return self._refuse(403, "refused", "expected a session of this device")
        if session.over_reason is not None and matched.route is not Route.CLOSE:
            return self._session_over(session.over_reason)
        return None

    async def _put_pack(self, request: Request, device: LanDevice, matched: Matched) -> Response:
        if request.content_length is None:
            return self._refuse(411, "bad-request", "expected Content-Length with a pack")
        session, pack = matched.session or "", matched.pack or ""
        held = self._quota_refusal(session)
        if held is not None:
            return held
        outcome = await self._spool.receive(
            Offer(
                device=device.device,
                session=session,
                pack=pack,
                size_bytes=request.content_length,
                still_allowed=lambda: self._devices.is_live(device.device),
            ),
            request.body.chunks,
        )
        return self._answer_reception(outcome, pack)

    def _answer_reception(self, outcome: Reception, pack: str) -> Response:
        match outcome:
            case Spooled():
                answer = json_response(202, {"state": "spooled"})
            case AlreadyStored():
                answer = json_response(200, {"state": "stored"})
            case AlreadyRejected(reason):
                message = f"the service refused pack {pack} for good: {reason}"
                answer = self._refuse(409, "conflict", message)
            case WrongHash(found):
                answer = self._refuse(400, "bad-hash", f"expected bytes that hash to {pack}, got {found}")
            case TooLarge(limit_bytes):
                answer = self._refuse(413, "too-large", f"expected a pack of at most {limit_bytes} bytes")
            case Full(retry_after_s, cause):
                message = f"the gateway's spool is full ({cause})"
                answer = self._refuse(429, "spool-full", message, retry_after_s=retry_after_s)
            case NoLongerAllowed():
                answer = self._refuse(403, "refused", "expected the token of a paired device")
            case IntakeStopped():
                message = "the gateway's flash failed: it accepts nothing until its next start"
                answer = self._refuse(503, "unavailable", message, retry_after_s=FLASH_RETRY_S)
            case _:
                assert_never(outcome)
        return answer

    async def _state(self, request: Request, device: LanDevice, matched: Matched, path: str) -> Response:
        """Merge: what lies here or was stored from here, and for the rest the service's word.

        While the service refuses the session's packs for now, its refusal is the answer: "spooled" would let the NAS
        wait for something that only a person can change.
        """
        body = await request.body.read(matched.body_bytes_max)
        try:
            names = split_ids(body)
        except FormatError as error:
            return self._refuse(400, "bad-request", str(error))
        states = await self._spool.states(
            device.device, matched.session or "", [name.hex() for name in names]
        )
        if PackState.SPOOLED in states:
            held = self._held_refusal(matched.session or "")
            if held is not None:
                return held
        unknown = [place for place, state in enumerate(states) if state is PackState.UNKNOWN]
        if unknown:
            asked = b"".join(names[place] for place in unknown)
            answer = await self._ask(request, path, asked)
            if answer.status != 200:
                return answer
            if not isinstance(answer.body, bytes) or len(answer.body) != len(asked) // ID_BYTES:
                raise RemoteError("the service answered `state` with another number of packs")
            for place, value in zip(unknown, answer.body, strict=True):
                states[place] = PackState(value) if value <= PackState.REJECTED else PackState.UNKNOWN
        return Response(200, (("content-type", "application/octet-stream"),), bytes(states))

    async def _commit(self, request: Request, device: LanDevice, matched: Matched, path: str) -> Response:
        session = matched.session or ""
        waiting = await self._spool.count_waiting(session)
        if waiting:
            return self._quota_refusal(session) or self._refuse(
                409,
                "draining",
                f"{waiting} packs of session {session} are still on their way to the service",
                retry_after_s=DRAINING_RETRY_S,
                waiting_packs=waiting,
            )
        if request.content_length is None:
            return self._refuse(411, "bad-request", "expected Content-Length with a commit")
        chunks = request.body.chunks(matched.body_bytes_max)
        answer = await self._ask(request, path, chunks, length=request.content_length)
        if answer.status in {200, 201}:
            await self._devices.note_durable(device.device)
        return answer

    async def _read_pack(self, request: Request, device: LanDevice, path: str) -> Response:
        asking = self._asking(request, path, b"")
        try:
            return await relay_streamed(
                self._nursery, asking, still_allowed=lambda: self._devices.is_live(device.device)
            )
        except Unavailable as error:
            raise _LineDownError(str(error), retry_after_s=error.retry_after_s) from error

    async def _open_session(
        self, request: Request, device: LanDevice, matched: Matched, path: str
    ) -> Response:
        body = await request.body.read(matched.body_bytes_max)
        answer = await self._ask(request, path, body, extra=self._statement(path, body))
        if answer.status == 201 and isinstance(answer.body, bytes):
            try:
                opened = msgspec.json.decode(answer.body, type=SessionOpened)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RemoteError("the service answered `sessions` with another form") from error
            await self._spool.put_session(opened.session, device.device, opened.token)
        return answer

    async def _close(self, request: Request, matched: Matched, path: str) -> Response:
        """End a session; what it left here is freed, unless it is accepted and may still be stored."""
        session = matched.session or ""
        known = await self._spool.session(session)
        waiting = await self._spool.count_waiting(session)
        alive = known is not None and known.over_reason is None and session not in self._forwarder.held
        if waiting and alive:
            return self._refuse(
                409,
                "draining",
                f"{waiting} packs of session {session} are still on their way to the service",
                retry_after_s=DRAINING_RETRY_S,
                waiting_packs=waiting,
            )
        answer = await self._ask(request, path, b"")
        ended = answer.status in {204, 404, 410} or (answer.status < 500 and not alive)
        if ended and known is not None:
            await self._spool.drop_session(session)
        return answer

    async def _ask(
        self,
        request: Request,
        path: str,
        body: bytes | AsyncIterator[bytes],
        *,
        length: int | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> Response:
        """Pass the request on with `body` and return the whole answer."""
        try:
            async with self._asking(request, path, body, length=length, extra=extra) as answer:
                response = await read_whole(answer)
        except Unavailable as error:
            raise _LineDownError(str(error), retry_after_s=error.retry_after_s) from error
        self._outage = None
        if isinstance(response.body, bytes):
            self._upstream.note_answer(response.status, response.body)
        return response

    def _asking(
        self,
        request: Request,
        path: str,
        body: bytes | AsyncIterator[bytes],
        *,
        length: int | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[ServiceAnswer]:
        return self._upstream.ask(
            request.method,
            STORAGE_PREFIX + path,
            headers={**headers_to_pass(request.headers), **(extra or {})},
            body=body,
            length=len(body) if isinstance(body, bytes) else length or 0,
        )

    def _statement(self, path: str, body: bytes) -> dict[str, str]:
        """Return the header that says which gateway passes this request on (protocols §3)."""
        relay = GatewayRelay(
            method="POST", path=STORAGE_PREFIX + path, body_sha256=hashlib.sha256(body).hexdigest()
        )
        statement = make_statement(
            self._key,
            Kind.GATEWAY_RELAY,
            Audience.STORAGE,
            now_s=self._clock.now_s(),
            nonce=secrets.token_bytes(16),
            body=relay,
        )
        return {HEADER_GATEWAY: to_header(statement)}

    def _quota_refusal(self, session: str) -> Response | None:
        """Return the service's own 507 while the forwarder holds the session for its quota."""
        held = self._forwarder.held.get(session)
        return self._held_refusal(session) if held is not None and held.error.code == "quota-full" else None

    def _held_refusal(self, session: str) -> Response | None:
        """Return the service's own refusal while the forwarder holds the session for it."""
        held = self._forwarder.held.get(session)
        if held is None:
            return None
        error = held.error
        numbers = {
            "needed_bytes": error.needed_bytes,
            "limit_bytes": error.limit_bytes,
            "used_bytes": error.used_bytes,
        }
        known = {name: value for name, value in numbers.items() if value is not None}
        return self._refuse(_HELD_STATUS.get(error.code, 403), error.code, error.message, **known)

    def _session_over(self, reason: str) -> Response:
        return self._refuse(410, "session-over", f"the session has ended ({reason}): open a new one")

    def _refuse(
        self, status: int, code: str, message: str, *, retry_after_s: float | None = None, **extra: object
    ) -> Response:
        self._count_refusal(code)
        return error_response(status, code, message, retry_after_s=retry_after_s, **extra)
