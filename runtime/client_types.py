"""Values of the HTTP client: limits, the whole answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import attrs

from runtime.http.types import FileBody

RequestBodyInput = bytes | FileBody | AsyncIterator[bytes]


@attrs.frozen(kw_only=True)
class ClientLimits:
    """Every wait of a request has one of these limits; rates count only the time spent waiting for the peer."""

    connect_s: float = 10.0
    tls_s: float = 10.0
    head_s: float = 30.0
    """From the end of the request to the end of the answer's header."""
    continue_s: float = 3.0
    """How long a large body waits for 100 Continue before it is sent anyway."""
    expect_above_bytes: int = 256 * 1024
    """Bodies larger than this, or of unknown length, are announced with Expect: 100-continue."""
    total_s: float = 600.0
    """The whole request, its answer included."""
    rate_grace_s: float = 15.0
    rate_bytes_per_s: float = 1024.0
    """Minimum rate of an upload taken and of an answer given, after the grace time."""
    dead_path_s: int = 7
    """A connection whose peer's kernel acknowledges nothing for so long breaks, at most a probe later (≥ 3)."""
    connections_max: int = 8
    idle_max: int = 4
    idle_s: float = 55.0
    """Kept connections older than this are not used again (servers close at 75 s)."""


@attrs.frozen
class ClientResponse:
    """A whole answer; header names in lower case, repeated ones joined by ", "."""

    status: int
    headers: Mapping[str, str]
    body: bytes
