"""HTTP of the storage protocol (protocols.md §3): requests to calls, answers to status and bytes.

Rules: no decision here but of form. The peer is the socket's (`Request.peer`); of the headers only the session token and
the gateway's statement are read, so a forwarded address changes nothing (L1). Every refusal is logged with its reason.
"""

from __future__ import annotations

from typing import Final

import attrs
import trio

from carrier.storage import facts
from carrier.storage.authority import Caller
from carrier.storage.outcomes import Code, Refused
from carrier.storage.packs import PackBytes, find_pack, put_pack, read_pack
from carrier.storage.services import DEVICES_PATH, SESSIONS_PATH, StorageService
from runtime.http.ranges import Unsatisfiable, decide_range
from runtime.http.router import Router
from runtime.http.types import Request, Response, error_response, json_response
from wire.errors import FormatError
from wire.statement import STATEMENT_BYTES_MAX
from wire.storage import (
    COMMIT_BYTES_MAX,
    HEADER_GATEWAY,
    HEADER_SESSION,
    ID_BYTES,
    IDS_PER_REQUEST_MAX,
    LOCATION_BYTES,
    PACK_BYTES_MAX,
    split_ids,
)

RETRY_AFTER_S: Final = 5
COMMITS_AT_ONCE_MAX: Final = 8
"""Each may hold a body of `COMMIT_BYTES_MAX` in memory; the others wait, unread."""
_IDS_BYTES_MAX: Final = IDS_PER_REQUEST_MAX * ID_BYTES
_OCTETS: Final = (("content-type", "application/octet-stream"),)

STATUS: Final = {
    Code.BAD_FORMAT: 400,
    Code.BAD_HASH: 400,
    Code.CLOCK: 401,
    Code.REFUSED: 403,
    Code.LINE_UNKNOWN: 403,
    Code.LINE_NOT_CONTRACT: 403,
    Code.GATEWAY_ENDED: 403,
    Code.DEVICE_REVOKED: 403,
    Code.CONTRACT_ENDED: 403,
    Code.NOT_FOUND: 404,
    Code.MISSING: 409,
    Code.CONFLICT: 409,
    Code.STALE_EPOCH: 409,
    Code.PARENT_MISMATCH: 409,
    Code.SESSION_OVER: 410,
    Code.TOO_LARGE: 413,
    Code.UPGRADE_NEEDED: 426,
    Code.UNAVAILABLE: 503,
    Code.QUOTA_FULL: 507,
}


def storage_routes(router: Router, service: StorageService) -> None:
    """Register every path of the storage protocol."""
    edge = StorageEdge(service)
    session = SESSIONS_PATH + "/{session}"
    router.route("POST", DEVICES_PATH, edge.enrol_device)
    router.route("POST", SESSIONS_PATH, edge.open_session)
    router.route("DELETE", session, edge.close_session)
    router.route("POST", session + "/have", edge.have)
    router.route("POST", session + "/state", edge.state)
    router.route("POST", session + "/commit", edge.commit)
    router.route("PUT", session + "/packs/{pack}", edge.put_pack)
    router.route("GET", session + "/packs/{pack}", edge.get_pack)
    router.route("GET", session + "/generations", edge.list_generations)
    router.route("GET", session + "/generations/{generation}/root", edge.get_root)
    router.route("GET", session + "/generations/{generation}/receipt", edge.get_receipt)
    router.route("GET", session + "/header/{other}", edge.get_header)
    router.route("POST", session + "/generations/{generation}/locate", edge.locate)


@attrs.frozen
class StorageEdge:
    """The handlers; each checks its session anew."""

    service: StorageService
    commits: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(COMMITS_AT_ONCE_MAX))

    async def enrol_device(self, request: Request) -> Response:
        """`POST devices`."""
        blob = await request.body.read(STATEMENT_BYTES_MAX)
        answer = await self.service.enrol_device(_caller(request), blob)
        return _refuse(request, answer) if isinstance(answer, Refused) else json_response(201, answer)

    async def open_session(self, request: Request) -> Response:
        """`POST sessions`."""
        blob = await request.body.read(STATEMENT_BYTES_MAX)
        answer = await self.service.open_session(_caller(request), blob)
        if isinstance(answer, Refused):
            return _refuse(request, answer)
        request.trace.add(session_id=answer.session)
        return json_response(201, answer)

    async def close_session(self, request: Request, session: str) -> Response:
        """`DELETE sessions/{s}`."""
        given = await self._check(request, session, None)
        if isinstance(given, Response):
            return given
        await self.service.close_session(given)
        return Response(204)

    async def have(self, request: Request, session: str) -> Response:
        """`POST have`."""
        given = await self._check(request, session, facts.Mode.APPEND)
        if isinstance(given, Response):
            return given
        ids = await _read_ids(request)
        if isinstance(ids, Response):
            return ids
        return _octets(200, await self.service.have(given, ids))

    async def state(self, request: Request, session: str) -> Response:
        """`POST state`."""
        given = await self._check(request, session, facts.Mode.APPEND)
        if isinstance(given, Response):
            return given
        ids = await _read_ids(request)
        if isinstance(ids, Response):
            return ids
        return _octets(200, await self.service.pack_states(given, ids))

    async def commit(self, request: Request, session: str) -> Response:
        """`POST commit`."""
        given = await self._check(request, session, facts.Mode.APPEND)
        if isinstance(given, Response):
            return given
        async with self.commits:
            done = await self.service.commit(given, await request.body.read(COMMIT_BYTES_MAX))
        if isinstance(done, Refused):
            return _refuse(request, done)
        request.trace.add(generation=done.generation.text, new=done.new, dropped=len(done.dropped))
        return _octets(201, done.receipt)

    async def put_pack(self, request: Request, session: str, pack: str) -> Response:
        """`PUT pack`: refused by its declared length before a byte is read, or stored."""
        given = await self._check(request, session, facts.Mode.APPEND)
        if isinstance(given, Response):
            return given
        body = request.body.chunks(PACK_BYTES_MAX)
        done = await put_pack(self.service, given, pack, request.content_length, body)
        if isinstance(done, Refused):
            return _refuse(request, done)
        return json_response(201 if done.new else 200, done.state)

    async def get_pack(self, request: Request, session: str, pack: str) -> Response:
        """`GET pack`, whole or one range."""
        given = await self._check(request, session, facts.Mode.READ)
        if isinstance(given, Response):
            return given
        found = await find_pack(self.service, given, pack)
        if isinstance(found, Refused):
            return _refuse(request, found)
        wanted = decide_range(request.headers.get("range"), found.size_bytes)
        if isinstance(wanted, Unsatisfiable):
            return Response(416, (("content-range", f"bytes */{found.size_bytes}"),))
        if wanted is None:
            return self._pack_response(200, given, PackBytes(found, 0, found.size_bytes))
        return self._pack_response(206, given, PackBytes(found, wanted.offset, wanted.length_bytes))

    async def list_generations(self, request: Request, session: str) -> Response:
        """`GET generations`."""
        given = await self._check(request, session, facts.Mode.READ)
        if isinstance(given, Response):
            return given
        return json_response(200, await self.service.list_generations(given))

    async def get_root(self, request: Request, session: str, generation: str) -> Response:
        """`GET generations/{g}/root`."""
        row = await self._generation(request, session, generation)
        return row if isinstance(row, Response) else _octets(200, row.root)

    async def get_receipt(self, request: Request, session: str, generation: str) -> Response:
        """`GET generations/{g}/receipt`."""
        row = await self._generation(request, session, generation)
        return row if isinstance(row, Response) else _octets(200, row.receipt)

    async def get_header(self, request: Request, session: str, other: str) -> Response:
        """`GET header/{session}`."""
        given = await self._check(request, session, facts.Mode.READ)
        if isinstance(given, Response):
            return given
        header = await self.service.read_header(given, other)
        return _refuse(request, header) if isinstance(header, Refused) else _octets(200, header)

    async def locate(self, request: Request, session: str, generation: str) -> Response:
        """`POST generations/{g}/locate`."""
        given = await self._check(request, session, facts.Mode.READ)
        if isinstance(given, Response):
            return given
        ids = await _read_ids(request)
        if isinstance(ids, Response):
            return ids
        places = await self.service.locate(given, generation, ids)
        if isinstance(places, Refused):
            return _refuse(request, places)
        return _octets(200, b"".join(_location(place) for place in places))

    async def _check(
        self, request: Request, session: str, mode: facts.Mode | None
    ) -> facts.SessionFacts | Response:
        given = await self.service.check(_caller(request), session, request.headers.get(HEADER_SESSION), mode)
        if isinstance(given, Refused):
            return _refuse(request, given)
        request.trace.add(session_id=given.session.text, contract=given.contract.text)
        return given

    def _pack_response(self, status: int, given: facts.SessionFacts, part: PackBytes) -> Response:
        last = part.offset + part.length_bytes - 1
        span = (("content-range", f"bytes {part.offset}-{last}/{part.pack.size_bytes}"),)
        headers = (*_OCTETS, ("accept-ranges", "bytes"), ("content-length", str(part.length_bytes)))
        body = read_pack(self.service, given, part)
        return Response(status, headers if status == 200 else (*headers, *span), body)

    async def _generation(
        self, request: Request, session: str, generation: str
    ) -> facts.GenerationRow | Response:
        given = await self._check(request, session, facts.Mode.READ)
        if isinstance(given, Response):
            return given
        row = await self.service.read_generation(given, generation)
        return _refuse(request, row) if isinstance(row, Refused) else row


def _caller(request: Request) -> Caller:
    peer = request.peer
    return Caller(
        peer=f"{peer.host}%{peer.zone}" if peer.zone else peer.host,
        gateway_statement=request.headers.get(HEADER_GATEWAY),
    )


def _refuse(request: Request, refused: Refused) -> Response:
    request.trace.add(outcome=refused.code.value, reason=refused.reason or refused.message)
    return error_response(
        STATUS[refused.code],
        refused.code.value,
        refused.message,
        retry_after_s=RETRY_AFTER_S if refused.code is Code.UNAVAILABLE else None,
        **refused.extra,
    )


async def _read_ids(request: Request) -> tuple[bytes, ...] | Response:
    try:
        return split_ids(await request.body.read(_IDS_BYTES_MAX))
    except FormatError as error:
        return _refuse(request, Refused(Code.BAD_FORMAT, str(error)))


def _location(place: tuple[bytes, int, int] | None) -> bytes:
    if place is None:
        return bytes(LOCATION_BYTES)
    pack, offset, length = place
    return pack + offset.to_bytes(8, "big") + length.to_bytes(8, "big")


def _octets(status: int, data: bytes) -> Response:
    return Response(status, _OCTETS, data)
