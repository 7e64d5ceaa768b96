"""What an HTTP handler sees and gives: Request, Body, Response.

Rules: a handler gets a request that passed every check of `strict`; it sees the socket's peer, never a
forwarded address; it answers with one Response value. Bodies are read under a limit that the handler names.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import attrs
import msgspec

from runtime.errors import RemoteError

T = TypeVar("T")

Headers = tuple[tuple[str, str], ...]
_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@attrs.frozen
class Peer:
    """The other end of the socket, as the kernel says; `host` without zone id, `zone` apart (empty if none)."""

    host: str
    port: int
    zone: str = ""


class Body(Protocol):
    """A request's body, read once, by the handler, at the handler's pace.

    Nothing is read from the socket before the handler asks (`Expect: 100-continue` is answered at that moment);
    no more than one chunk is held in memory. All methods raise RemoteError with the status to answer: 413 over
    the limit, 408 below the minimum rate, 400 broken framing; PeerGoneError when the peer closed. Handlers let
    these pass. After cancellation the connection is closed.
    """

    async def read(self, limit_bytes: int) -> bytes:
        """Read the whole body, at most `limit_bytes`; a longer declared length is refused before reading."""
        ...

    def chunks(self, limit_bytes: int | None = None) -> AsyncIterator[bytes]:
        """Iterate over non-empty chunks (≤ 64 KiB), at most `limit_bytes` in all (default: the server's limit)."""
        ...


@attrs.define
class Trace:
    """What the handler adds to the request's one log line; never secrets, never file names in clear."""

    route: str = ""
    fields: dict[str, object] = attrs.field(factory=dict)

    def add(self, **fields: object) -> None:
        """Add facts such as `line=…`, `session_id=…`, `outcome=…`."""
        self.fields.update(fields)


@attrs.frozen
class Request:
    """One accepted request.

    `path` is decoded, starts with "/", holds no empty, "." or ".." segment, no slash or control character that
    was percent-encoded; `query` has each name once; `headers` has lower-case names, repeated ones joined by ", ".
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    peer: Peer
    content_length: int | None
    body: Body
    trace: Trace = attrs.field(factory=Trace)

    @property
    def host(self) -> str:
        """The Host header as sent (checked for form, not for meaning)."""
        return self.headers["host"]

    async def read_json(self, shape: type[T], *, limit_bytes: int) -> T:
        """Read and decode a JSON body into `shape`.

        Raises:
            RemoteError: 413 too large, 400 `bad-format` with the place of the fault.
        """
        return parse_json(await self.body.read(limit_bytes), shape)


@attrs.frozen
class FileBody:
    """Bytes `[offset, offset + length_bytes)` of a regular file, opened when the answer starts."""

    path: Path | str
    offset: int
    length_bytes: int


ResponseBody = bytes | FileBody | AsyncIterator[bytes]


@attrs.frozen
class Response:
    """One answer. An iterator body is sent chunked unless `headers` give content-length; it is closed after use.

    `close=True` ends the connection after this answer (a revoked device, a locked contract).
    """

    status: int
    headers: Headers = ()
    body: ResponseBody = b""
    close: bool = False


Handler = Callable[[Request], Awaitable[Response]]


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that every error body has (protocols §2); more may follow."""

    code: str
    message: str


def parse_json(data: bytes, shape: type[T]) -> T:
    """Decode JSON bytes from a peer into `shape`; raises RemoteError 400 `bad-format` saying where and why."""
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteError(f"expected {shape.__name__} as JSON: {exc}", status=400, code="bad-format") from exc


def json_response(status: int, obj: object, headers: Headers = ()) -> Response:
    """Answer with `obj` (a msgspec struct, dict or list) as JSON."""
    return Response(status, (("content-type", "application/json"), *headers), msgspec.json.encode(obj))


def error_response(
    status: int, code: str, message: str, *, retry_after_s: float | None = None, **extra: object
) -> Response:
    """Answer with the error body of protocols §2.

    Args:
        status: 400–599.
        code: kebab-case, from the table of protocols §2.
        message: what was expected, what came, which id; never a secret.
        retry_after_s: sent as Retry-After, rounded up to whole seconds.
        extra: further fields, such as `needed_bytes`.
    """
    if _CODE.fullmatch(code) is None:
        raise ValueError(f"error code: expected kebab-case, got {code!r}")
    headers: Headers = ()
    if retry_after_s is not None:
        headers = (("retry-after", str(max(0, int(-(-retry_after_s // 1))))),)
    return json_response(status, {"code": code, "message": message, **extra}, headers)
