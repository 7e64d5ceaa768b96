"""Peers that are slow on purpose, in virtual time: every wait for a peer ends (H18)."""

from __future__ import annotations

import contextlib

import pytest
import trio
from trio.testing import memory_stream_pair

from runtime.clock import ManualClock
from runtime.http import HttpLimits, Peer, Response, json_response
from runtime.http.connection import HttpConnection

HEAD = b"PUT /echo HTTP/1.1\r\nHost: gw.home\r\n"
LIMITS = HttpLimits(
    header_s=10, idle_s=75, rate_grace_s=10, body_rate_bytes_per_s=100, send_rate_bytes_per_s=100, linger_s=2
)


@contextlib.asynccontextmanager
async def connected(handler, limits=LIMITS):
    """A served in-memory connection; yields the peer's end and a function that tells when serving ended."""
    near, far = memory_stream_pair()
    ended: list[float] = []

    async def serve():
        connection = HttpConnection(
            near, handler, limits, peer=Peer("::1", 1), secure=False, clock=ManualClock(), log=None
        )
        await connection.serve()
        ended.append(trio.current_time())
        await near.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield far, ended
        await far.aclose()


async def read_all(stream) -> bytes:
    received = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while part := await stream.receive_some(65536):
            received += part
    return received


async def echo(request):
    return json_response(200, {"bytes": len(await request.body.read(1 << 20))})


async def test_silent_connection_is_closed_after_the_header_time(autojump_clock):
    async with connected(echo) as (far, ended):
        assert await read_all(far) == b""
    assert ended == [pytest.approx(10)]


async def test_header_trickled_byte_by_byte_gets_408_after_the_header_time(autojump_clock):
    async with connected(echo) as (far, ended):

        async def trickle():
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                for byte in HEAD * 10:
                    await far.send_all(bytes([byte]))
                    await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            answer = await read_all(far)
            nursery.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 10 <= ended[0] <= 10 + LIMITS.linger_s + 0.1


async def test_kept_connection_is_closed_after_the_idle_time(autojump_clock):
    async with connected(echo) as (far, ended):
        await far.send_all(HEAD + b"\r\n")
        answer = await read_all(far)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert ended == [pytest.approx(75)]


async def test_body_below_the_minimum_rate_gets_408(autojump_clock):
    async with connected(echo) as (far, ended):
        await far.send_all(HEAD + b"Content-Length: 100000\r\n\r\n")

        async def trickle():
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while True:
                    await far.send_all(b"x" * 10)
                    await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            answer = await read_all(far)
            nursery.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.1 408 ")
    # 10 s of grace, and a tenth of the minimum rate buys 1 s in 9
    assert 10 <= ended[0] <= 10 * 10 / 9 + LIMITS.linger_s + 1


async def test_body_above_the_minimum_rate_may_take_long(autojump_clock):
    async with connected(echo) as (far, _ended):
        await far.send_all(HEAD + b"Connection: close\r\nContent-Length: 30000\r\n\r\n")
        for _ in range(200):
            await far.send_all(b"x" * 150)
            await trio.sleep(1)
        answer = await read_all(far)
    assert answer.endswith(b'{"bytes":30000}')


async def test_slow_handler_costs_the_peer_nothing(autojump_clock):
    async def slow(request):
        total = 0
        async for chunk in request.body.chunks():
            total += len(chunk)
            await trio.sleep(60)
        return json_response(200, {"bytes": total})

    async with connected(slow) as (far, _ended):
        await far.send_all(HEAD + b"Connection: close\r\nContent-Length: 30\r\n\r\n")
        for _ in range(3):
            await far.send_all(b"x" * 10)
            await trio.sleep(59)
        answer = await read_all(far)
    assert answer.endswith(b'{"bytes":30}')


class SlowTaker(trio.abc.Stream):
    """A peer's end that takes `size` bytes per second of what we send."""

    def __init__(self, inner, bytes_per_s: float) -> None:
        self._inner = inner
        self._bytes_per_s = bytes_per_s

    async def send_all(self, data):
        await trio.sleep(len(data) / self._bytes_per_s)

    async def wait_send_all_might_not_block(self):
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes=None):
        return await self._inner.receive_some(max_bytes)

    async def aclose(self):
        await self._inner.aclose()


@pytest.mark.parametrize(("rate", "whole"), [(10, False), (1000, True)])
async def test_answer_must_be_taken_at_the_minimum_rate(rate, whole, autojump_clock):
    """1 MB in pieces: at 1000 B/s allowed (minimum 100), at 10 B/s given up after the grace time."""
    sent = []

    async def big(_request):
        async def pieces():
            for number in range(1000):
                yield b"x" * 1000
                sent.append(number)

        return Response(200, (), pieces())

    near, far = memory_stream_pair()
    stream = SlowTaker(near, rate)
    connection = HttpConnection(
        stream, big, LIMITS, peer=Peer("::1", 1), secure=False, clock=ManualClock(), log=None
    )
    await far.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    await connection.serve()
    await near.aclose()
    assert (len(sent) == 1000) is whole
    assert whole or trio.current_time() < 30


async def test_refused_peer_that_keeps_sending_is_cut_off(autojump_clock):
    async with connected(echo) as (far, ended):
        await far.send_all(b"GET / HTTP/1.0\r\n\r\n")

        async def flood():
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while True:
                    await far.send_all(b"x" * 1000)
                    await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            answer = await read_all(far)
            nursery.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.1 505 ")
    assert ended[0] <= LIMITS.linger_s + 0.2


async def test_refused_peer_that_floods_is_cut_off_by_size(autojump_clock):
    """Virtual time stands still while bytes flow: only the size limit can end this."""
    async with connected(echo) as (far, ended):

        async def flood():
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await far.send_all(b"GET / HTTP/1.0\r\n\r\n")
                for _ in range(2 * LIMITS.linger_bytes_max // 65536):
                    await far.send_all(b"x" * 65536)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            answer = await read_all(far)
    assert answer.startswith(b"HTTP/1.1 505 ")
    assert ended == [0]


async def test_unread_body_up_to_the_limit_is_dropped_and_the_connection_kept(autojump_clock):
    async def deaf(_request):
        return Response(204)

    size = LIMITS.drain_bytes_max
    async with connected(deaf) as (far, _ended):
        await far.send_all(HEAD + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
        await far.send_all(HEAD + b"Connection: close\r\n\r\n")
        answer = await read_all(far)
    assert answer.count(b"HTTP/1.1 204 ") == 2


async def test_unread_body_over_the_limit_closes_the_connection(autojump_clock):
    async def deaf(_request):
        return Response(204)

    size = LIMITS.drain_bytes_max + 1
    async with connected(deaf) as (far, _ended):
        await far.send_all(HEAD + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
        await far.send_all(HEAD + b"\r\n")
        answer = await read_all(far)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()
