"""The server on a real socket: bodies, files, caps, disconnects, graceful stop, faults of handlers."""

from __future__ import annotations

import contextlib
import email.utils
import functools
import io
import os
import socket
import struct

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from runtime import tls
from runtime.errors import LocalError, RemoteError, Unavailable
from runtime.http import (
    FileBody,
    HttpLimits,
    Response,
    error_response,
    json_response,
    open_listener,
    serve_http,
)
from runtime.http.send import encode_head
from runtime.http.server import peer_key
from runtime.logs import Logger

GET = b"GET %s HTTP/1.1\r\nHost: gw.home\r\n%s\r\n"
CLOSE = b"Connection: close\r\n"


def split(answer: bytes) -> tuple[bytes, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), body


async def tls_exchange(port, data, certificate):
    context = tls.client_context(certificate.cert)
    stream = await trio.open_ssl_over_tcp_stream("::1", port, ssl_context=context, https_compatible=True)
    received = b""
    async with stream:
        await stream.send_all(data)
        while part := await stream.receive_some(65536):
            received += part
    return received


async def test_file_bodies_are_byte_equal_over_plain_tcp_and_tls(running, exchange, file_router, certificate):
    router, content = file_router
    request = GET % (b"/file", CLOSE)
    async with running(router) as plain:
        head, body = split(await exchange(plain.port, request))
        assert body == content
        assert b"content-length: %d" % len(content) in head
    async with running(router, context=tls.server_context(certificate.cert, certificate.key)) as secure:
        assert split(await tls_exchange(secure.port, request, certificate))[1] == content


@pytest.mark.parametrize(
    ("wanted", "status", "first", "last"),
    [
        (b"bytes=0-0", 206, 0, 0),
        (b"bytes=70000-1000000", 206, 70000, 1000000),
        (b"bytes=2999999-", 206, 2999999, 2999999),
        (b"bytes=-5", 206, 2999995, 2999999),
        (b"bytes=5-99999999", 206, 5, 2999999),
        (b"bytes=-99999999", 206, 0, 2999999),
        (b"bytes=3000000-", 416, 0, -1),
        (b"bytes=-0", 416, 0, -1),
        (b"bytes=9-5", 200, 0, 2999999),
        (b"bytes=0-1,2-3", 200, 0, 2999999),
        (b"lines=0-1", 200, 0, 2999999),
        (b"bytes=" + b",".join(b"%d-" % n for n in range(2500)), 200, 0, 2999999),
    ],
)
async def test_one_range_is_honoured_and_others_are_not(
    wanted, status, first, last, running, exchange, file_router
):
    router, content = file_router
    async with running(router) as server:
        answer = await exchange(server.port, GET % (b"/file", CLOSE + b"Range: " + wanted + b"\r\n"))
    head, body = split(answer)
    assert head.startswith(b"http/1.1 %d " % status)
    assert body == content[first : last + 1]
    if status == 206:
        assert b"content-range: bytes %d-%d/3000000" % (first, last) in head
    if status == 416:
        assert b"content-range: bytes */3000000" in head


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b'If-None-Match: "v1"\r\n', 304),
        (b'If-None-Match: "v0", W/"v1"\r\n', 304),
        (b"If-None-Match: *\r\n", 304),
        (b'If-None-Match: "v2"\r\n', 200),
        (b'Range: bytes=0-1\r\nIf-Range: "v1"\r\n', 206),
        (b'Range: bytes=0-1\r\nIf-Range: "v0"\r\n', 200),
    ],
)
async def test_conditional_requests(headers, status, running, exchange, file_router):
    async with running(file_router[0]) as server:
        head, body = split(await exchange(server.port, GET % (b"/file", CLOSE + headers)))
    assert head.startswith(b"http/1.1 %d " % status)
    if status == 304:
        assert body == b""
        assert b"content-length" not in head
        assert b'etag: "v1"' in head


async def test_head_request_gets_the_length_and_no_body(running, exchange, file_router):
    async with running(file_router[0]) as server:
        head, body = split(
            await exchange(server.port, b"HEAD /file HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"\r\n")
        )
    assert b"content-length: 3000000" in head
    assert body == b""


@pytest.mark.parametrize(
    ("size", "offset", "length"), [(3, 0, 4), (3, 4, 0), (200_000, 0, 1 << 20), (3, -1, 2)]
)
async def test_file_that_is_too_short_is_an_error_before_the_first_byte(
    size, offset, length, running, exchange, tmp_path
):
    path = tmp_path / "short"
    path.write_bytes(bytes(size))

    async def handler(_request):
        return Response(200, (), FileBody(path, offset, length))

    async with running(handler) as server:
        head, _ = split(await exchange(server.port, GET % (b"/", CLOSE)))
    assert head.startswith(b"http/1.1 500 ")


async def test_file_that_shrinks_while_sent_never_looks_complete(running, exchange, tmp_path):
    path = tmp_path / "shrinking"
    path.write_bytes(bytes(8 << 20))

    async def handler(_request):
        return Response(200, (), FileBody(path, 0, 8 << 20))

    async with running(handler) as server:
        stream = await trio.open_tcp_stream("::1", server.port)
        async with stream:
            await stream.send_all(GET % (b"/", b""))
            received = len(await stream.receive_some(1000))
            os.truncate(path, 1000)
            with trio.fail_after(5), contextlib.suppress(trio.BrokenResourceError):
                while part := await stream.receive_some(65536):
                    received += len(part)
    assert received < 8 << 20


async def test_symbolic_link_is_not_served(running, exchange, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")

    async def handler(_request):
        return Response(200, (), FileBody(tmp_path / "link", 0, 6))

    async with running(handler) as server:
        answer = await exchange(server.port, GET % (b"/", CLOSE))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in answer


async def test_continue_is_said_only_when_the_handler_first_reads(running):
    reading = trio.Event()

    async def handler(request):
        await reading.wait()
        return json_response(200, {"bytes": len(await request.body.read(100))})

    async with running(handler) as server:
        async with await trio.open_tcp_stream("::1", server.port) as stream:
            await stream.send_all(
                b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
            )
            with trio.move_on_after(0.15) as quiet:
                await stream.receive_some(1000)
            assert quiet.cancelled_caught, "100 Continue before the handler read"
            reading.set()
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 100 ")
            await stream.send_all(b"hello")
            assert (await stream.receive_some(1000)).endswith(b'{"bytes":5}')


@pytest.mark.parametrize("status", [507, 429, 413])
async def test_refusal_comes_before_the_first_byte_of_the_body(status, running, exchange):
    async def full(_request):
        return error_response(status, "quota-full", "no room for the pack", needed_bytes=5)

    async with running(full) as server:
        answer = await exchange(
            server.port,
            b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5000000\r\n\r\n",
        )
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b" 100 " not in answer


async def test_declared_length_over_the_handlers_limit_is_refused_without_reading(running, exchange):
    async def small(request):
        await request.body.read(10)
        return Response(204)

    head = b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n"
    async with running(small) as server:
        answer = await exchange(server.port, head)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_chunked_body_over_the_limit_is_refused_in_the_middle(running, exchange):
    async def small(request):
        await request.body.read(10)
        return Response(204)

    head = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with running(small) as server:
        answer = await exchange(server.port, head + b"6\r\naaaaaa\r\n" * 2)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_server_takes_no_more_of_a_body_than_the_handler_reads(running):
    """Back pressure: with a handler that reads nothing the peer's sending stops after the socket buffers."""
    release = trio.Event()

    async def handler(_request):
        await release.wait()
        return Response(204)

    async with running(handler, limits=HttpLimits(body_bytes_max=1 << 30)) as server:
        stream = await trio.open_tcp_stream("::1", server.port)
        async with stream:
            await stream.send_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
            sent = 0
            with trio.move_on_after(0.5):
                while True:
                    await stream.send_all(b"x" * 65536)
                    sent += 65536
            assert sent < 64 << 20
        release.set()


class SentinelError(Exception):
    pass


def _raise(exc):
    async def handler(_request):
        raise exc

    return handler


@pytest.mark.parametrize(
    ("exc", "status", "code"),
    [
        (SentinelError("token=hunter2"), 500, b"internal"),
        (ExceptionGroup("group", [SentinelError("token=hunter2")]), 500, b"internal"),
        (RemoteError("bad hash", status=400, code="bad-hash"), 400, b"bad-hash"),
        (ExceptionGroup("group", [RemoteError("bad hash", status=400, code="bad-hash")]), 400, b"bad-hash"),
        (Unavailable("line is down", retry_after_s=2.5), 503, b"unavailable"),
    ],
)
async def test_exception_of_a_handler_becomes_one_answer_and_one_log_line(
    exc, status, code, running, exchange
):
    async with running(_raise(exc)) as server:
        answer = await exchange(server.port, GET % (b"/", CLOSE))
    head, body = split(answer)
    assert head.startswith(b"http/1.1 %d " % status)
    assert b'"code":"' + code + b'"' in body
    assert b"Traceback" not in answer
    assert b"hunter2" not in answer
    lines = server.log_lines()
    assert len(lines) == 1
    assert lines[0]["status"] == status
    assert lines[0]["code"] == code.decode()
    assert (b"retry-after: 3" in head) == (status == 503)


async def test_each_request_makes_one_log_line_without_the_path_values(running, exchange, demo_router):
    async def secret(request, token):
        request.trace.add(outcome="seen", token=token)
        return json_response(200, {})

    demo_router.route("GET", "/s/{token}", secret)
    request = GET % (b"/s/hunter2?password=hunter2", CLOSE + b"Authorization: Bearer hunter2\r\n")
    async with running(demo_router) as server:
        await exchange(server.port, request)
    [line] = server.log_lines()
    assert line["event"] == "request"
    assert (line["method"], line["route"], line["status"]) == ("GET", "/s/{token}", 200)
    assert line["outcome"] == "seen"
    assert line["bytes"] == 2
    assert 0 <= line["duration_s"] < 5
    assert b"hunter2" not in server.stream.getvalue()


@given(st.integers(0, 253402300799))
def test_date_is_written_as_the_standard_library_writes_it(second):
    head = encode_head(Response(204), None, now_s=second + 0.9, close=False)
    assert f"\r\ndate: {email.utils.formatdate(second, usegmt=True)}\r\n".encode() in head


class BrokenClock:
    """Fails at its first reading only."""

    def __init__(self):
        self.readings = 0

    def now_s(self):
        self.readings += 1
        if self.readings <= 2:
            raise ZeroDivisionError
        return 0.0

    def monotonic_s(self):
        return 0.0


async def test_fault_outside_every_handler_ends_one_connection_only(demo_router, exchange):
    listener = open_listener("::1", 0)
    stream = io.BytesIO()
    async with trio.open_nursery() as nursery:
        serve = functools.partial(serve_http, clock=BrokenClock(), log=Logger("test", stream))
        await nursery.start(serve, demo_router, [listener])
        assert await exchange(listener.port, GET % (b"/", CLOSE)) == b""
        assert b"date: Thu, 01 Jan 1970" in await exchange(listener.port, GET % (b"/", CLOSE))
        nursery.cancel_scope.cancel()
    assert b"connection_crashed" in stream.getvalue()


async def test_pipelined_requests_do_not_keep_the_loop_to_themselves(running, demo_router):
    requests = 300
    async with running(demo_router) as server, trio.open_nursery() as nursery:
        turns = 0

        async def count_turns():
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with await trio.open_tcp_stream("::1", server.port) as stream:
            nursery.start_soon(count_turns)
            await stream.send_all((GET % (b"/", b"")) * (requests - 1) + GET % (b"/", CLOSE))
            answers = b""
            while part := await stream.receive_some(65536):
                answers += part
        nursery.cancel_scope.cancel()
    assert answers.count(b"HTTP/1.1 200 ") == requests
    assert turns >= requests / 2


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size_bytes: int


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b'{"size_bytes":5}', 200, b"5"),
        (b'{"size_bytes":"5"}', 400, b"$.size_bytes"),
        (b'{"size_bytes":5,"x":1}', 400, b"unknown field"),
        (b'{"size_bytes":', 400, b"bad-format"),
        (b'{"size_bytes":5, "y":"\xff"}', 400, b"bad-format"),
        (b"[" * 90, 400, b"bad-format"),
        (b" " * 101, 413, b"too-large"),
    ],
)
async def test_json_body_is_decoded_or_refused_with_the_place(sent, status, said, running, exchange):
    async def handler(request):
        wanted = await request.read_json(Wanted, limit_bytes=100)
        return json_response(200, wanted.size_bytes)

    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(sent)
    async with running(handler) as server:
        answer_head, body = split(await exchange(server.port, head + sent))
    assert answer_head.startswith(b"http/1.1 %d " % status)
    assert said in body


@pytest.mark.parametrize("secure", [False, True])
async def test_download_that_is_not_taken_is_given_up(secure, running, file_router, certificate):
    """sendfile, too, waits no longer than the minimum rate allows (H18)."""
    limits = HttpLimits(rate_grace_s=0.3, send_rate_bytes_per_s=1e9)
    context = tls.server_context(certificate.cert, certificate.key) if secure else None
    async with running(file_router[0], limits=limits, context=context) as server:
        tcp = socket.create_connection(("::1", server.port))
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tcp.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(tcp))
        asked = stream
        if secure:
            asked = trio.SSLStream(stream, tls.client_context(certificate.cert), server_hostname="localhost")
        await asked.send_all(GET % (b"/file", b"") * 20)
        with trio.fail_after(5):
            while not server.log_lines() or server.log_lines()[-1]["status"] != 499:
                await trio.sleep(0.05)
        await trio.aclose_forcefully(stream)


async def test_header_injection_by_a_handler_becomes_a_500(running, exchange):
    async def handler(_request):
        return Response(200, (("x-a", "b\r\nx-evil: 1"),))

    async with running(handler) as server:
        answer = await exchange(server.port, GET % (b"/", CLOSE))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"x-evil" not in answer


async def test_iterator_body_is_chunked_and_closed(running, exchange):
    closed = []

    async def handler(_request):
        async def pieces():
            try:
                yield b"ab"
                yield b""
                yield b"c"
            finally:
                closed.append(True)

        return Response(200, (), pieces())

    async with running(handler) as server:
        head, body = split(await exchange(server.port, GET % (b"/", CLOSE)))
    assert b"transfer-encoding: chunked" in head
    assert body == b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    assert closed == [True]


@pytest.mark.parametrize(("declared", "pieces"), [("3", [b"ab"]), ("3", [b"ab", b"cd"]), ("0", [b"a"])])
async def test_iterator_body_that_is_not_as_long_as_declared_breaks_the_connection(
    declared, pieces, running, exchange
):
    async def handler(_request):
        async def body():
            for piece in pieces:
                yield piece

        return Response(200, (("content-length", declared),), body())

    async with running(handler) as server:
        head, body = split(await exchange(server.port, GET % (b"/", b"")))
    assert len(body) < int(declared) or head.startswith(b"http/1.1 500 ")


async def test_iterator_body_of_declared_length_is_sent_as_it_is(running, exchange):
    async def handler(_request):
        async def body():
            yield b"ab"
            yield b"c"

        return Response(200, (("content-length", "3"),), body())

    async with running(handler) as server:
        head, body = split(await exchange(server.port, GET % (b"/", CLOSE)))
    assert body == b"abc"
    assert b"transfer-encoding" not in head


async def test_answer_that_cannot_be_sent_is_closed(running, exchange):
    """A handler may answer with an iterator after its request broke: what feeds it must end."""
    closed = trio.Event()

    class Pieces:
        def __aiter__(self):
            return self

        async def __anext__(self):
            return b"x"

        async def aclose(self):
            closed.set()

    async def handler(request):
        with contextlib.suppress(RemoteError):
            await request.body.read(1000)
        return Response(200, (), Pieces())

    async with running(handler) as server:
        await exchange(server.port, b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        with trio.fail_after(2):
            await closed.wait()


@pytest.mark.parametrize(
    "headers",
    [(("connection", "close"),), (("content-length", "7"),), (("transfer-encoding", "x"),), (("a b", "c"),)],
)
async def test_headers_that_only_the_server_sets_are_a_fault_of_the_handler(headers, running, exchange):
    async def handler(_request):
        return Response(200, headers, b"abc")

    async with running(handler) as server:
        assert (await exchange(server.port, GET % (b"/", CLOSE))).startswith(b"HTTP/1.1 500 ")


async def test_failing_iterator_never_looks_complete(running, exchange):
    async def handler(_request):
        async def pieces():
            yield b"ab"
            raise SentinelError

        return Response(200, (), pieces())

    async with running(handler) as server:
        answer = await exchange(server.port, GET % (b"/", CLOSE))
    assert not answer.endswith(b"0\r\n\r\n")
    assert [line["status"] for line in server.log_lines()] == [200]


@pytest.mark.parametrize("secure", [False, True])
async def test_peer_that_leaves_cancels_its_handler(secure, running, certificate):
    started, cancelled = trio.Event(), trio.Event()

    async def handler(_request):
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    context = tls.server_context(certificate.cert, certificate.key) if secure else None
    async with running(handler, context=context) as server:
        tcp = await trio.open_tcp_stream("::1", server.port)
        stream = tcp
        if secure:
            stream = trio.SSLStream(tcp, tls.client_context(certificate.cert), server_hostname="localhost")
        await stream.send_all(GET % (b"/", b""))
        await started.wait()
        await trio.aclose_forcefully(tcp)
        with trio.fail_after(2):
            await cancelled.wait()
    [line] = server.log_lines()
    assert line["status"] == 499


async def test_peer_that_resets_in_the_middle_of_a_body_leaves_no_task(running):
    outcome = trio.Event()

    async def handler(request):
        try:
            await request.body.read(1 << 20)
        finally:
            outcome.set()
        return Response(204)

    async with running(handler) as server:
        sock = socket.create_connection(("::1", server.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nxx")
        await trio.sleep(0.05)
        sock.close()
        with trio.fail_after(2):
            await outcome.wait()


async def test_response_may_end_the_connection(running, exchange):
    async def handler(_request):
        return Response(403, close=True)

    async with running(handler) as server:
        assert b"connection: close" in (await exchange(server.port, GET % (b"/", b""))).lower()


async def test_longest_waiting_connection_makes_room_for_a_new_one(running, demo_router, exchange):
    limits = HttpLimits(connections_max=4, peer_connections_max=100)
    async with running(demo_router, limits=limits) as server:
        waiting = [await trio.open_tcp_stream("::1", server.port) for _ in range(4)]
        await trio.sleep(0.05)
        answer = await exchange(server.port, GET % (b"/", CLOSE))
        assert answer.startswith(b"HTTP/1.1 200 ")
        with trio.fail_after(2):
            assert await waiting[0].receive_some(1) == b""
        for stream in waiting:
            await stream.aclose()


async def test_slow_crowd_does_not_keep_good_users_out(running, demo_router, exchange):
    """H18: 150 half-sent headers against 30 connections, and every good request is answered."""
    limits = HttpLimits(connections_max=30, peer_connections_max=1000)
    async with running(demo_router, limits=limits) as server, trio.open_nursery() as nursery:
        crowd = []
        for _ in range(150):
            stream = await trio.open_tcp_stream("::1", server.port)
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
            crowd.append(stream)
        answers = []

        async def ask():
            answers.append((await exchange(server.port, GET % (b"/", CLOSE)))[:13])

        for _ in range(20):
            nursery.start_soon(ask)
            await trio.sleep(0.005)
        while len(answers) < 20:
            await trio.sleep(0.01)
        assert answers == [b"HTTP/1.1 200 "] * 20
        for stream in crowd:
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"])
async def test_tls_handshake_that_does_not_end_is_closed(sent, running, demo_router, exchange, certificate):
    limits = HttpLimits(tls_handshake_s=0.2)
    context = tls.server_context(certificate.cert, certificate.key)
    async with running(demo_router, limits=limits, context=context) as server:
        answer = await exchange(server.port, sent, wait_s=2)
    assert b"HTTP/1.1" not in answer


async def test_new_connection_is_refused_while_all_are_busy(running, exchange):
    release = trio.Event()

    async def handler(_request):
        await release.wait()
        return Response(204)

    limits = HttpLimits(connections_max=2, peer_connections_max=100)
    async with running(handler, limits=limits) as server:
        busy = [await trio.open_tcp_stream("::1", server.port) for _ in range(2)]
        for stream in busy:
            await stream.send_all(GET % (b"/", b""))
        await trio.sleep(0.05)
        stream = await trio.open_tcp_stream("::1", server.port)
        answer = await stream.receive_some(1000)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in answer
        release.set()
        for each in [stream, *busy]:
            await each.aclose()
    assert any(line["event"] == "connection_refused" for line in server.log_lines())


async def test_one_address_cannot_take_all_connections(running, demo_router):
    limits = HttpLimits(connections_max=100, peer_connections_max=3)
    async with running(demo_router, limits=limits) as server:
        mine = [await trio.open_tcp_stream("::1", server.port) for _ in range(3)]
        await trio.sleep(0.05)
        async with await trio.open_tcp_stream("::1", server.port) as fourth:
            assert (await fourth.receive_some(1000)).startswith(b"HTTP/1.1 503 ")
        await mine.pop().aclose()
        await trio.sleep(0.05)
        async with await trio.open_tcp_stream("::1", server.port) as again:
            await again.send_all(GET % (b"/", b""))
            assert (await again.receive_some(1000)).startswith(b"HTTP/1.1 200 ")
        for stream in mine:
            await stream.aclose()


def test_peers_are_counted_by_their_64_bit_prefix():
    assert peer_key("2001:db8:1:2::1") == peer_key("2001:db8:1:2:ffff::9")
    assert peer_key("2001:db8:1:2::1") != peer_key("2001:db8:1:3::1")
    assert peer_key("192.0.2.1") != peer_key("192.0.2.2")


async def test_graceful_stop_lets_running_requests_end_and_closes_idle_ones(running):
    release, entered = trio.Event(), trio.Event()

    async def handler(_request):
        entered.set()
        await release.wait()
        return Response(204)

    async with running(handler) as server:
        idle = await trio.open_tcp_stream("::1", server.port)
        busy = await trio.open_tcp_stream("::1", server.port)
        await busy.send_all(GET % (b"/", b""))
        await entered.wait()
        server.stopping.set()
        with trio.fail_after(2):
            assert await idle.receive_some(1) == b""
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream("::1", server.port)
        release.set()
        answer = await busy.receive_some(1000)
        assert answer.startswith(b"HTTP/1.1 204 ")
        assert b"connection: close" in answer.lower()
        await idle.aclose()
        await busy.aclose()


async def test_graceful_stop_is_bounded(running, small_limits):
    entered = trio.Event()

    async def stuck(_request):
        entered.set()
        await trio.sleep_forever()

    with trio.fail_after(3):
        async with running(stuck, limits=small_limits) as server:
            stream = await trio.open_tcp_stream("::1", server.port)
            await stream.send_all(GET % (b"/", b""))
            await entered.wait()
            server.stopping.set()
    await stream.aclose()


@pytest.mark.parametrize(("host", "port"), [("gw.home", 0), ("::1", -1), ("2001:db8::1", 0), ("", 0)])
async def test_listener_names_the_address_it_cannot_use(host, port):
    with pytest.raises((LocalError, OverflowError)):
        open_listener(host, port).close()


async def test_ipv6_listener_takes_no_ipv4(running, demo_router):
    listener = open_listener("::", 0)
    try:
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream("127.0.0.1", listener.port)
    finally:
        listener.close()
