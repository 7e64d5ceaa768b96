"""One connection of the HTTP client: send a request, read its answer, over any trio stream.

Rules: h11 decides framing in both directions; an answer that comes before or during the upload ends the
upload; answers are counted against their limit before they are held. Does not connect, retry or pool.
"""

from __future__ import annotations

from typing import Any, Self

import attrs
import h11
import trio

from runtime.client_types import ClientLimits, RequestBodyInput
from runtime.errors import RemoteError, Unavailable
from runtime.http.limits import CHUNK_BYTES, FILE_STEP_BYTES
from runtime.http.rate import RateWatch, TooSlowError
from runtime.http.send import open_range, read_exactly
from runtime.http.types import FileBody

ANSWER_HEAD_BYTES_MAX = 32 * 1024
UNREAD_DROP_BYTES_MAX = 64 * 1024
_BODILESS = frozenset({204, 304})
_FAULTS = (trio.BrokenResourceError, trio.ClosedResourceError)


class StaleConnectionError(Exception):
    """The connection ended before any byte of the answer; the request may or may not have arrived."""


@attrs.define(eq=False)
class Exchange:
    """One request and, once started, its answer."""

    method: str
    path: str
    request_headers: dict[str, str]
    body: RequestBodyInput
    content_length: int | None
    max_response_bytes: int
    watch: RateWatch
    status: int = 0
    headers: dict[str, str] = attrs.field(factory=dict)
    received_bytes: int = 0
    ended: bool = False
    connection: ClientConnection | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece of the answer's body."""
        while not self.ended and self.connection is not None:
            chunk = await self.connection.next_chunk(self)
            if chunk:
                return chunk
        raise StopAsyncIteration

    def length(self) -> int | None:
        """Length of the request body in bytes; None when unknown."""
        if isinstance(self.body, bytes):
            return len(self.body)
        return self.body.length_bytes if isinstance(self.body, FileBody) else self.content_length


class ClientConnection:
    """A connected stream with its HTTP state. Used by one request at a time."""

    def __init__(self, stream: trio.abc.Stream, authority: str, limits: ClientLimits) -> None:
        self.stream = stream
        self.idle_since = 0.0
        self._authority = authority
        self._limits = limits
        self._conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=ANSWER_HEAD_BYTES_MAX)
        self._heard = False
        self._eof = False

    @property
    def socket(self) -> trio.socket.SocketType:
        """The connected socket."""
        transport = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        assert isinstance(transport, trio.SocketStream)  # noqa: S101 - made by HttpClient
        return transport.socket

    async def start(self, exchange: Exchange) -> None:
        """Send the request with its body and read the answer's header into `exchange`.

        Raises:
            StaleConnectionError: closed before any byte of an answer.
            Unavailable, RemoteError: see HttpClient.request.
        """
        exchange.connection = self
        self._heard = False
        length = exchange.length()
        waits = length is None or length > self._limits.expect_above_bytes
        watch = RateWatch(self._limits.rate_grace_s, self._limits.rate_bytes_per_s)
        head = self._head(exchange, length, waits=waits)
        try:
            if isinstance(exchange.body, bytes) and not waits:
                await self._send(head + self._whole_body(exchange.body), watch)
            else:
                await self._send(head, watch)
                if waits and await self._await_continue(exchange):
                    return
                await self._send_body(exchange.body, watch)
        except StaleConnectionError:
            # The server may have answered and closed in the middle of the upload: its answer counts.
            await self._read_head(exchange)
            return
        await self._read_head(exchange)

    async def finish(self, exchange: Exchange) -> bool:
        """Drop a small unread rest of the answer; returns whether the connection can serve another request."""
        while not exchange.ended and exchange.received_bytes <= UNREAD_DROP_BYTES_MAX:
            await self.next_chunk(exchange)
        if self._conn.our_state is not h11.DONE or self._conn.their_state is not h11.DONE:
            return False
        if self._conn.trailing_data[0]:
            return False
        self._conn.start_next_cycle()
        return True

    async def next_chunk(self, exchange: Exchange) -> bytes:
        """Return the next piece of the answer's body; empty once `exchange.ended`."""
        event = await self._event(exchange.watch)
        if isinstance(event, h11.Data):
            exchange.watch.moved(len(event.data))
            exchange.received_bytes += len(event.data)
            self._check_size(exchange, exchange.received_bytes)
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            exchange.ended = True
            return b""
        raise RemoteError(f"{self._authority}: expected the answer's body, got {type(event).__name__}")

    async def close(self) -> None:
        """Close at once, without a farewell that the peer could delay."""
        await trio.aclose_forcefully(self.stream)

    def drop(self) -> None:
        """Close the socket without waiting (an idle connection that is of no more use)."""
        self.socket.close()

    def _head(self, exchange: Exchange, length: int | None, *, waits: bool) -> bytes:
        headers = [("host", self._authority), *exchange.request_headers.items()]
        if length is None:
            headers.append(("transfer-encoding", "chunked"))
        elif length or exchange.method in {"POST", "PUT", "PATCH"}:
            headers.append(("content-length", str(length)))
        if waits:
            headers.append(("expect", "100-continue"))
        return (
            self._conn.send(h11.Request(method=exchange.method, target=exchange.path, headers=headers)) or b""
        )

    async def _send(self, data: bytes, watch: RateWatch) -> None:
        try:
            with watch.wait():
                await self.stream.send_all(data)
        except TooSlowError as exc:
            rate = self._limits.rate_bytes_per_s
            raise Unavailable(
                f"{self._authority}: takes the request below {rate:g} bytes per second"
            ) from exc
        except _FAULTS as exc:
            raise StaleConnectionError("the connection broke while sending") from exc
        watch.moved(len(data))

    def _whole_body(self, body: bytes) -> bytes:
        """Encode a small body, to leave in one packet with its header."""
        content = self._conn.send(h11.Data(data=body)) if body else b""
        return (content or b"") + (self._conn.send(h11.EndOfMessage()) or b"")

    async def _await_continue(self, exchange: Exchange) -> bool:
        """Wait for permission to send the body; True when the final answer came instead."""
        with trio.move_on_after(self._limits.continue_s):
            return await self._read_answer(exchange, until_continue=True)
        return False

    async def _send_body(self, body: RequestBodyInput, watch: RateWatch) -> None:
        if isinstance(body, FileBody):
            with open_range(body) as fd:
                for offset in range(body.offset, body.offset + body.length_bytes, FILE_STEP_BYTES):
                    step = min(FILE_STEP_BYTES, body.offset + body.length_bytes - offset)
                    await self._send_data(read_exactly(fd, step, offset), watch)
        elif isinstance(body, bytes):
            for start in range(0, len(body), FILE_STEP_BYTES):
                await self._send_data(body[start : start + FILE_STEP_BYTES], watch)
        else:
            async for chunk in body:
                if chunk:
                    await self._send_data(chunk, watch)
        end = self._conn.send(h11.EndOfMessage())
        if end:
            await self._send(end, watch)

    async def _send_data(self, data: bytes, watch: RateWatch) -> None:
        for piece in self._conn.send_with_data_passthrough(h11.Data(data=data)) or []:
            await self._send(piece, watch)

    async def _read_head(self, exchange: Exchange) -> None:
        with trio.move_on_after(self._limits.head_s) as scope:
            await self._read_answer(exchange, until_continue=False)
        if scope.cancelled_caught:
            raise Unavailable(f"{self._authority}: no answer within {self._limits.head_s:g} s")

    async def _read_answer(self, exchange: Exchange, *, until_continue: bool) -> bool:
        """Read up to the answer's header (True) or, if asked for, up to 100 Continue (False)."""
        watch = RateWatch(self._limits.head_s, self._limits.rate_bytes_per_s)
        while True:
            event = await self._event(watch)
            if isinstance(event, h11.InformationalResponse):
                if until_continue and event.status_code == 100:
                    return False
                continue
            if not isinstance(event, h11.Response):
                raise Unavailable(f"{self._authority}: closed before the answer")
            self._take_head(exchange, event)
            return True

    def _take_head(self, exchange: Exchange, event: h11.Response) -> None:
        exchange.status = event.status_code
        headers = exchange.headers
        for raw_name, raw_value in event.headers:
            name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if exchange.method == "HEAD" or exchange.status in _BODILESS:
            return
        if "content-length" in headers:
            self._check_size(exchange, int(headers["content-length"]))
        elif "transfer-encoding" not in headers:
            raise RemoteError(f"{self._authority}: expected an answer that declares its length")

    def _check_size(self, exchange: Exchange, size: int) -> None:
        if size > exchange.max_response_bytes:
            limit = exchange.max_response_bytes
            message = f"{self._authority}: expected an answer of at most {limit} bytes, got {size}"
            raise RemoteError(message, code="answer-too-large")

    async def _event(self, watch: RateWatch) -> Any:
        while True:
            try:
                event = self._conn.next_event()
            except h11.RemoteProtocolError as exc:
                raise self._protocol_error(exc) from exc
            if event is not h11.NEED_DATA:
                return event
            try:
                with watch.wait():
                    data = await self.stream.receive_some(CHUNK_BYTES)
            except TooSlowError as exc:
                rate = self._limits.rate_bytes_per_s
                raise Unavailable(f"{self._authority}: answers below {rate:g} bytes per second") from exc
            except _FAULTS as exc:
                raise self._broken("the connection broke") from exc
            if not data and not self._heard:
                raise StaleConnectionError("closed before any byte of an answer")
            self._heard = True
            self._eof = not data
            self._conn.receive_data(bytes(data))

    def _broken(self, reason: str) -> Exception:
        if not self._heard:
            return StaleConnectionError(reason)
        return Unavailable(f"{self._authority}: {reason} inside the answer")

    def _protocol_error(self, exc: h11.RemoteProtocolError) -> Exception:
        if self._eof:
            return Unavailable(f"{self._authority}: closed inside the answer")
        return RemoteError(f"{self._authority}: broken answer: {exc}")
