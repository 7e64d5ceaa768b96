"""The request body as the handler reads it: on demand, one chunk at a time, under limits.

Rules: no byte is read from the socket before the handler asks; `100 Continue` goes out at that moment; a
failed body stays failed and the connection ends after the answer. A request with a body is read by h11, which
thereby checks header and framing a second time, independently of `strict`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import h11
import trio

from runtime.errors import PeerGoneError, RemoteError
from runtime.http.limits import CHUNK_BYTES, HEAD_BYTES_MAX, HttpLimits
from runtime.http.rate import RateWatch, TooSlowError
from runtime.http.strict import Head

_FAULTS = (trio.BrokenResourceError, trio.ClosedResourceError)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestBody:
    """See runtime.http.types.Body; one per request, used by the connection that made it."""

    def __init__(self, stream: trio.abc.Stream, head: Head, buffered: bytearray, limits: HttpLimits) -> None:
        self._stream = stream
        self._buffered = buffered
        self._limits = limits
        self._rate = RateWatch(limits.rate_grace_s, limits.body_rate_bytes_per_s)
        self._unsent_continue = head.expects_continue
        self._chunked = head.chunked
        self._declared = head.content_length or 0
        self._fed = 0
        self.received_bytes = 0
        self.done = not (head.chunked or head.content_length)
        self.failed = False
        if not self.done:
            self._conn = _open_framing(head)

    @property
    def remaining_bytes(self) -> int | None:
        """Body bytes not yet taken from the peer; None when the peer did not say (chunked)."""
        return None if self._chunked and not self.done else self._declared - self._fed

    @property
    def awaits_continue(self) -> bool:
        """Whether the peer still holds the body back until we say 100."""
        return self._unsent_continue and not self.done

    async def read(self, limit_bytes: int) -> bytes:
        """See Body."""
        parts = [chunk async for chunk in self.chunks(limit_bytes)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def chunks(self, limit_bytes: int | None = None) -> AsyncIterator[bytes]:
        """See Body."""
        limit = self._limits.body_bytes_max if limit_bytes is None else limit_bytes
        return _Chunks(self, limit)

    async def next_chunk(self, limit_bytes: int) -> bytes:
        """Return the next non-empty chunk, or b"" at the end; see Body for what it raises."""
        if self.failed:
            raise PeerGoneError("the request body failed before")
        if self.done:
            return b""
        self._refuse_declared(limit_bytes)
        try:
            chunk = await self._next()
        except BaseException:
            self.failed = True  # also when cancelled: a half-read body cannot be continued
            raise
        self.received_bytes += len(chunk)
        if self.received_bytes > limit_bytes:
            self.failed = True
            raise RemoteError(f"expected a body of at most {limit_bytes} bytes", status=413, code="too-large")
        return chunk

    def _refuse_declared(self, limit_bytes: int) -> None:
        if self._declared > limit_bytes:
            message = f"expected a body of at most {limit_bytes} bytes, got {self._declared}"
            raise RemoteError(message, status=413, code="too-large")

    async def _next(self) -> bytes:
        while True:
            try:
                event = self._conn.next_event()
            except h11.RemoteProtocolError as exc:
                raise RemoteError(f"broken body: {exc}", status=400, code="bad-request") from exc
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                self.done = True
                return b""
            if isinstance(event, h11.ConnectionClosed):
                raise PeerGoneError("the peer closed inside the request body")
            await self._feed()

    async def _feed(self) -> None:
        data = bytes(self._buffered) or await self._receive()
        if not data:
            raise PeerGoneError("the peer closed inside the request body")
        take = len(data) if self._chunked else min(len(data), self._declared - self._fed)
        self._buffered[:] = data[take:]
        self._fed += take
        self._conn.receive_data(data[:take])

    async def _receive(self) -> bytes:
        try:
            with self._rate.wait():
                if self._unsent_continue:
                    self._unsent_continue = False
                    await self._stream.send_all(_CONTINUE)
                data = bytes(await self._stream.receive_some(CHUNK_BYTES))
        except TooSlowError as exc:
            rate = self._limits.body_rate_bytes_per_s
            message = f"expected the body at {rate:g} bytes per second or faster"
            raise RemoteError(message, status=408, code="too-slow") from exc
        except _FAULTS as exc:
            raise PeerGoneError("the connection broke inside the request body") from exc
        self._rate.moved(len(data))
        return data


def _open_framing(head: Head) -> h11.Connection:
    """Give the header to h11; raises RemoteError when it disagrees with `strict`."""
    conn = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
    try:
        conn.receive_data(head.raw)
        conn.next_event()
    except h11.RemoteProtocolError as exc:
        raise RemoteError(str(exc), status=exc.error_status_hint, code="bad-request") from exc
    return conn


class _Chunks:
    """Iterator over a body; a class, so that a handler may stop early without leaving a generator behind."""

    def __init__(self, body: RequestBody, limit_bytes: int) -> None:
        self._body = body
        self._limit_bytes = limit_bytes

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._body.next_chunk(self._limit_bytes)
        if not chunk:
            raise StopAsyncIteration
        return chunk
