"""No bytes crash the HTTP edge, leave a task behind, or get anything but well-formed answers (H18).

The bytes are mutations of lawful requests, cut into arbitrary pieces, on an in-memory connection in virtual
time; the judge of the answers is an independent h11 client.
"""

from __future__ import annotations

import contextlib
import math

import h11
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.clock import ManualClock
from runtime.errors import RemoteError
from runtime.http import HttpLimits, Peer, Response, Router, decide_range, json_response
from runtime.http.connection import HttpConnection
from runtime.http.ranges import ByteRange, Unsatisfiable
from runtime.http.strict import parse_head

PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"PUT /echo HTTP/1.1\r\n",
        b"PUT /deaf/%20 HTTP/1.1\r\n",
        b"GET /../x HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"X: \r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"hello",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"\x00",
        b" ",
        b":",
        b"%",
    ]
)
REQUEST = b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
STREAMS = st.one_of(
    st.lists(PIECES, max_size=14).map(b"".join),
    st.lists(PIECES | st.binary(max_size=8), max_size=14).map(b"".join),
    st.tuples(st.integers(0, len(REQUEST)), st.binary(max_size=4)).map(
        lambda cut: REQUEST[: cut[0]] + cut[1] + REQUEST[cut[0] + len(cut[1]) :] + REQUEST
    ),
)
LIMITS = HttpLimits(header_s=5, idle_s=5, rate_grace_s=5, linger_s=1, drain_bytes_max=3)


def make_router(finished: list[str]) -> Router:
    router = Router()

    async def echo(request):
        try:
            return json_response(200, {"bytes": len(await request.body.read(1000))})
        finally:
            finished.append("echo")

    async def deaf(_request, x=""):
        return Response(204)

    router.route("GET", "/", deaf)
    router.route("PUT", "/echo", echo)
    router.route("PUT", "/deaf/{x}", deaf)
    return router


async def serve_bytes(data: bytes, cuts: list[int], *, stays: bool) -> bytes:
    """Feed `data` in pieces; return all that was answered. Ends only when serving has ended."""
    near, far = trio.testing.memory_stream_pair()
    received = b""

    async def feed():
        start = 0
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for cut in [*sorted(cuts), len(data)]:
                await far.send_all(data[start:cut])
                start = max(start, cut)
            if not stays:
                await far.send_eof()

    async def collect():
        nonlocal received
        with contextlib.suppress(trio.BrokenResourceError):
            while part := await far.receive_some(4096):
                received += part

    connection = HttpConnection(
        near, make_router([]), LIMITS, peer=Peer("::1", 1), secure=False, clock=ManualClock(), log=None
    )
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            nursery.start_soon(collect)
            await connection.serve()
            await near.aclose()
    await far.aclose()
    return received


def judge(answers: bytes) -> None:
    """Read the answers as a client would; a malformed one raises."""
    while answers:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="PUT", target="/", headers=[("host", "a"), ("content-length", "0")]))
        client.send(h11.EndOfMessage())
        client.receive_data(answers)
        event = client.next_event()
        while isinstance(event, h11.InformationalResponse):
            event = client.next_event()
        if event is h11.NEED_DATA:
            assert answers == b"HTTP/1.1 100 Continue\r\n\r\n"
            return
        assert isinstance(event, h11.Response)
        assert event.status_code in {200, 204, 400, 404, 405, 408, 413, 417, 431, 501, 505}
        while not isinstance(event, h11.EndOfMessage):
            event = client.next_event()
            assert isinstance(event, h11.Data | h11.EndOfMessage)
        answers = client.trailing_data[0]


@settings(max_examples=400, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 60), max_size=5), st.booleans())
@example(REQUEST[:-5] + b"Expect: 100-continue\r\n\r\n", [], False)
@example(
    b"PUT /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET",
    [3, 70],
    True,
)
def test_no_bytes_crash_the_edge_or_leave_a_task(data, cuts, stays):
    async def main():
        answers = await serve_bytes(data, [cut for cut in cuts if cut <= len(data)], stays=stays)
        judge(answers)
        # the root task, the init task and pytest's nothing: whatever served is gone
        assert trio.lowlevel.current_statistics().tasks_living <= 3

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@settings(max_examples=1500, deadline=None)
@given(
    st.one_of(STREAMS, st.binary(max_size=60).map(lambda b: b"GET /" + b + b" HTTP/1.1\r\nHost: a\r\n\r\n"))
)
def test_header_parser_refuses_or_gives_a_safe_path(data):
    try:
        head = parse_head(data, secure=False)
    except RemoteError as exc:
        assert 400 <= exc.status < 600
        return
    segments = head.path.split("/")
    assert segments[0] == ""
    assert not {".", ".."} & set(segments)
    assert "" not in segments[1:-1]
    assert not any(ord(c) < 32 or c in "\\\x7f" for c in head.path)
    assert head.content_length is None or not head.chunked


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=12) | st.from_regex(r"bytes=\d*-\d*", fullmatch=True), st.integers(0, 10**6))
def test_range_never_leaves_the_file(header, size):
    wanted = decide_range(header, size)
    if isinstance(wanted, ByteRange):
        assert 0 <= wanted.offset < size
        assert 1 <= wanted.length_bytes <= size - wanted.offset
    else:
        assert wanted is None or isinstance(wanted, Unsatisfiable)
    assert math.isfinite(size)
