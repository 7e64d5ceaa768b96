"""The storage service over the WAN: one pinned TLS client, and what its answers say about the line (port `Upstream`).

The line is decided by the service from our source address; nothing here says which line we are (X-03). Every answer
and every failure moves `line`, which page, status and the LAN's 503 speak from.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from hgwd.core.relay import STORAGE_PREFIX, parse_service_error
from hgwd.core.status import LineStatus, advance_line
from hgwd.ports import ServiceAnswer
from runtime.client_types import ClientLimits, ClientResponse
from runtime.clock import Clock
from runtime.errors import EdgeError
from runtime.http import FileBody
from runtime.http_client import HttpClient
from wire.storage import HEADER_SESSION, PACK_BYTES_MAX

UPLOAD_ANSWER_BYTES_MAX: Final = 64 * 1024
UPSTREAM_LIMITS: Final = ClientLimits(connections_max=8, idle_max=2, total_s=3600.0)
"""A 64 MiB pack at 160 kbit/s takes 56 minutes; slower is cut by the minimum rate of 1 KiB/s, and sent again."""


class StorageUpstream:
    """`Upstream` over HTTP; one client for control and packs, so that an idle line holds few connections."""

    def __init__(self, client: HttpClient, clock: Clock, on_change: Callable[[LineStatus], None]) -> None:
        self.line = LineStatus()
        self._client = client
        self._clock = clock
        self._on_change = on_change

    @contextlib.asynccontextmanager
    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes],
        length: int,
    ) -> AsyncIterator[ServiceAnswer]:
        """See `Upstream`."""
        with self._watching_line():
            async with self._client.stream(
                method,
                path,
                headers=headers,
                body=body,
                content_length=length,
                max_response_bytes=PACK_BYTES_MAX,
            ) as answer:
                if answer.status < 400:
                    self._reached(None)
                yield answer

    async def put_pack(
        self, session: str, token: str, pack: str, path: Path, size_bytes: int
    ) -> ClientResponse:
        """See `Upstream`."""
        with self._watching_line():
            answer = await self._client.request(
                "PUT",
                f"{STORAGE_PREFIX}/sessions/{session}/packs/{pack}",
                headers={HEADER_SESSION: token, "content-type": "application/octet-stream"},
                body=FileBody(path, 0, size_bytes),
                max_response_bytes=UPLOAD_ANSWER_BYTES_MAX,
            )
        self.note_answer(answer.status, answer.body)
        return answer

    def note_answer(self, status: int, body: bytes) -> None:
        """Learn about the line from a whole answer."""
        error = parse_service_error(body) if status >= 400 else None
        self._reached(error.code if error is not None else None)

    def _reached(self, code: str | None) -> None:
        self._set(advance_line(self.line, code=code, reached=True, now_s=self._clock.now_s()))

    @contextlib.contextmanager
    def _watching_line(self) -> Iterator[None]:
        try:
            yield
        except EdgeError as error:
            self._set(advance_line(self.line, code=error.code, reached=False, now_s=self._clock.now_s()))
            raise

    def _set(self, line: LineStatus) -> None:
        if line != self.line:
            self.line = line
            self._on_change(line)
