"""Kept connections of the HTTP client when the path under them dies or moves."""

from __future__ import annotations

import contextlib
import socket

import pytest
import trio

from runtime.client_path import find_source
from runtime.client_types import ClientLimits
from runtime.errors import Unavailable
from runtime.http import Router, json_response
from runtime.http_client import HttpClient

HURRY = ClientLimits(head_s=0.3, rate_grace_s=0.3)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class FirstRequestOnly:
    """A server whose connections answer their first request, all of them together, and then never again."""

    def __init__(self, together: int, *, breaks: bool) -> None:
        self.together = together
        self.breaks = breaks
        self.connections = 0
        self.all_there = trio.Event()

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        if self.connections == self.together:
            self.all_there.set()
        await self.all_there.wait()
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(ANSWER)
            await stream.receive_some(65536)
            if not self.breaks:
                await trio.sleep_forever()


@contextlib.asynccontextmanager
async def serving(handler):
    listeners = await trio.open_tcp_listeners(0, host="::1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handler, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("breaks", [False, True], ids=["silent", "broken"])
async def test_when_one_kept_connection_fails_none_of_the_others_is_tried(breaks):
    """Each would cost its own timeout: a gateway whose line was renumbered hung for more than a minute."""
    server = FirstRequestOnly(4, breaks=breaks)
    async with serving(server) as port, HttpClient("::1", port, timeouts=HURRY) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(client.request, "GET", "/")
        with pytest.raises(Unavailable):
            await client.request("POST", "/")
        assert (await client.request("POST", "/")).body == b"ok"
    assert server.connections == 5


@pytest.fixture
def port_router():
    async def get(request):
        return json_response(200, {"port": request.peer.port})

    router = Router()
    router.route("GET", "/", get)
    return router


@pytest.mark.parametrize("now", ["2001:db8::1", None], ids=["another address", "no way at all"])
async def test_a_kept_connection_from_an_address_we_would_not_use_now_is_left(now, running, port_router):
    sources = ["::1", now, now]
    asked = []

    def find(peer, source):
        asked.append((peer[0], source))
        return sources.pop(0)

    async with (
        running(port_router) as server,
        HttpClient("::1", server.port, find_source=find) as client,
    ):
        answers = [(await client.request("GET", "/")).body for _ in range(3)]
    assert answers[0] == answers[1] != answers[2]
    assert asked == [("::1", None), ("::1", None)]


async def test_connections_from_a_bound_wildcard_follow_the_routes_too(running, port_router):
    async with running(port_router) as server, HttpClient("::1", server.port, source_address="::") as client:
        answers = {(await client.request("GET", "/")).body for _ in range(3)}
    assert len(answers) == 1


def test_the_source_towards_a_peer_is_what_the_kernel_would_choose():
    assert find_source(("::1", 9, 0, 0), None) == "::1"
    assert find_source(("127.0.0.1", 9), None) == "127.0.0.1"
    assert find_source(("127.0.0.1", 9), "127.0.0.5") == "127.0.0.5"
    assert find_source(("::1", 9, 0, 0), "::") == "::1"
    assert find_source(("::1", 9, 0, 0), "2001:db8::1") is None


async def test_a_path_is_watched_while_a_request_waits_and_left_alone_while_idle(running, port_router):
    """JNT-33: an idle gateway sends nothing, so no probes either."""
    async with running(port_router) as server, HttpClient("::1", server.port) as client:
        async with client.stream("GET", "/") as answer:
            connection = answer._exchange.connection
            held = socket.socket(fileno=socket.dup(connection.socket.fileno()))
            with held:
                assert held.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                timeout_ms = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                probe_s = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
                assert timeout_ms / 1000 + probe_s <= 10
                [_ async for _ in answer.chunks()]
        assert connection in client._idle
        with socket.socket(fileno=socket.dup(connection.socket.fileno())) as held:
            assert held.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
