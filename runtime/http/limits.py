"""Every limit of the HTTP edge, by name and with its unit; a program changes them in one place."""

from __future__ import annotations

import attrs

HEAD_BYTES_MAX = 16 * 1024
HEADER_LINES_MAX = 64
CHUNK_BYTES = 64 * 1024
FILE_STEP_BYTES = 256 * 1024


@attrs.frozen(kw_only=True)
class HttpLimits:
    """Limits of one server.

    Rates count only the time that we wait for the peer, never the time that the handler takes.
    """

    connections_max: int = 512
    """Open connections; beyond it the longest idle one is closed, else the new one is refused with 503."""
    peer_connections_max: int = 128
    """Open connections of one peer address (IPv6: one /64)."""
    tls_handshake_s: float = 10.0
    header_s: float = 10.0
    """From the first byte of a request (or from the connection) to the end of its header."""
    idle_s: float = 75.0
    """Between two requests on a kept connection."""
    requests_per_connection_max: int = 100_000
    body_bytes_max: int = 64 * 1024 * 1024 + 64 * 1024
    """Refused with 413 before the handler when declared, in the middle when chunked."""
    rate_grace_s: float = 10.0
    """A peer may stall this long in all before the minimum rates apply."""
    body_rate_bytes_per_s: float = 1024.0
    """Minimum rate at which a body must arrive."""
    send_rate_bytes_per_s: float = 1024.0
    """Minimum rate at which the peer must take an answer."""
    drain_bytes_max: int = 64 * 1024
    """An unread body up to this size is read and dropped so that the connection lives on; above it closes."""
    linger_bytes_max: int = 4 * 1024 * 1024
    """On closing, what still arrives is dropped up to here, so that the peer can read our answer."""
    linger_s: float = 2.0
    stop_grace_s: float = 10.0
    """After `stopping`: running requests may end within this time, then they are cancelled."""
