"""HTTP/1.1 client: a small pool of kept connections to one server, pinned or CA-checked TLS, bounded answers.

Rules: with a pin nothing is sent before the certificate's SHA-256 was compared; TLS sessions are resumed
between connections; a large body waits for `100 Continue`, so that a refusal costs no upload; answers are
limited in size, rate and total time (slow retrieval); redirects are never followed, cookies never kept.
A path that died or moved takes no kept connection with it into the next request: when one fails, all are
dropped, and one from an address that is not ours any more is not used (`client_path`).
Retries: only a request that is safe to repeat, only once, only when a kept connection turned out dead before
any byte of the answer. Everything else is the caller's decision.
"""

from __future__ import annotations

import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Self

import attrs
import h11
import trio

from runtime.client_connection import ClientConnection, Exchange, StaleConnectionError
from runtime.client_path import (
    SourceFinder,
    find_source,
    has_news,
    is_current,
    set_dead_path_timeout,
    set_probing,
)
from runtime.client_types import ClientLimits, ClientResponse, RequestBodyInput
from runtime.errors import (
    CertificateRefusedError,
    LocalError,
    PinMismatchError,
    RemoteError,
    Unavailable,
)
from runtime.http.rate import RateWatch
from runtime.http.send import close_body
from runtime.http.types import FileBody
from runtime.tls import DATE_FAULTS

__all__ = ["ClientLimits", "ClientResponse", "HttpClient", "StreamedResponse"]

RESPONSE_BYTES_DEFAULT = 1024 * 1024
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})


@attrs.frozen
class StreamedResponse:
    """An answer whose body is read by the caller inside the `stream` block."""

    status: int
    headers: Mapping[str, str]
    _exchange: Exchange

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body; raises Unavailable (network, too slow) and RemoteError (broken, too large)."""
        return self._exchange


class HttpClient:
    """Talks to one server; may be used by many tasks at once (at most `limits.connections_max` requests run)."""

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        *,
        pin_sha256: str | None = None,
        server_name: str | None = None,
        source_address: str | None = None,
        timeouts: ClientLimits | None = None,
        find_source: SourceFinder = find_source,
    ) -> None:
        """Describe the server; no I/O.

        Args:
            host: DNS name, or IP literal (IPv6 with or without brackets).
            port: 1–65535.
            tls: from runtime.tls.client_context; None for plain TCP.
            pin_sha256: 64 hex digits of the certificate's SHA-256; required when `tls` checks no authority.
            server_name: the name to check and to send as SNI and Host; default `host`.
            source_address: local IP literal to connect from.
            timeouts: see ClientLimits.
            find_source: says from which local address a peer would be reached now.

        Raises:
            LocalError: TLS without authority and without pin, or a malformed pin.
        """
        if tls is not None and tls.verify_mode == ssl.CERT_NONE and pin_sha256 is None:
            raise LocalError("HttpClient: expected a pin with a TLS context that checks no authority")
        self._host = host.removeprefix("[").removesuffix("]")
        self._port = port
        self._tls = tls
        self._pin = _parse_pin(pin_sha256)
        self._server_name = server_name or self._host
        self._source_address = source_address
        self._find_source = find_source
        self.limits = timeouts or ClientLimits()
        self._slots = trio.Semaphore(self.limits.connections_max)
        self._idle: list[ClientConnection] = []
        self._session: ssl.SSLSession | None = None
        self._authority = _authority(self._server_name, port, secure=tls is not None)

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: RequestBodyInput = b"",
        content_length: int | None = None,
        max_response_bytes: int = RESPONSE_BYTES_DEFAULT,
    ) -> ClientResponse:
        """Send a request and return the whole answer, whatever its status.

        Args:
            method: token in capitals.
            path: origin-form, percent-encoded by the caller, with query.
            headers: lower-case names; Host, framing and Expect are set here.
            body: bytes, a file region, or an async iterator, which is closed whatever happens.
            content_length: an iterator's exact length; without it it is sent chunked.
            max_response_bytes: a longer answer is an error, found before it is held.

        Raises:
            Unavailable: no connection, broken, too slow, out of time; the server may have acted or not.
            RemoteError: the answer breaks the protocol or is too large; CertificateRefusedError,
                PinMismatchError: not one byte was sent.
        """
        async with self.stream(
            method,
            path,
            headers=headers,
            body=body,
            content_length=content_length,
            max_response_bytes=max_response_bytes,
        ) as response:
            parts = [chunk async for chunk in response.chunks()]
        return ClientResponse(response.status, response.headers, b"".join(parts))

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: RequestBodyInput = b"",
        content_length: int | None = None,
        max_response_bytes: int = RESPONSE_BYTES_DEFAULT,
    ) -> AsyncIterator[StreamedResponse]:
        """As `request`, but the body is read by the block, piece by piece; what it leaves unread is dropped.

        The total time counts until the block ends. Leaving early or by an error closes the connection.
        """
        watch = RateWatch(self.limits.rate_grace_s, self.limits.rate_bytes_per_s)
        exchange = Exchange(
            method, path, dict(headers or {}), body, content_length, max_response_bytes, watch
        )
        try:
            async with self._slots:
                with trio.CancelScope(deadline=trio.current_time() + self.limits.total_s) as scope:
                    async with self._exchanged(exchange):
                        yield StreamedResponse(exchange.status, exchange.headers, exchange)
                if scope.cancelled_caught:
                    self._drop_idle()
                    raise Unavailable(f"{self._authority}: no whole answer within {self.limits.total_s:g} s")
        finally:
            await close_body(body)

    @contextlib.asynccontextmanager
    async def _exchanged(self, exchange: Exchange) -> AsyncIterator[None]:
        """Own the connection between the start of an exchange and its end: kept if clean, else closed."""
        try:
            connection = await self._start(exchange)
            keep = False
            try:
                yield
                keep = await connection.finish(exchange)
            finally:
                if keep and len(self._idle) < self.limits.idle_max:
                    self._keep(connection)
                else:
                    await connection.close()
        except Unavailable:
            # The kept connections share the path and the peer: each would cost its own timeout to find out.
            self._drop_idle()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the kept connections. Idempotent; the client can be used again."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()

    async def _start(self, exchange: Exchange) -> ClientConnection:
        """Send the request and read the answer's header on a kept or new connection."""
        kept = self._take_idle()
        if kept is not None:
            try:
                return await self._start_on(kept, exchange)
            except StaleConnectionError as exc:
                self._drop_idle()
                if not _may_repeat(exchange):
                    raise Unavailable(f"{self._authority}: the kept connection broke: {exc}") from exc
        try:
            return await self._start_on(await self._connect(), exchange)
        except StaleConnectionError as exc:
            raise Unavailable(f"{self._authority}: {exc}") from exc

    async def _start_on(self, connection: ClientConnection, exchange: Exchange) -> ClientConnection:
        try:
            set_probing(connection.socket, on=True)
            await connection.start(exchange)
        except (h11.LocalProtocolError, UnicodeEncodeError) as exc:
            await connection.close()
            raise LocalError(f"{self._authority}: the request is malformed: {exc}") from exc
        except BaseException:
            await connection.close()
            raise
        return connection

    def _keep(self, connection: ClientConnection) -> None:
        if isinstance(connection.stream, trio.SSLStream):
            self._session = connection.stream.session
        set_probing(connection.socket, on=False)
        connection.idle_since = trio.current_time()
        self._idle.append(connection)

    def _take_idle(self) -> ClientConnection | None:
        now = trio.current_time()
        while self._idle:
            connection = self._idle.pop()
            fresh = now - connection.idle_since < self.limits.idle_s
            if fresh and not has_news(connection.socket) and self._is_ours(connection):
                return connection
            connection.drop()
        return None

    def _is_ours(self, connection: ClientConnection) -> bool:
        return is_current(connection.socket, self._source_address, self._find_source)

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.drop()

    async def _connect(self) -> ClientConnection:
        stream = await self._open_tcp()
        if self._tls is None:
            return ClientConnection(stream, self._authority, self.limits)
        return ClientConnection(await self._shake_hands(stream, self._tls), self._authority, self.limits)

    async def _open_tcp(self) -> trio.SocketStream:
        try:
            with trio.fail_after(self.limits.connect_s):
                stream = await trio.open_tcp_stream(
                    self._host, self._port, local_address=self._source_address
                )
                set_dead_path_timeout(stream.socket, self.limits.dead_path_s)
                return stream
        except trio.TooSlowError as exc:
            raise Unavailable(f"{self._authority}: no connection within {self.limits.connect_s:g} s") from exc
        except OSError as exc:
            raise Unavailable(f"{self._authority}: cannot connect: {exc}") from exc

    async def _shake_hands(
        self, transport: trio.SocketStream, context: ssl.SSLContext
    ) -> trio.SSLStream[trio.SocketStream]:
        name = self._server_name.partition("%")[0]
        stream = trio.SSLStream(transport, context, server_hostname=name, https_compatible=True)
        if self._session is not None:
            stream.session = self._session
        try:
            with trio.fail_after(self.limits.tls_s):
                await stream.do_handshake()
            self._check_pin(stream)
        except trio.TooSlowError as exc:
            await trio.aclose_forcefully(stream)
            raise Unavailable(f"{self._authority}: no TLS handshake within {self.limits.tls_s:g} s") from exc
        except trio.BrokenResourceError as exc:
            await trio.aclose_forcefully(stream)
            raise _handshake_error(self._authority, exc) from exc
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    def _check_pin(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        if self._pin is None:
            return
        certificate = stream.getpeercert(binary_form=True)
        shown = hashlib.sha256(certificate or b"").hexdigest()
        if shown != self._pin:
            self._session = None
            raise PinMismatchError(f"{self._authority}: expected certificate {self._pin}, got {shown}")


def _parse_pin(pin: str | None) -> str | None:
    if pin is None:
        return None
    digits = pin.replace(":", "").lower()
    if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise LocalError("certificate pin: expected 64 hex digits (SHA-256)")
    return digits


def _authority(name: str, port: int, *, secure: bool) -> str:
    host = f"[{name.partition('%')[0]}]" if ":" in name else name
    return host if port == (443 if secure else 80) else f"{host}:{port}"


def _handshake_error(authority: str, exc: BaseException) -> Unavailable | RemoteError:
    cause = exc.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        dates_only = cause.verify_code in DATE_FAULTS
        return CertificateRefusedError(
            f"{authority}: certificate refused: {cause.verify_message}", dates_only=dates_only
        )
    if isinstance(cause, ssl.SSLError):
        return RemoteError(f"{authority}: TLS failed: {cause.reason or cause}", code="tls-failed")
    return Unavailable(f"{authority}: the connection broke in the TLS handshake")


def _may_repeat(exchange: Exchange) -> bool:
    return exchange.method in _REPEATABLE and isinstance(exchange.body, bytes | FileBody)
