"""One request of the storage protocol, with patience: retries what may pass, returns what is final (protocols §2, §3).

Rules: "not now" (no connection, 429, 503) is tried again with back-off for a stated time; a wrong clock is corrected
by the service's own time and tried once more; any other refusal is returned in the peer's words. Nothing here knows
packs or generations.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, Protocol

import attrs
import msgspec
import trio

from nas_agent.core.retry import Patience
from nas_agent.ports import Refusal
from runtime.client_types import RequestBodyInput
from runtime.clock import Clock
from runtime.errors import EdgeError, RemoteError, Unavailable
from runtime.http_client import ClientResponse

_RETRY_STATUS: Final = frozenset({429, 502, 503, 504})
FAREWELL_S: Final = 5.0
MOVED_LINE_S: Final = 900.0
MOVED_LINE_RETRY_S: Final = 10.0
"""A refusal of `wait_for` is waited for so long, and asked about so often: a carrier's registry follows in minutes."""

BodyFactory = Callable[[], bytes | AsyncIterator[bytes]]
Waiting = Callable[[str, str, float], None]
"""Told before each wait: code, message for a person, seconds."""


class Requester(Protocol):
    """What this module needs of `runtime.http_client.HttpClient`."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: RequestBodyInput = b"",
        content_length: int | None = None,
        max_response_bytes: int = 1 << 20,
    ) -> ClientResponse:
        """Send one request; raises `Unavailable` or `RemoteError`."""

    async def aclose(self) -> None:
        """Close kept connections."""


class _ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str = ""
    server_time: int | None = None
    needed_bytes: int | None = None
    limit_bytes: int | None = None
    used_bytes: int | None = None
    chunks: tuple[str, ...] = ()


@attrs.frozen
class Denied:
    """A final refusal with the fields that only some codes have."""

    refusal: Refusal
    status: int
    server_time: int | None = None
    missing: tuple[bytes, ...] = ()


def _wait_silently(code: str, message: str, wait_s: float) -> None:
    """Default: nobody watches."""


class StorageHttp:
    """Sends requests under one path prefix with fixed headers."""

    def __init__(
        self,
        client: Requester,
        prefix: str,
        *,
        headers: Mapping[str, str],
        clock: Clock,
        patience: Patience,
        waiting: Waiting = _wait_silently,
    ) -> None:
        """Describe the peer; `prefix` starts with `/` and has no `/` at its end."""
        self._client = client
        self._prefix = prefix
        self._headers = dict(headers)
        self._clock = clock
        self._patience = patience
        self._waiting = waiting
        self._random = random.SystemRandom()

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | BodyFactory = b"",
        content_length: int | None = None,
        headers: Mapping[str, str] | None = None,
        max_response_bytes: int = 1 << 20,
        give_up_on: frozenset[str] = frozenset(),
        wait_for: frozenset[str] = frozenset(),
    ) -> ClientResponse | Denied:
        """Send until an answer counts; a 2xx answer, a final refusal, or one with a code of `give_up_on`.

        A final refusal with a code of `wait_for` is tried again too, for `MOVED_LINE_S`.

        Raises `Unavailable` when patience ended without any answer, `RemoteError` when the peer broke the protocol.
        """
        began = 0.0
        attempt = 0
        while True:
            fault: Denied | Unavailable
            try:
                response = await self._client.request(
                    method,
                    self._prefix + path,
                    headers={**self._headers, **(headers or {})},
                    body=body if isinstance(body, bytes) else body(),
                    content_length=content_length,
                    max_response_bytes=max_response_bytes,
                )
                answer = _judge(response)
                if not isinstance(answer, Denied) or answer.refusal.code in give_up_on:
                    return answer
                if answer.status not in _RETRY_STATUS and not (
                    answer.refusal.code in wait_for and self._may_pass(attempt, began)
                ):
                    return answer
                fault = answer
            except Unavailable as error:
                fault = error
            attempt += 1
            now = self._clock.monotonic_s()
            began = now if attempt == 1 else began
            if not await self._wait(fault, attempt, now - began):
                return _give_up(fault)

    def _may_pass(self, attempt: int, began: float) -> bool:
        return attempt == 0 or self._clock.monotonic_s() - began < MOVED_LINE_S

    async def farewell(self, path: str, headers: Mapping[str, str]) -> None:
        """Send a DELETE once, for a few seconds; whatever comes of it is ignored."""
        with trio.move_on_after(FAREWELL_S), contextlib.suppress(EdgeError):
            await self._client.request("DELETE", self._prefix + path, headers={**self._headers, **headers})

    async def aclose(self) -> None:
        """Close the kept connections."""
        await self._client.aclose()

    async def _wait(self, fault: Denied | Unavailable, attempt: int, failing_for_s: float) -> bool:
        """Sleep before the next attempt; False when patience is over."""
        asked = fault.retry_after_s if isinstance(fault, Unavailable) else fault.refusal.retry_after_s
        if isinstance(fault, Denied) and fault.status not in _RETRY_STATUS:
            asked = asked or MOVED_LINE_RETRY_S
        wait_s = self._patience.wait_s(
            attempt, failing_for_s=failing_for_s, asked_s=asked, jitter=self._random.random()
        )
        if wait_s is None:
            return False
        self._waiting(*_words(fault), wait_s)
        await trio.sleep(wait_s)
        return True


def _give_up(fault: Denied | Unavailable) -> Denied:
    if isinstance(fault, Unavailable):
        raise fault
    return fault


def _words(fault: Denied | Unavailable) -> tuple[str, str]:
    if isinstance(fault, Denied):
        return fault.refusal.code, fault.refusal.message
    return fault.code, str(fault)


def _judge(response: ClientResponse) -> ClientResponse | Denied:
    if 200 <= response.status < 300:
        return response
    if not 400 <= response.status < 600:
        raise RemoteError(f"storage: expected an answer of the protocol, got status {response.status}")
    try:
        error = msgspec.json.decode(response.body, type=_ErrorBody)
        missing = tuple(bytes.fromhex(each) for each in error.chunks)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as fault:
        raise RemoteError(f"storage: status {response.status} without the protocol's error body") from fault
    refusal = Refusal(
        code=error.code,
        message=error.message,
        retry_after_s=_retry_after(response),
        needed_bytes=error.needed_bytes,
        limit_bytes=error.limit_bytes,
        used_bytes=error.used_bytes,
    )
    return Denied(refusal, response.status, error.server_time, missing)


def _retry_after(response: ClientResponse) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() and len(text) < 9 else None
