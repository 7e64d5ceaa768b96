"""`VaultStore` over HTTPS: the gateway on the LAN, which relays to the storage service (protocols §3).

Rules: the session token stays in memory; a session whose lease lapsed is opened again with the same header and the
call repeated; statements carry a fresh nonce and the service's idea of the time. Receipts are checked by the engine
against the service root pinned at enrolment. It does not do: packing, deciding what is missing.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Literal, TypeVar

import attrs
import msgspec
import trio

from nas_agent.adapters.storage_http import BodyFactory, Denied, StorageHttp
from nas_agent.ports import (
    Committed,
    GenerationInfo,
    Head,
    Location,
    Missing,
    Opened,
    PackAccepted,
    Refs,
    Refusal,
)
from runtime.clock import Clock
from runtime.errors import RemoteError
from runtime.http_client import ClientResponse
from wire.errors import WireError
from wire.signing import SigningKey
from wire.statement import Audience, Kind, make_statement
from wire.storage import (
    HEADER_SESSION,
    ID_BYTES,
    LOCATION_BYTES,
    PACK_BYTES_MAX,
    GenerationItem,
    PackState,
    SessionOpen,
    SessionOpened,
    to_base64,
    unverified_receipt,
)

_T = TypeVar("_T")
_LOCATION: Final = struct.Struct(">32sQQ")
_LIST_BYTES_MAX: Final = 4 << 20
_NONCE_BYTES: Final = 16
_LINE_DOWN: Final = frozenset({"line-down"})
_LINE_MOVED: Final = frozenset({"line-unknown"})
"""Inside a session the service knew the line a moment ago: its prefix changed, and the registry follows."""


@attrs.frozen
class _OpenArguments:
    mode: Literal["append", "read"]
    backup_set: str
    session_header: bytes | None


class HttpsStore:
    """A `VaultStore` for one contract and device."""

    def __init__(self, http: StorageHttp, *, contract: str, device: SigningKey, clock: Clock) -> None:
        """Speak through `http` as `device` of `contract`; no I/O."""
        self._http = http
        self._contract = contract
        self._device = device
        self._clock = clock
        self._clock_offset_s = 0.0
        self._arguments: _OpenArguments | None = None
        self._session = ""
        self._token = ""
        self._may_end = True

    async def open_session(
        self, mode: Literal["append", "read"], backup_set: str, session_header: bytes | None
    ) -> Opened | Refusal:
        """See `VaultStore`."""
        self._arguments = _OpenArguments(mode, backup_set, session_header)
        answer = await self._open(self._arguments)
        if isinstance(answer, Denied):
            return answer.refusal
        head = Head(answer.head.sequence, answer.head.root_sha256) if answer.head else None
        return Opened(answer.session, head, answer.limit_bytes, answer.used_bytes)

    async def have(self, ids: Sequence[bytes]) -> Sequence[bool] | Refusal:
        """See `VaultStore`.

        With the line down nobody can know, so "no" is said at once: the gateway's spool takes the packs meanwhile, and
        a chunk that was there already is at worst stored twice.
        """
        answer = await self._ask("POST", "/have", body=b"".join(ids), give_up_on=_LINE_DOWN)
        if isinstance(answer, Denied):
            return [False] * len(ids) if answer.refusal.code in _LINE_DOWN else answer.refusal
        return [flag == 1 for flag in _exactly(answer, len(ids))]

    async def put_pack(self, name: str, data: memoryview) -> PackAccepted | Refusal:
        """See `VaultStore`."""
        self._may_end = False
        answer = await self._ask("PUT", f"/packs/{name}", body=bytes(data))
        if isinstance(answer, Denied):
            return answer.refusal
        return PackAccepted(_parse(answer, PackState).state, new=answer.status != 200)

    async def pack_states(self, names: Sequence[str]) -> Sequence[int] | Refusal:
        """See `VaultStore`."""
        answer = await self._ask("POST", "/state", body=b"".join(bytes.fromhex(name) for name in names))
        return answer.refusal if isinstance(answer, Denied) else list(_exactly(answer, len(names)))

    async def commit(self, root_blob: bytes, refs: Refs) -> Committed | Missing | Refusal:
        """See `VaultStore`."""
        head = len(root_blob).to_bytes(4, "big") + root_blob
        answer = await self._ask(
            "POST",
            "/commit",
            body=lambda: _commit_body(head, refs),
            content_length=len(head) + refs.count * ID_BYTES,
        )
        if isinstance(answer, Denied):
            return Missing(answer.missing) if answer.refusal.code == "missing" else answer.refusal
        self._may_end = True
        try:
            return Committed(unverified_receipt(answer.body).generation, answer.body)
        except WireError as error:
            raise RemoteError(f"storage: expected a receipt for the commit: {error}") from error

    async def list_generations(self) -> tuple[GenerationInfo, ...] | Refusal:
        """See `VaultStore`."""
        answer = await self._ask("GET", "/generations", max_response_bytes=_LIST_BYTES_MAX)
        if isinstance(answer, Denied):
            return answer.refusal
        items = sorted(_parse(answer, list[GenerationItem]), key=lambda item: item.sequence)
        return tuple(GenerationInfo(**msgspec.structs.asdict(item)) for item in items)

    async def read_root(self, generation: str) -> bytes | Refusal:
        """See `VaultStore`."""
        return _bytes_of(await self._ask("GET", f"/generations/{generation}/root"))

    async def read_receipt(self, generation: str) -> bytes | Refusal | None:
        """See `VaultStore`."""
        return _bytes_of(await self._ask("GET", f"/generations/{generation}/receipt"))

    async def locate(self, generation: str, ids: Sequence[bytes]) -> Sequence[Location | None] | Refusal:
        """See `VaultStore`."""
        answer = await self._ask("POST", f"/generations/{generation}/locate", body=b"".join(ids))
        if isinstance(answer, Denied):
            return answer.refusal
        return [_location(row) for row in _LOCATION.iter_unpack(_exactly(answer, len(ids) * LOCATION_BYTES))]

    async def read_pack_range(self, name: str, offset: int, length: int) -> bytes | Refusal:
        """See `VaultStore`."""
        answer = await self._ask(
            "GET",
            f"/packs/{name}",
            headers={"range": f"bytes={offset}-{offset + length - 1}"},
            max_response_bytes=PACK_BYTES_MAX,
        )
        if isinstance(answer, Denied):
            return answer.refusal
        if answer.status == 200:  # the whole pack: a peer may ignore Range
            return _exactly(attrs.evolve(answer, body=answer.body[offset : offset + length]), length)
        return _exactly(answer, length)

    async def read_session_header(self, session: str) -> bytes | Refusal:
        """See `VaultStore`."""
        return _bytes_of(await self._ask("GET", f"/header/{session}"))

    async def close(self) -> None:
        """See `VaultStore`.

        A session with packs and no generation yet is left to its lease, which protects what was sent until the next
        run commits it; any other is ended.
        """
        session, self._session = self._session, ""
        if session and self._may_end:
            await self._http.farewell(f"/sessions/{session}", {HEADER_SESSION: self._token})
        self._token = ""
        await self._http.aclose()

    async def _open(self, arguments: _OpenArguments) -> SessionOpened | Denied:
        """Open a session; a clock that the service calls wrong is corrected by its own, once."""
        answer = await self._http.call("POST", "/sessions", body=lambda: self._statement(arguments))
        if isinstance(answer, Denied) and answer.server_time is not None and answer.refusal.code == "clock":
            self._clock_offset_s = answer.server_time - self._clock.now_s()
            answer = await self._http.call("POST", "/sessions", body=lambda: self._statement(arguments))
        if isinstance(answer, Denied):
            return answer
        opened = _parse(answer, SessionOpened)
        self._session, self._token = opened.session, opened.token
        return opened

    def _statement(self, arguments: _OpenArguments) -> bytes:
        header = arguments.session_header
        body = SessionOpen(
            contract=self._contract,
            backup_set=arguments.backup_set,
            mode=arguments.mode,
            session_header=None if header is None else to_base64(header),
        )
        return make_statement(
            self._device,
            Kind.SESSION_OPEN,
            Audience.STORAGE,
            now_s=self._clock.now_s() + self._clock_offset_s,
            nonce=secrets.token_bytes(_NONCE_BYTES),
            body=body,
        )

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes | BodyFactory = b"",
        content_length: int | None = None,
        headers: Mapping[str, str] | None = None,
        max_response_bytes: int = 1 << 20,
        give_up_on: frozenset[str] = frozenset(),
    ) -> ClientResponse | Denied:
        """Ask inside the session; one that is over is opened again, once."""
        for last in (False, True):
            answer = await self._http.call(
                method,
                f"/sessions/{self._session}{path}",
                body=body,
                content_length=content_length,
                headers={HEADER_SESSION: self._token, **(headers or {})},
                max_response_bytes=max_response_bytes,
                give_up_on=give_up_on,
                wait_for=_LINE_MOVED,
            )
            over = isinstance(answer, Denied) and answer.status == 410
            if last or not over or self._arguments is None:
                return answer
            reopened = await self._open(self._arguments)
            if isinstance(reopened, Denied):
                return reopened
        raise RemoteError("storage: unreachable")  # pragma: no cover - the loop returns


async def _commit_body(head: bytes, refs: Refs) -> AsyncIterator[bytes]:
    yield head
    blocks = refs.blocks()
    while (block := await trio.to_thread.run_sync(next, blocks, None)) is not None:
        yield block


def _exactly(answer: ClientResponse, length: int) -> bytes:
    if len(answer.body) != length:
        raise RemoteError(f"storage: expected {length} bytes, got {len(answer.body)}")
    return answer.body


def _bytes_of(answer: ClientResponse | Denied) -> bytes | Refusal:
    return answer.refusal if isinstance(answer, Denied) else answer.body


def _location(row: tuple[bytes, int, int]) -> Location | None:
    return Location(row[0].hex(), row[1], row[2]) if any(row[0]) else None


def _parse(answer: ClientResponse, shape: type[_T]) -> _T:
    try:
        return msgspec.json.decode(answer.body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RemoteError(f"storage: status {answer.status} with a body of another form: {error}") from error
