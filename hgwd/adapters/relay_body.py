"""Pass a service's answer on to the LAN: small ones whole, packs piece by piece, never buffered.

A streamed answer is read by a task of its own, which owns the connection to the service, and handed over piece by
piece through a channel without buffer: a request to the service never outlives its LAN request, and neither task ends
inside the other's cancel scopes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Self

import attrs
import trio

from hgwd.core.relay import headers_to_return
from hgwd.ports import ServiceAnswer
from runtime.errors import EdgeError, PeerGoneError, RemoteError
from runtime.http import Response

ANSWER_BYTES_MAX: Final = 1 << 20

Asking = AbstractAsyncContextManager[ServiceAnswer]


async def read_whole(answer: ServiceAnswer) -> Response:
    """Read an answer of at most `ANSWER_BYTES_MAX` bytes; a longer one is the service's fault."""
    body = bytearray()
    async with _chunks_of(answer) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > ANSWER_BYTES_MAX:
                raise RemoteError(f"the service answered with more than {ANSWER_BYTES_MAX} bytes")
    return Response(answer.status, headers_to_return(answer.headers), bytes(body))


async def relay_streamed(
    nursery: trio.Nursery, asking: Asking, *, still_allowed: Callable[[], bool]
) -> Response:
    """Send the request in a task of `nursery` and return its answer: a success streamed, a refusal whole."""
    answer: Response = await nursery.start(_pump, asking, still_allowed)
    return answer


async def _pump(
    asking: Asking,
    still_allowed: Callable[[], bool],
    task_status: trio.TaskStatus[Response] = trio.TASK_STATUS_IGNORED,
) -> None:
    started = False
    try:
        async with asking as answer:
            if answer.status not in {200, 206}:
                refusal = await read_whole(answer)
                started = True
                task_status.started(refusal)
                return
            send, receive = trio.open_memory_channel[bytes](0)
            body = RelayedBody(receive)
            started = True
            task_status.started(Response(answer.status, _headers_of(answer), body))
            async with send, _chunks_of(answer) as chunks:
                async for chunk in chunks:
                    if not still_allowed():
                        return
                    await send.send(chunk)
                body.complete = True
    except (EdgeError, trio.BrokenResourceError):
        if not started:
            raise  # to the LAN handler that waits for the answer
        # else the line broke, or the LAN side left: on the LAN the missing rest says so


def _headers_of(answer: ServiceAnswer) -> tuple[tuple[str, str], ...]:
    length = answer.headers.get("content-length")
    framing = (("content-length", length),) if length is not None else ()
    return (*headers_to_return(answer.headers), *framing)


@attrs.define
class RelayedBody:
    """The LAN side of a streamed answer. Ends with an error unless all of it came (`complete`)."""

    _receive: trio.MemoryReceiveChannel[bytes]
    complete: bool = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece; raise `PeerGoneError`, which breaks the connection, when the rest will not come."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self.complete:
                raise StopAsyncIteration from None
            raise PeerGoneError("the answer was cut: line down, or the device was revoked (AZK-73)") from None

    async def aclose(self) -> None:
        """Stop the task that reads from the service."""
        await self._receive.aclose()


@asynccontextmanager
async def _chunks_of(answer: ServiceAnswer) -> AsyncIterator[AsyncIterator[bytes]]:
    """Iterate over an answer and end the iteration in this task, also when it is left early."""
    chunks = answer.chunks()
    try:
        yield chunks
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
