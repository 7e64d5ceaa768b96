"""One HTTP/1.1 connection: read a header, run the handler, answer, again; over any trio stream.

Rules: every wait for the peer has a deadline; a refused request is answered and the connection closed; an
error in a handler becomes one 500 and one log line; nothing of a traceback goes to the peer. The server
cancels `scope` to evict a waiting connection or when the peer left while the handler runs.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

import trio

from runtime.clock import Clock
from runtime.errors import PeerGoneError, RemoteError, Unavailable
from runtime.http.body import RequestBody
from runtime.http.limits import CHUNK_BYTES, HEAD_BYTES_MAX, HttpLimits
from runtime.http.send import Outgoing, close_body
from runtime.http.strict import HEAD_END, Head, check_partial, parse_head, refuse
from runtime.http.types import Handler, Peer, Request, Response, Trace, error_response
from runtime.logs import Logger

_FAULTS = (trio.BrokenResourceError, trio.ClosedResourceError)
REFUSAL_SEND_S = 2.0


class Phase(enum.Enum):
    """What the connection is doing; IDLE and HEAD wait for the peer and may be evicted."""

    IDLE = "idle"
    HEAD = "head"
    HANDLING = "handling"
    CLOSING = "closing"


class HttpConnection:
    """State of one connection. `on_phase` tells the server about each change; `stopping()` ends keep-alive."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        handler: Handler,
        limits: HttpLimits,
        *,
        peer: Peer,
        secure: bool,
        clock: Clock,
        log: Logger | None,
        on_phase: Callable[[HttpConnection, Phase], None] = lambda _connection, _phase: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stream = stream
        self._handler = handler
        self._limits = limits
        self._peer = peer
        self._secure = secure
        self._clock = clock
        self._log = log
        self._on_phase = on_phase
        self._stopping = stopping
        self._out = Outgoing(stream, limits)
        self._buffer = bytearray()
        self._is_first = True
        self.scope = trio.CancelScope()
        self.phase = Phase.IDLE
        self.handling_since = math.inf
        self.peer_left = False

    async def serve(self) -> None:
        """Serve requests until the peer closes, a limit ends the connection, or `scope` is cancelled.

        The stream stays open; the caller closes it. Never raises for what a peer or handler does.
        """
        with self.scope:
            for count in range(1, self._limits.requests_per_connection_max + 1):
                if not await self._serve_one(last=count == self._limits.requests_per_connection_max):
                    break
        if self.scope.cancelled_caught and self.phase is Phase.HEAD and not self.peer_left:
            late = refuse(f"expected a whole header within {self._limits.header_s:g} s", 408, "too-slow")
            await self._answer_refusal(late)

    def _enter(self, phase: Phase, deadline: float) -> None:
        self.phase = phase
        self.scope.deadline = deadline
        self._on_phase(self, phase)

    async def _serve_one(self, *, last: bool) -> bool:
        """Serve one request; returns whether another may follow on this connection."""
        started = trio.current_time()
        try:
            raw = await self._read_head()
            if raw is None:
                return False
            started = trio.current_time()
            head = parse_head(raw, secure=self._secure)
            body = RequestBody(self._stream, head, self._buffer, self._limits)
        except RemoteError as exc:
            await self._answer_refusal(exc, started=started)
            return False
        return await self._handle(head, body, started, last=last)

    async def _read_head(self) -> bytes | None:
        """Return the bytes of the next header, None when the peer closed between requests."""
        buffer = self._buffer
        patience_s = self._limits.header_s if self._is_first else self._limits.idle_s
        self._is_first = False
        self._enter(Phase.IDLE, trio.current_time() + patience_s)
        checked = 0
        if buffer:
            await trio.lowlevel.checkpoint()  # pipelined requests must not keep the loop to themselves
        while True:
            end = buffer.find(HEAD_END, max(0, checked - len(HEAD_END) + 1))
            if end >= 0:
                raw = bytes(buffer[: end + len(HEAD_END)])
                if len(raw) <= HEAD_BYTES_MAX:
                    del buffer[: len(raw)]
                    return raw
            if buffer:
                if end < 0:
                    check_partial(buffer, checked)
                if len(buffer) > HEAD_BYTES_MAX:
                    raise refuse(
                        f"expected a header of at most {HEAD_BYTES_MAX} bytes", 431, "header-too-large"
                    )
                if self.phase is Phase.IDLE:
                    self._enter(Phase.HEAD, trio.current_time() + self._limits.header_s)
            checked = len(buffer)
            try:
                data = await self._stream.receive_some(CHUNK_BYTES)
            except _FAULTS:
                return None
            if not data:
                return None
            buffer += data

    async def _handle(self, head: Head, body: RequestBody, started: float, *, last: bool) -> bool:
        trace = Trace()
        request = Request(
            head.method, head.path, head.query, head.headers, self._peer, head.content_length, body, trace
        )
        self.handling_since = started
        self._enter(Phase.HANDLING, math.inf)
        status = 499
        try:
            response = await self._run_handler(request, body)
            if response is None:
                return False
            if body.failed and not isinstance(response.body, bytes):
                await close_body(response.body)
                return False
            status = response.status
            close = last or response.close or self._must_close(head, body)
            status, sent = await self._send(response, head.method, trace, close=close)
            if not sent:
                return False
            if close or not await self._drain(body):
                if self._buffer or not body.done:
                    await self._linger()
                return False
        except PeerGoneError:
            status = 499
            return False
        else:
            return True
        finally:
            self.handling_since = math.inf
            self._log_request(head.method, trace, status, body.received_bytes, started)
            self._out.begin()

    async def _run_handler(self, request: Request, body: RequestBody) -> Response | None:
        declared = request.content_length or 0
        if declared > self._limits.body_bytes_max:
            message = f"expected a body of at most {self._limits.body_bytes_max} bytes, got {declared}"
            return error_response(413, "too-large", message)
        try:
            return await self._handler(request)
        except Exception as exc:  # noqa: BLE001 - the top of every handler: one answer, one line
            return self._response_for(exc, request.trace)

    def _response_for(self, exc: Exception, trace: Trace) -> Response | None:
        cause = sole_cause(exc)
        if isinstance(cause, PeerGoneError):
            return None
        if isinstance(cause, RemoteError):
            trace.add(code=cause.code)
            return error_response(cause.status, cause.code, str(cause))
        if isinstance(cause, Unavailable):
            trace.add(code="unavailable", error=str(cause))
            return error_response(503, "unavailable", str(cause), retry_after_s=cause.retry_after_s)
        trace.add(code="internal", error=type(cause).__name__, detail=str(cause), where=place_of(cause))
        return error_response(500, "internal", "the request failed inside the service; see its log")

    async def _send(self, response: Response, method: str, trace: Trace, *, close: bool) -> tuple[int, bool]:
        """Send; a fault of ours before the first byte becomes a 500. Returns the status and whether all went out."""
        try:
            await self._out.send(response, method=method, now_s=self._clock.now_s(), close=close)
        except PeerGoneError:
            raise
        except Exception as exc:  # noqa: BLE001 - a body source of the handler may raise anything
            failed = self._response_for(exc, trace)
            if not self._out.head_sent and failed is not None:
                await self._out.send(failed, method=method, now_s=self._clock.now_s(), close=True)
                await self._linger()
                return failed.status, False
            return response.status, False
        return response.status, True

    def _must_close(self, head: Head, body: RequestBody) -> bool:
        """Tell whether this answer ends the connection.

        A chunked request always does: nothing that follows one can then be a smuggled request.
        """
        remaining = body.remaining_bytes
        return (
            body.failed
            or body.awaits_continue
            or head.chunked
            or remaining is None
            or remaining > self._limits.drain_bytes_max
            or "close" in head.headers.get("connection", "").lower()
            or self._stopping()
        )

    async def _drain(self, body: RequestBody) -> bool:
        if body.done:
            return True
        try:
            async for _ in body.chunks():
                pass
        except RemoteError:
            return False
        return True

    async def _linger(self) -> None:
        """Give the peer time to read our last answer: drop what it still sends instead of resetting."""
        self._enter(Phase.CLOSING, trio.current_time() + self._limits.linger_s)
        dropped = 0
        try:
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
            while dropped < self._limits.linger_bytes_max:
                data = await self._stream.receive_some(CHUNK_BYTES)
                if not data:
                    return
                dropped += len(data)
        except _FAULTS:
            return

    async def _answer_refusal(self, exc: RemoteError, *, started: float | None = None) -> None:
        with trio.move_on_after(REFUSAL_SEND_S):
            response = error_response(exc.status, exc.code, str(exc))
            try:
                await self._out.send(response, method="GET", now_s=self._clock.now_s(), close=True)
                await self._linger()
            except PeerGoneError:
                pass
        trace = Trace(fields={"code": exc.code})
        self._log_request("-", trace, exc.status, 0, trio.current_time() if started is None else started)

    def _log_request(
        self, method: str, trace: Trace, status: int, received_bytes: int, started: float
    ) -> None:
        if self._log is None:
            return
        write = self._log.error if status >= 500 and status not in {503, 507} else self._log.info
        write(
            "request",
            **{
                **trace.fields,
                "method": method,
                "route": trace.route or "-",
                "status": status,
                "received_bytes": received_bytes,
                "bytes": self._out.sent_body_bytes,
                "duration_s": round(trio.current_time() - started, 6),
            },
        )


def sole_cause(exc: BaseException) -> BaseException:
    """Unwrap exception groups that hold one exception only (a nursery with one failing task)."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def place_of(exc: BaseException) -> str:
    """Return `file:line` of the innermost frame, for the log."""
    traceback = exc.__traceback__
    if traceback is None:
        return "-"
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return f"{code.co_filename.rsplit('/', 1)[-1]}:{traceback.tb_lineno}"
