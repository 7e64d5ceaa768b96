"""Listeners, the connection cap, eviction, detection of peers that left, graceful stop.

Rules: at the cap the connection that has waited longest without a whole request is closed in favour of the
new one; if every connection is busy the new one is refused. One address (IPv6: one /64) cannot take all.
A peer that closes while its handler runs cancels that handler within PEER_WATCH_S; closing only its sending
half counts as leaving. The peer is what the kernel says; forwarded headers are never looked at.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import math
import os
import select
import socket
import ssl
from collections import Counter
from collections.abc import Sequence

import attrs
import trio

from runtime.clock import Clock, SystemClock
from runtime.errors import LocalError
from runtime.http.connection import HttpConnection, Phase, place_of, sole_cause
from runtime.http.limits import HttpLimits
from runtime.http.types import Handler, Peer
from runtime.logs import Logger

BACKLOG = 512
PEER_WATCH_S = 0.1
ACCEPT_RETRY_S = 0.1
CLOSE_S = 2.0
FULL_LOG_EVERY_S = 10.0
_ACCEPT_RETRY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_BUSY_BODY = b'{"code":"unavailable","message":"all connections are in use"}'
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BUSY_BODY), _BUSY_BODY)
)


@attrs.frozen
class Listener:
    """A bound, listening TCP socket; with `tls` every connection on it starts with a handshake."""

    sock: socket.socket
    tls: ssl.SSLContext | None

    @property
    def host(self) -> str:
        """The bound address."""
        return str(self.sock.getsockname()[0])

    @property
    def port(self) -> int:
        """The bound port, also when 0 was asked for."""
        return int(self.sock.getsockname()[1])

    def close(self) -> None:
        """Stop listening; connections go on. Idempotent."""
        self.sock.close()


def open_listener(host: str, port: int, tls: ssl.SSLContext | None = None) -> Listener:
    """Bind and listen on one numeric address.

    Args:
        host: IPv6 (also with %zone) or IPv4 literal; IPv6 sockets take IPv6 peers only.
        port: 0 lets the kernel choose; see Listener.port.
        tls: from runtime.tls.server_context; None for plain TCP.

    Raises:
        LocalError: not a numeric address, or it cannot be bound (the message names both).
    """
    try:
        flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise LocalError(f"listen address {host!r}: expected an IPv6 or IPv4 literal: {exc}") from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise LocalError(f"cannot listen on [{host}]:{port}: {exc.strerror or exc}") from exc
    return Listener(sock, tls)


async def serve_http(
    handler: Handler,
    listeners: Sequence[Listener],
    *,
    limits: HttpLimits | None = None,
    log: Logger | None = None,
    clock: Clock | None = None,
    stopping: trio.Event | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until `stopping` is set and the running requests ended (≤ `stop_grace_s`).

    Args:
        handler: called once per accepted request, concurrently; a Router is one.
        listeners: closed on return.
        limits: see HttpLimits.
        log: one line per request when given.
        clock: for the Date header.
        stopping: set it for a graceful stop.
        task_status: started once connections are being accepted.
    """
    server = _Server(
        handler,
        limits or HttpLimits(),
        log,
        clock or SystemClock(),
        trio.Event() if stopping is None else stopping,
    )
    try:
        await server.run(listeners, task_status)
    finally:
        for listener in listeners:
            listener.close()


class _Server:
    def __init__(
        self, handler: Handler, limits: HttpLimits, log: Logger | None, clock: Clock, stopping: trio.Event
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._log = log
        self._clock = clock
        self._stopping = stopping
        self._open: dict[HttpConnection, tuple[str, int]] = {}
        self._waiting: dict[HttpConnection, None] = {}
        self._handling: dict[HttpConnection, None] = {}
        self._per_peer: Counter[str] = Counter()
        self._handling_began = trio.Event()
        self._all_closed = trio.Event()
        self._full_logged_at = -math.inf

    async def run(self, listeners: Sequence[Listener], task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            accepting = trio.CancelScope()
            connections = trio.CancelScope()
            nursery.start_soon(self._watch_peers)
            nursery.start_soon(self._accept_all, listeners, accepting, connections)
            task_status.started()
            await self._stopping.wait()
            accepting.cancel()
            for connection in list(self._waiting):
                connection.scope.cancel()
            connections.deadline = trio.current_time() + self._limits.stop_grace_s
            if self._open:
                await self._all_closed.wait()
            nursery.cancel_scope.cancel()

    async def _accept_all(
        self, listeners: Sequence[Listener], accepting: trio.CancelScope, connections: trio.CancelScope
    ) -> None:
        with connections:
            async with trio.open_nursery() as nursery:
                with accepting:
                    async with trio.open_nursery() as loops:
                        for listener in listeners:
                            loops.start_soon(self._accept_loop, listener, nursery)
                for listener in listeners:
                    listener.close()

    async def _accept_loop(self, listener: Listener, nursery: trio.Nursery) -> None:
        listening = trio.socket.from_stdlib_socket(listener.sock)
        while True:
            try:
                sock, _ = await listening.accept()
            except OSError as exc:
                if exc.errno in _ACCEPT_RETRY:
                    self._log_full(f"accept: {exc.strerror}")
                    self._evict()
                    await trio.sleep(ACCEPT_RETRY_S)
                continue
            self._admit(sock, listener, nursery)

    def _admit(self, sock: trio.socket.SocketType, listener: Listener, nursery: trio.Nursery) -> None:
        try:
            peer = _peer_of(sock)
        except OSError:
            sock.close()
            return
        key = peer_key(peer.host)
        full = self._per_peer[key] >= self._limits.peer_connections_max
        if not full and len(self._open) >= self._limits.connections_max:
            full = not self._evict()
        if full:
            self._log_full(f"{len(self._open)} connections are open")
            _refuse_socket(sock, plain=listener.tls is None)
            return
        transport = trio.SocketStream(sock)
        stream: trio.abc.Stream = transport
        if listener.tls is not None:
            stream = trio.SSLStream(transport, listener.tls, server_side=True)
        connection = HttpConnection(
            stream,
            self._handler,
            self._limits,
            peer=peer,
            secure=listener.tls is not None,
            clock=self._clock,
            log=self._log,
            on_phase=self._on_phase,
            stopping=self._stopping.is_set,
        )
        self._open[connection] = (key, sock.fileno())
        self._per_peer[key] += 1
        self._waiting[connection] = None
        nursery.start_soon(self._serve, connection, stream)

    async def _serve(self, connection: HttpConnection, stream: trio.abc.Stream) -> None:
        try:
            if not isinstance(stream, trio.SSLStream) or await self._shake_hands(connection, stream):
                await connection.serve()
                with trio.move_on_after(CLOSE_S):
                    await stream.aclose()
        except Exception as exc:  # noqa: BLE001 - a fault on one connection must not end the others
            self._log_crash(exc)
        finally:
            self._forget(connection)
            await trio.aclose_forcefully(stream)

    async def _shake_hands(
        self, connection: HttpConnection, stream: trio.SSLStream[trio.SocketStream]
    ) -> bool:
        connection.scope.deadline = trio.current_time() + self._limits.tls_handshake_s
        with trio.move_on_after(self._limits.tls_handshake_s):
            try:
                await stream.do_handshake()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
            return not connection.scope.cancel_called
        return False

    def _on_phase(self, connection: HttpConnection, phase: Phase) -> None:
        if phase is Phase.HANDLING:
            self._waiting.pop(connection, None)
            self._handling[connection] = None
            if len(self._handling) == 1:
                self._handling_began.set()
            return
        self._handling.pop(connection, None)
        if phase is Phase.IDLE:
            self._waiting[connection] = None
            if self._stopping.is_set():
                connection.scope.cancel()

    def _evict(self) -> bool:
        """Close the connection that has waited longest for its peer; False when all are busy."""
        for connection in self._waiting:
            self._forget(connection)
            connection.scope.cancel()
            return True
        return False

    def _forget(self, connection: HttpConnection) -> None:
        self._waiting.pop(connection, None)
        self._handling.pop(connection, None)
        key, _ = self._open.pop(connection, ("", -1))
        if key:
            self._per_peer[key] -= 1
            if not self._per_peer[key]:
                del self._per_peer[key]
        if not self._open and self._stopping.is_set():
            self._all_closed.set()

    async def _watch_peers(self) -> None:
        """Cancel handlers whose peer closed; costs nothing while no handler runs."""
        while True:
            await self._handling_began.wait()
            self._handling_began = trio.Event()
            while self._handling:
                await trio.sleep(PEER_WATCH_S)
                self._cancel_abandoned()

    def _cancel_abandoned(self) -> None:
        oldest = trio.current_time() - PEER_WATCH_S
        running = {
            self._open[c][1]: c for c in self._handling if c.handling_since <= oldest and c in self._open
        }
        if not running:
            return
        poller = select.poll()
        for fd in running:
            poller.register(fd, select.POLLRDHUP)
        for fd, _ in poller.poll(0):
            running[fd].peer_left = True
            running[fd].scope.cancel()

    def _log_crash(self, exc: Exception) -> None:
        if self._log is not None:
            cause = sole_cause(exc)
            where = place_of(cause)
            self._log.error("connection_crashed", error=type(cause).__name__, detail=str(cause), where=where)

    def _log_full(self, reason: str) -> None:
        now = trio.current_time()
        if self._log is not None and now - self._full_logged_at >= FULL_LOG_EVERY_S:
            self._full_logged_at = now
            self._log.warning("connection_refused", reason=reason)


def peer_key(host: str) -> str:
    """Return what the per-peer limit counts by: an IPv6 address's /64, an IPv4 address itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else address.packed[:8].hex()


def _peer_of(sock: trio.socket.SocketType) -> Peer:
    name = sock.getpeername()
    host, _, zone = str(name[0]).partition("%")
    return Peer(host, int(name[1]), zone)


def _refuse_socket(sock: trio.socket.SocketType, *, plain: bool) -> None:
    with sock:
        if plain:
            with contextlib.suppress(OSError):
                os.write(sock.fileno(), _BUSY)
