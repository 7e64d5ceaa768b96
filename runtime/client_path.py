"""The network path under a kept connection: is it watched, is it still ours, did the peer say something.

Rules: only while a request is waited for does a connection probe a silent peer, so an idle program sends nothing
(JNT-33). A connection whose local address is not the one that the kernel would choose now belongs to a line that was
renumbered or is gone: nothing it sends is answered.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any, Final

import trio

PROBES: Final = 3

SourceFinder = Callable[[tuple[Any, ...], str | None], str | None]
"""(peer's socket address, address asked for or None) → local address that a new connection would have, None: no way."""


def find_source(peer: tuple[Any, ...], source: str | None) -> str | None:
    """Return the local address that the kernel would now use towards `peer`, or None when it has no way there.

    Sends nothing: a UDP socket is connected and asked for its name. `peer` is a socket address without a name to look up.
    """
    try:
        with socket.socket(_family(peer), socket.SOCK_DGRAM) as probe:
            if source is not None:
                probe.bind((source, 0))
            probe.connect(peer)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def set_dead_path_timeout(sock: trio.socket.SocketType, dead_path_s: int) -> None:
    """Let a connection break when the peer's kernel acknowledges nothing for `dead_path_s` (≥ 3), give or take a probe.

    A peer that stops reading for as long is taken for dead too (Linux counts the time of a closed window).
    """
    probe_s = max(1, dead_path_s // (PROBES + 1))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, dead_path_s * 1000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


def set_probing(sock: trio.socket.SocketType, *, on: bool) -> None:
    """Probe the peer while nothing is in flight, or stop that."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(on))


def is_current(sock: trio.socket.SocketType, source: str | None, find: SourceFinder) -> bool:
    """Tell whether a connection made from `source` has the local address that a new one would have."""
    try:
        peer, local = sock.getpeername(), sock.getsockname()[0]
    except OSError:  # the connection is gone already
        return False
    return bool(find(peer, source) == local)


def has_news(sock: trio.socket.SocketType) -> bool:
    """Tell whether a kept connection has something to read: a close, or bytes nobody asked for."""
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)
    return bool(poller.poll(0))


def _family(peer: tuple[Any, ...]) -> socket.AddressFamily:
    return socket.AF_INET6 if len(peer) == 4 else socket.AF_INET
